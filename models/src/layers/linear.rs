//! Linear maps.

use super::Weight;
use burn::prelude::*;
use butterfly::{AttentionBackend, OperationError, Plan};

/// A linear map [in] → [out].
#[derive(Clone, Debug)]
pub(crate) struct Projection<B: Backend> {
    /// [out, in].
    pub(crate) weight: Weight<B>,
    pub(crate) bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Projection<B> {
    pub(crate) fn new(weight: Weight<B>) -> Self {
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
        Ok(self.biased(self.weight.times(x, plan)?))
    }

    /// [B, T, in] → [B, T, out] in f32, the type of its bias too.
    pub(crate) fn forward_wide(
        &self,
        x: Tensor<B, 3>,
        plan: Option<&Plan>,
    ) -> Result<Tensor<B, 3>, OperationError> {
        Ok(self.biased(self.weight.times_wide(x, plan)?))
    }

    pub(super) fn biased(&self, y: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.bias {
            None => y,
            Some(bias) => y + bias.clone().unsqueeze::<3>(),
        }
    }
}
