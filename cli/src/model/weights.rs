//! The weights of a model that is measured: those of a checkpoint, or random ones.

use super::Place;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly::ops::Packed;
use butterfly_ir::model::{ModelConfig, ModelSizes, Part};
use butterfly_models::{Checkpoint, Model, Taken};
use std::collections::BTreeMap;

/// Where weights come from.
#[derive(Debug)]
pub(super) enum Weights {
    /// A folder or a GGUF file.
    Stored(Box<Checkpoint>),
    /// Random numbers of the shapes of a config.
    Random {
        /// How they are packed; `None` for the element type of the run.
        packed: Option<Packed>,
        /// The same seed gives the same weights on the same device; without one they differ from run
        /// to run.
        seed: Option<u64>,
    },
}

impl Weights {
    /// The checkpoint, if they are not random.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Stored(checkpoint) => Some(checkpoint.as_ref()),
            Self::Random { .. } => None,
        }
    }

    /// The memory that they take, without allocating it. Random weights have the shapes of `config`
    /// and `sizes`.
    pub(super) fn taken<B: AttentionBackend>(
        &self,
        (config, sizes): (&ModelConfig, &ModelSizes),
        place: &Place<B>,
    ) -> Result<Taken, Failure> {
        let (dtype, device) = (place.dtype, &place.device);
        match self {
            Self::Stored(checkpoint) => Model::<B>::check(checkpoint, dtype, device),
            Self::Random { packed, .. } => Model::<B>::taken(config, sizes, *packed, dtype, device),
        }
        .map_err(Failure::bad)
    }

    /// Bytes of an element of the matrices of each part of the model.
    pub(super) fn stored<B: AttentionBackend>(
        &self,
        shapes: (&ModelConfig, &ModelSizes),
        place: &Place<B>,
    ) -> Result<BTreeMap<Part, f64>, Failure> {
        let stored = match self {
            Self::Stored(checkpoint) => (Some(checkpoint.as_ref()), None),
            Self::Random { packed, .. } => (None, *packed),
        };
        Model::<B>::stored(stored, shapes, place.dtype, &place.device).map_err(Failure::bad)
    }

    /// The model with these weights, for which there is room.
    pub(super) fn load<B: AttentionBackend>(
        &self,
        (config, sizes): (&ModelConfig, &ModelSizes),
        place: &Place<B>,
    ) -> Result<Model<B>, Failure> {
        match self {
            Self::Stored(checkpoint) => place.load_checked(checkpoint).map(|(model, _)| model),
            Self::Random { packed, seed } => {
                if let Some(seed) = seed {
                    B::seed(&place.device, *seed);
                }
                let model = Model::random(config, sizes, *packed, place.dtype, &place.device);
                model.map_err(Failure::bad)
            }
        }
    }
}
