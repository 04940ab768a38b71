//! Linear attention: the gated delta rule with its projections.

use super::{Projection, around, float, primitive};
use crate::Profile;
use crate::loader::Loader;
use crate::state::{LayerState, LinearState};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::ops::{Delta, Operation};
use butterfly::{AttentionBackend, OperationError, Plan};
use butterfly_ir::model::{LinearShape, Part};

/// A linear attention layer: the gated delta rule with its projections.
#[derive(Clone, Debug)]
pub(crate) struct LinearAttention<B: Backend> {
    /// The projections q, k, v, z, b and a, stacked into one matrix.
    pub(crate) rows: Projection<B>,
    output: Projection<B>,
    /// [taps, channels].
    convolution: Tensor<B, 2>,
    decay: Tensor<B, 1>,
    dt_bias: Tensor<B, 1>,
    norm: Tensor<B, 1>,
    /// Without its kernels, which come with the plan of a call.
    op: Delta,
    dtype: DType,
}

impl<B: AttentionBackend> LinearAttention<B> {
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        at: &str,
        shape: &LinearShape,
        hidden: usize,
        epsilon: f32,
    ) -> Self {
        let op = Delta {
            k_heads: shape.k_heads as usize,
            v_heads: shape.v_heads as usize,
            k_dim: shape.k_dim as usize,
            v_dim: shape.v_dim as usize,
            taps: shape.taps as usize,
            tiled: shape.tiled,
            epsilon,
            rules: Default::default(),
        };
        let (channels, taps, values) = (op.channels(), op.taps, op.v_heads * op.v_dim);
        let parts = [
            ("in_proj_qkv", channels),
            ("in_proj_z", values),
            ("in_proj_b", op.v_heads),
            ("in_proj_a", op.v_heads),
        ];
        let parts = parts.map(|(name, rows)| (format!("{at}.{name}.weight"), rows));
        let rows = loader.weight(&parts, hidden);
        let output = loader.weight(&[(format!("{at}.out_proj.weight"), hidden)], values);
        let convolution = loader.convolution(&format!("{at}.conv1d.weight"), channels, taps);
        let decay = loader.vector(&format!("{at}.A_log"), &[op.v_heads], 0.0);
        let decay = decay.into_iter().map(|log| -log.exp()).collect();
        Self {
            rows: Projection::new(rows),
            output: Projection::new(output),
            convolution,
            decay: loader.floats(decay, [op.v_heads]),
            dt_bias: loader.norm(&format!("{at}.dt_bias"), op.v_heads, 0.0),
            norm: loader.norm(&format!("{at}.norm.weight"), op.v_dim, 0.0),
            op,
            dtype: loader.dtype(),
        }
    }

    pub(crate) fn state(&self, batch: usize, device: &B::Device) -> LayerState<B> {
        LayerState::Linear(LinearState::new(&self.op, batch, (device, self.dtype)))
    }

    /// Projections [B, T, ..] → [B, T, H].
    pub(crate) fn forward(
        &self,
        rows: Tensor<B, 3>,
        state: &mut LinearState<B>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let device = rows.device();
        // The others stay as they are.
        let ([sequences, ..], [all, ..]) = (rows.dims(), state.rows.dims());
        let inputs = vec![
            primitive(rows),
            primitive(self.convolution.clone()),
            primitive(self.decay.clone()),
            primitive(self.dt_bias.clone()),
            primitive(self.norm.clone()),
            primitive(first(&state.rows, sequences)),
            primitive(first(&state.memory, sequences)),
        ];
        let op = Delta {
            rules: plan.map(Plan::delta_rules).unwrap_or_default(),
            ..self.op.clone()
        };
        let outputs = profile.part::<B, _>(Part::LinearAttention, &device, || {
            around::<B>(Operation::Delta(op), inputs)
        })?;
        let mut outputs = outputs.into_iter();
        let mut next = || outputs.next().expect("three outputs");
        let y = float(next());
        let (rows, memory) = (float(next()), float(next()));
        (state.rows, state.memory) = match sequences < all {
            false => (rows, memory),
            true => {
                let others = sequences..all;
                let old = state.rows.clone().slice(others.clone());
                let rows = Tensor::cat(vec![rows, old], 0);
                let old = state.memory.clone().slice(others);
                (rows, Tensor::cat(vec![memory, old], 0))
            }
        };
        profile.part::<B, _>(Part::Projections, &device, || self.output.forward(y, plan))
    }
}

/// The first sequences of a state, which is not copied if these are all.
fn first<B: Backend, const D: usize>(state: &Tensor<B, D>, sequences: usize) -> Tensor<B, D> {
    match state.dims()[0] == sequences {
        true => state.clone(),
        false => state.clone().narrow(0, 0, sequences),
    }
}
