//! Linear maps.

use super::{around, one, primitive};
use burn::prelude::*;
use butterfly::ops::{Operation, Project};
use butterfly::{AttentionBackend, OperationError, Plan};

/// A linear map, stored as [out, in].
#[derive(Clone, Debug)]
pub(crate) struct Projection<B: Backend> {
    pub(crate) weight: Tensor<B, 2>,
    pub(crate) bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Projection<B> {
    pub(crate) fn new(weight: Tensor<B, 2>) -> Self {
        Self { weight, bias: None }
    }
}

impl<B: AttentionBackend> Projection<B> {
    /// [B, T, in] → [B, T, out], by the plan's kernels for matrix products where it has any.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        plan: Option<&Plan>,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let inputs = vec![primitive(x), primitive(self.weight.clone())];
        let stored = self.weight.dtype();
        let without = || Operation::Project(Project::of(stored));
        let product = plan.map_or_else(without, |plan| plan.project(stored));
        let y = one(around::<B>(product, inputs)?)?;
        Ok(match &self.bias {
            None => y,
            Some(bias) => y + bias.clone().unsqueeze::<3>(),
        })
    }
}
