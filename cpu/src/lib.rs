//! The native attention kernel and its f64 reference.
