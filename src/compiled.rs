//! Which kernels this process has generated itself: none if all of them come from artifacts.

use std::sync::{Mutex, PoisonError};

static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Names of the kernels that this process has generated itself, in the order in which they were
/// first needed. The small kernels of the crate `ops`, which CubeCL compiles, are not among them.
pub fn compiled() -> Vec<String> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg_attr(
    not(all(feature = "jit", any(feature = "cuda", feature = "vulkan"))),
    allow(dead_code)
)]
pub(crate) fn add(kernel: String) {
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.push(kernel);
}
