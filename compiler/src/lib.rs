//! Passes from pattern, shape and model graph to plans.
