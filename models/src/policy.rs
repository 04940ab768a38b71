//! Which attention layers follow a pattern, and which keep theirs.

use crate::ModelError;
use butterfly::{Counts, OperationError, Plan, Sparsity};
use butterfly_compiler::config;
use butterfly_ir::model::{LayerKind, ModelConfig};

/// What the attention of each layer runs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// One entry for each layer; `None` where there is no attention.
    pub layers: Vec<Option<LayerPolicy>>,
}

/// What one attention layer runs.
#[derive(Clone, Debug)]
pub struct LayerPolicy {
    /// Its pattern and kernels.
    pub plan: Plan,
    /// Picks the stage.
    pub index: u32,
    /// Whether the pattern replaces the layer's own, causal attention.
    pub swapped: bool,
    /// Its launches.
    pub counts: Counts,
}

impl Policy {
    /// Every layer keeps its attention.
    pub fn dense(model: &ModelConfig, plan: &Plan) -> Self {
        let layers = model.layers.iter().map(|kind| match kind {
            LayerKind::LinearAttention => None,
            LayerKind::FullAttention => Some(LayerPolicy {
                plan: plan.clone(),
                index: 0,
                swapped: false,
                counts: Counts::default(),
            }),
        });
        Self {
            layers: layers.collect(),
        }
    }

    /// The layers that `sparsity` names follow `plan` (all, where it names none), the others
    /// run `dense`, which is asked for only if there are such.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a layer that cannot be replaced, and those of `dense`.
    pub fn new(
        model: &ModelConfig,
        plan: &Plan,
        sparsity: &Sparsity,
        dense: impl FnOnce() -> Result<Plan, OperationError>,
    ) -> Result<Self, ModelError> {
        let swapped = config::swapped(model, sparsity)?;
        let full = model.layers.iter();
        let full = full.filter(|kind| **kind == LayerKind::FullAttention);
        let mut policy = match swapped.len() < full.count() {
            true => Self::dense(model, &dense()?),
            false => Self::dense(model, plan),
        };
        for layer in swapped {
            policy.layers[layer.layer as usize] = Some(LayerPolicy {
                plan: plan.clone(),
                index: layer.index,
                swapped: true,
                counts: Counts::default(),
            });
        }
        Ok(policy)
    }

    /// A plan of the artifacts that all layers share: products come from there.
    pub(crate) fn plan(&self) -> Option<&Plan> {
        let mut layers = self.attention();
        layers.next().map(|(_, layer)| &layer.plan)
    }

    /// The attention layers by index.
    pub fn attention(&self) -> impl Iterator<Item = (usize, &LayerPolicy)> {
        let layers = self.layers.iter().enumerate();
        layers.filter_map(|(i, layer)| Some((i, layer.as_ref()?)))
    }
}
