//! How often each kernel was launched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts launches by kernel. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<BTreeMap<String, u64>>>);

impl Counts {
    /// Launches so far, by kernel.
    pub fn get(&self) -> BTreeMap<String, u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn add(&self, kernel: String) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(kernel).or_default() += 1;
    }
}
