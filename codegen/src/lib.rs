//! Emits kernels for every target from a plan.
