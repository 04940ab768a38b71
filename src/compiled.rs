//! Which kernels this process has made: none, where all come from artifacts.

use std::sync::{Mutex, PoisonError};

static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Kernels that were made in this process, in the order in which they were first needed.
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
