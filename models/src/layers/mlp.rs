//! Feed-forward layers.

use super::{Projection, Unnormed, Weight};
use crate::Profile;
use crate::loader::Loader;
use burn::prelude::*;
use butterfly::ops::Activation;
use butterfly::{AttentionBackend, OperationError, Plan};
use butterfly_ir::model::Part;

/// A gated feed-forward layer: `down(activation(gate(x), up(x)))`.
#[derive(Clone, Debug)]
pub(crate) struct GatedMlp<B: Backend> {
    /// gate and up, stacked into one matrix in this order.
    inner: Weight<B>,
    down: Projection<B>,
    activation: Activation,
}

impl<B: AttentionBackend> GatedMlp<B> {
    /// Loads the layer whose weights begin with `at`; `names` are those of gate and up, or of the
    /// one matrix that holds both. `hidden` and `wide` are the sizes before and within the layer.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        at: &str,
        names: &[&str],
        [hidden, wide]: [usize; 2],
        activation: Activation,
    ) -> Self {
        let part = |name: &&str| (format!("{at}.{name}.weight"), 2 * wide / names.len());
        let parts: Vec<_> = names.iter().map(part).collect();
        let inner = loader.weight(&parts, hidden);
        let down = loader.weight(&[(format!("{at}.down_proj.weight"), hidden)], wide);
        Self {
            inner,
            down: Projection::new(down),
            activation,
        }
    }

    /// As [`forward`](Self::forward), of the norm with which the layer begins; the stream too.
    pub(crate) fn forward_normed(
        &self,
        x: Unnormed<'_, B>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<(Tensor<B, 3>, Tensor<B, 3>), OperationError> {
        let (x, gated) = x.project_gated(&self.inner, self.activation, plan, profile)?;
        let device = x.device();
        let y = profile.part::<B, _>(Part::Projections, &device, || {
            self.down.forward(gated, plan)
        })?;
        Ok((x, y))
    }

    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let device = x.device();
        let gated = profile.part::<B, _>(Part::Projections, &device, || {
            self.inner.times_gated(x, self.activation, plan)
        })?;
        profile.part::<B, _>(Part::Projections, &device, || {
            self.down.forward(gated, plan)
        })
    }
}
