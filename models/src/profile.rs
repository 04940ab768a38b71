//! Times of the parts of a model.

use burn::prelude::Backend;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Measures the seconds spent in each part of a model, such as norms or the output projection.
///
/// The device is synchronised before and after each part, which itself takes time: the default
/// profile is therefore off. Clones add to the same times.
#[derive(Clone, Debug, Default)]
pub struct Profile(Option<Arc<Mutex<BTreeMap<&'static str, f64>>>>);

impl Profile {
    /// A profile that is on.
    pub fn on() -> Self {
        Self(Some(Arc::default()))
    }

    /// Seconds so far, by part; empty if the profile is off.
    pub fn seconds(&self) -> BTreeMap<&'static str, f64> {
        let times = self.0.as_ref();
        times.map_or_else(BTreeMap::new, |times| {
            times.lock().unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Runs `f`, and adds its time to part `name` if the profile is on.
    pub(crate) fn part<B: Backend, T>(
        &self,
        name: &'static str,
        device: &B::Device,
        f: impl FnOnce() -> T,
    ) -> T {
        let Some(times) = &self.0 else {
            return f();
        };
        // An error of the device is reported again when results are read.
        let _ = B::sync(device);
        let started = Instant::now();
        let result = f();
        let _ = B::sync(device);
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        *times.entry(name).or_default() += started.elapsed().as_secs_f64();
        result
    }
}
