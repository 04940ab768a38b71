//! What each part of a layer takes.

use burn::prelude::Backend;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Seconds by part, measured with a wait before and after each; off by default, since the
/// waits take time of their own. Clones measure together.
#[derive(Clone, Debug, Default)]
pub struct Profile(Option<Arc<Mutex<BTreeMap<&'static str, f64>>>>);

impl Profile {
    /// A profile that measures.
    pub fn on() -> Self {
        Self(Some(Arc::default()))
    }

    /// Seconds so far, by part.
    pub fn seconds(&self) -> BTreeMap<&'static str, f64> {
        let times = self.0.as_ref();
        times.map_or_else(BTreeMap::new, |times| {
            times.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Runs `f` as a part of the model.
    pub(crate) fn part<B: Backend, T>(
        &self,
        name: &'static str,
        device: &B::Device,
        f: impl FnOnce() -> T,
    ) -> T {
        let Some(times) = &self.0 else {
            return f();
        };
        // An error comes up again where results are read.
        let _ = B::sync(device);
        let started = Instant::now();
        let result = f();
        let _ = B::sync(device);
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        *times.entry(name).or_default() += started.elapsed().as_secs_f64();
        result
    }
}
