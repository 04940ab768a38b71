//! Times of the parts of a model, and how tokens spread over experts.

use burn::prelude::Backend;
use butterfly_ir::model::Part;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Measures the seconds spent in each part of a model, such as norms or the output projection.
///
/// The device is synchronised before and after each part. What that takes while the device has nothing to do
/// is not counted, but parts cannot overlap: the default profile is therefore off. Clones add to the same
/// measurements.
#[derive(Clone, Debug, Default)]
pub struct Profile(Option<Arc<Mutex<Measured>>>);

#[derive(Debug, Default)]
struct Measured {
    seconds: BTreeMap<Part, f64>,
    loads: BTreeMap<usize, Vec<u64>>,
}

impl Profile {
    /// A profile that is on.
    pub fn on() -> Self {
        Self(Some(Arc::default()))
    }

    /// Seconds so far, by part; empty if the profile is off.
    pub fn seconds(&self) -> BTreeMap<Part, f64> {
        self.measured(|measured| measured.seconds.clone())
    }

    /// How often each expert was chosen so far, by layer; empty if the profile is off.
    pub fn loads(&self) -> BTreeMap<usize, Vec<u64>> {
        self.measured(|measured| measured.loads.clone())
    }

    fn measured<T: Default>(&self, of: impl FnOnce(&mut Measured) -> T) -> T {
        let measured = self.0.as_ref();
        measured.map_or_else(T::default, |measured| {
            of(&mut measured.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// Whether anything is measured.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Counts a choice among the `experts` experts of a layer.
    pub(crate) fn chose(&self, layer: usize, experts: usize, ids: &[i32]) {
        self.measured(|measured| {
            let loads = measured.loads.entry(layer).or_default();
            loads.resize(experts, 0);
            for id in ids {
                if let Some(load) = usize::try_from(*id).ok().and_then(|id| loads.get_mut(id)) {
                    *load += 1;
                }
            }
        });
    }

    /// Runs `f`, and adds its time to `part` if the profile is on.
    pub(crate) fn part<B: Backend, T>(
        &self,
        part: Part,
        device: &B::Device,
        f: impl FnOnce() -> T,
    ) -> T {
        if !self.is_on() {
            return f();
        }
        // An error of the device is reported again when results are read.
        let _ = B::sync(device);
        let idle = Instant::now();
        let _ = B::sync(device);
        let wait = idle.elapsed();
        let started = Instant::now();
        let result = f();
        let _ = B::sync(device);
        let seconds = started.elapsed().saturating_sub(wait).as_secs_f64();
        self.measured(|measured| *measured.seconds.entry(part).or_default() += seconds);
        result
    }
}
