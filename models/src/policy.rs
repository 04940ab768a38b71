//! Which attention layers follow a pattern, and which keep their own attention.

use crate::ModelError;
use butterfly::{Counts, OperationError, Plan, Sparsity};
use butterfly_compiler::config;
use butterfly_ir::model::{LayerKind, ModelConfig};

/// The attention that each layer of a model runs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// One entry for each layer of the model; `None` for layers without softmax attention.
    pub layers: Vec<Option<LayerPolicy>>,
}

/// The attention that one layer runs.
#[derive(Clone, Debug)]
pub struct LayerPolicy {
    /// The layer's pattern and kernels.
    pub plan: Plan,
    /// The index that picks the stage, unless the pattern fixes it: stage = index modulo the number
    /// of stages.
    pub index: u32,
    /// Whether the pattern replaces the layer's own, causal attention.
    pub swapped: bool,
    /// Counts the launches of this layer's kernels.
    pub counts: Counts,
}

impl Policy {
    /// Every attention layer keeps its own, causal attention, which `plan` computes.
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

    /// The attention layers that `sparsity` names follow `plan`; if it names none, all do. The
    /// others run the plan that `dense` makes, which is called only if there are others.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a layer that cannot be replaced; the error of `dense` as
    /// [`ModelError::Operation`].
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

    /// The plan of the first attention layer. All layers share its artifacts, from which kernels
    /// for matrix products are taken.
    pub(crate) fn plan(&self) -> Option<&Plan> {
        let mut layers = self.attention();
        layers.next().map(|(_, layer)| &layer.plan)
    }

    /// The attention layers, each with its index in the model.
    pub fn attention(&self) -> impl Iterator<Item = (usize, &LayerPolicy)> {
        let layers = self.layers.iter().enumerate();
        layers.filter_map(|(i, layer)| Some((i, layer.as_ref()?)))
    }
}
