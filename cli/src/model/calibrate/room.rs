//! The memory of a calibration, before anything is allocated.
//!
//! In:  a calibration, and how windows are read. Out: what it takes on the device, and of logits on the
//! host; or an error that says what does not fit, and what to give instead.

use super::super::Place;
use super::super::memory::available;
use super::Calibration;
use super::subject::Subject;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_models::calibrate::Reading;
use butterfly_models::{Extent, Footprint, Policy, Taken};

/// The memory of a calibration.
pub(super) struct Needs {
    weights: Taken,
    pub(super) device: Footprint,
    /// Bytes of logits on the host.
    pub(super) logits: u64,
}

impl Needs {
    /// What the model and all that is kept take, after checking that there is room for it.
    pub(super) fn check<B: AttentionBackend>(
        task: &Calibration<'_>,
        place: &Place<B>,
        dense: &Policy,
        reading: &Reading,
    ) -> Result<Self, Failure> {
        let subject = &task.subject;
        let tokens = task.text.window as u64;
        let cached = dense.attention().count() as u64;
        // Two sequences: the tokens that all policies share, and a policy.
        let extent = Extent {
            batch: 2,
            capacity: tokens,
            cached: cached.saturating_mul(tokens),
            expanded: dense.expanded(tokens, (reading.chunk as u64).min(tokens)),
            chunk: (reading.chunk as u64).min(tokens),
            logits: tokens.min(256),
        };
        let weights = subject.taken(place)?;
        let mut device = Footprint::new::<B>(
            &subject.config,
            &subject.sizes,
            weights,
            place.target(),
            extent,
        );
        // The residual stream of a window and what is not yet added to it, before and after a layer.
        let stream = u64::from(subject.sizes.hidden) * u64::from(4 + place.dtype.bytes());
        device.activations = device.activations.saturating_add(2 * stream * tokens);
        // Dense logits of the scored positions; those of some by a policy, as they come and in f32.
        let row = 4 * u64::from(subject.sizes.vocabulary);
        let scored = reading.scored(task.text.window) as u64;
        let logits = (scored + 2 * extent.logits).saturating_mul(row);
        if let Some(room) = available().filter(|room| logits > *room) {
            let most = (room / row).saturating_sub(2 * extent.logits).max(1);
            return Err(Failure::Bad(format!(
                "dense logits of {scored} positions take {:.1} GB, this machine has {:.1}: give --every {} or more, or a smaller --window",
                logits as f64 / 1e9,
                room as f64 / 1e9,
                scored.saturating_mul(task.every as u64).div_ceil(most)
            )));
        }
        let checked = place.check_room(&subject.config_file(), &device, logits);
        checked.map_err(|failure| match failure {
            Failure::Bad(said) => {
                Failure::Bad(format!("{said}; a smaller --window takes less of all"))
            }
            other => other,
        })?;
        Ok(Self {
            weights,
            device,
            logits,
        })
    }

    /// The memory of so many prompts that run together, and share a chunk.
    pub(super) fn asking<B: AttentionBackend>(
        &self,
        task: &Calibration<'_>,
        place: &Place<B>,
        dense: &Policy,
        (prompts, chunk): (usize, usize),
    ) -> Footprint {
        let (prompts, capacity) = (prompts as u64, task.capacity as u64);
        let extent = Extent {
            batch: prompts,
            capacity,
            cached: (dense.attention().count() as u64).saturating_mul(capacity),
            expanded: dense.expanded(capacity, (chunk as u64 / prompts).max(1)),
            chunk: (chunk as u64 / prompts).max(1),
            logits: 1,
        };
        let Subject { config, sizes, .. } = &task.subject;
        Footprint::new::<B>(config, sizes, self.weights, place.target(), extent)
    }
}
