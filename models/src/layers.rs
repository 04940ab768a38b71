//! The parts that layers are made of.

use crate::loader::Loader;
use crate::policy::LayerPolicy;
use crate::state::{LayerState, LinearState};
use crate::{ModelError, Profile};
use burn::prelude::*;
use burn::tensor::{DType, TensorPrimitive};
use butterfly::{
    Activation, Append, AttentionBackend, Call, Delta, KvCache, Operation, OperationError, Plan,
    attention, run,
};
use butterfly_ir::model::{AttentionShape, LinearShape, ModelConfig, ModelSizes};

/// Tokens [B, T] → their rows of the embedding, [B, T, H].
pub(crate) fn embed<B: Backend>(embedding: &Tensor<B, 2>, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    let ([batch, tokens], [_, hidden]) = (ids.dims(), embedding.dims());
    let rows = embedding.clone().select(0, ids.reshape([batch * tokens]));
    rows.reshape([batch, tokens, hidden])
}

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
    /// [B, T, in] → [B, T, out], by the products of a plan's artifacts where there are such.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        plan: Option<&Plan>,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let inputs = vec![primitive(x), primitive(self.weight.clone())];
        let product = plan.map_or(Operation::Project, |plan| {
            Operation::ProjectBy(plan.clone())
        });
        let y = one(run::<B>(&product, inputs)?)?;
        Ok(match &self.bias {
            None => y,
            Some(bias) => y + bias.clone().unsqueeze::<3>(),
        })
    }
}

/// A float tensor as operations take it.
fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> burn::tensor::ops::FloatTensor<B> {
    x.into_primitive().tensor()
}

/// `x / rms(x) * weight` of the residual stream, in `dtype`.
pub(crate) fn norm<B: AttentionBackend>(
    x: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    epsilon: f32,
    dtype: DType,
) -> Result<Tensor<B, 3>, OperationError> {
    let inputs = vec![primitive(x), primitive(weight.clone())];
    one(run::<B>(&Operation::Norm { epsilon, dtype }, inputs)?)
}

/// `x + y`, and its norm.
pub(crate) fn add_norm<B: AttentionBackend>(
    x: Tensor<B, 3>,
    y: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    epsilon: f32,
) -> Result<(Tensor<B, 3>, Tensor<B, 3>), OperationError> {
    let inputs = vec![primitive(x), primitive(y), primitive(weight.clone())];
    let outputs = run::<B>(&Operation::AddNorm { epsilon }, inputs)?;
    let mut outputs = outputs.into_iter().map(float);
    let mut next = || outputs.next().expect("two outputs");
    Ok((next(), next()))
}

fn float<B: Backend, const D: usize>(x: burn::tensor::ops::FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

fn one<B: Backend, const D: usize>(
    outputs: Vec<burn::tensor::ops::FloatTensor<B>>,
) -> Result<Tensor<B, D>, OperationError> {
    let output = outputs.into_iter().next();
    Ok(float(output.expect("one output")))
}

/// What matrix products count as in a profile.
const PROJECTIONS: &str = "projections";

/// `silu(gate(x)) * up(x)`, down.
#[derive(Clone, Debug)]
pub(crate) struct GatedMlp<B: Backend> {
    /// gate above up.
    inner: Projection<B>,
    down: Projection<B>,
}

impl<B: AttentionBackend> GatedMlp<B> {
    pub(crate) fn load(loader: &mut Loader<'_, B>, at: &str, sizes: &ModelSizes) -> Self {
        let (hidden, wide) = (sizes.hidden as usize, sizes.intermediate as usize);
        let part = |name: &str| (format!("{at}.{name}.weight"), wide);
        let inner = loader.matrix(&[part("gate_proj"), part("up_proj")], hidden);
        let down = loader.matrix(&[(format!("{at}.down_proj.weight"), hidden)], wide);
        Self {
            inner: Projection::new(inner),
            down: Projection::new(down),
        }
    }

    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let device = x.device();
        let inner = profile.part::<B, _>(PROJECTIONS, &device, || self.inner.forward(x, plan))?;
        let gated = profile.part::<B, _>("gates", &device, || {
            run::<B>(&Operation::Gated(Activation::Silu), vec![primitive(inner)])
        });
        let gated = one(gated?)?;
        profile.part::<B, _>(PROJECTIONS, &device, || self.down.forward(gated, plan))
    }
}

/// Softmax attention with its projections.
#[derive(Clone, Debug)]
pub(crate) struct Attention<B: Backend> {
    /// q (with its gate, head by head), k and v, below one another.
    pub(crate) rows: Projection<B>,
    pub(crate) output: Projection<B>,
    pub(crate) norms: Option<[Tensor<B, 1>; 2]>,
    pub(crate) append: Append,
    pub(crate) gate: bool,
}

/// Heads as a config has them.
pub(crate) fn heads(config: &ModelConfig) -> (usize, usize, usize) {
    let shape = config.attention.kernel_shape(butterfly_ir::Phase::Prefill);
    debug_assert!(matches!(config.attention, AttentionShape::Gqa { .. }));
    let sizes = [shape.q_heads, shape.kv_heads, shape.head_dim];
    let [q, kv, dim] = sizes.map(|n| n as usize);
    (q, kv, dim)
}

impl<B: AttentionBackend> Attention<B> {
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        at: &str,
        config: &ModelConfig,
        sizes: &ModelSizes,
        plus: f32,
    ) -> Self {
        let (q_heads, kv_heads, head_dim) = heads(config);
        let hidden = sizes.hidden as usize;
        let q_step = head_dim * if config.output_gate { 2 } else { 1 };
        let (q, kv) = (q_heads * q_step, kv_heads * head_dim);
        let parts = |what: &str| {
            [("q_proj", q), ("k_proj", kv), ("v_proj", kv)]
                .map(|(name, rows)| (format!("{at}.{name}.{what}"), rows))
        };
        let weight = loader.matrix(&parts("weight"), hidden);
        let bias = config.bias.then(|| loader.bias(&parts("bias")));
        let o = loader.matrix(
            &[(format!("{at}.o_proj.weight"), hidden)],
            q_heads * head_dim,
        );
        let o_bias = format!("{at}.o_proj.bias");
        let o_bias = config.bias.then(|| loader.bias(&[(o_bias, hidden)]));
        let norms = config.qk_norm.then(|| {
            ["q_norm", "k_norm"]
                .map(|name| loader.norm(&format!("{at}.{name}.weight"), head_dim, plus))
        });
        Self {
            rows: Projection { weight, bias },
            output: Projection {
                weight: o,
                bias: o_bias,
            },
            append: Append {
                q_heads,
                kv_heads,
                head_dim,
                q_step,
                starts: [0, q, q + kv],
                position: 0,
                norm: norms.is_some().then_some(config.norm_eps as f32),
                rotated: config.rope.map_or(0, |rope| rope.dims as usize),
            },
            norms,
            gate: config.output_gate,
        }
    }

    /// An empty cache.
    pub(crate) fn cache(
        &self,
        batch: usize,
        capacity: usize,
        block: usize,
        device: &B::Device,
    ) -> LayerState<B> {
        let shape = [batch, self.append.kv_heads, self.append.head_dim];
        let dtype = self.rows.weight.dtype();
        LayerState::Attention(KvCache::new(shape, capacity, block, (device, dtype)))
    }

    /// x [B, T, H] → [B, T, H].
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        cache: &mut KvCache<B>,
        rotation: Option<&Tensor<B, 2>>,
        capacity: usize,
        policy: &LayerPolicy,
        profile: &Profile,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let [batch, tokens, _] = x.dims();
        let device = x.device();
        let plan = Some(&policy.plan);
        let rows = profile.part::<B, _>(PROJECTIONS, &device, || self.rows.forward(x, plan))?;
        let inputs = [rows.clone(), rows.clone(), rows.clone()];
        let q = profile.part::<B, _>("heads and cache", &device, || {
            cache.append(inputs, self.norms.as_ref(), rotation, self.append.clone())
        })?;
        let [k, v] = cache.tensors();
        let call = Call {
            index: policy.index,
            kv_len: Some(cache.len()),
            capacity: Some(capacity),
            counts: policy.counts.clone(),
            ..Call::default()
        };
        let o = profile.part::<B, _>("attention", &device, || {
            attention(q, k, v, &policy.plan, &call)
        })?;
        let width = self.append.q_heads * self.append.head_dim;
        let mut o: Tensor<B, 3> = o.swap_dims(1, 2).reshape([batch, tokens, width]);
        if self.gate {
            let op = Operation::GateOutput {
                head_dim: self.append.head_dim,
            };
            o = profile.part::<B, _>("gates", &device, || {
                one(run::<B>(&op, vec![primitive(o), primitive(rows)])?)
            })?;
        }
        Ok(profile.part::<B, _>(PROJECTIONS, &device, || self.output.forward(o, plan))?)
    }
}

/// Gated delta rule with its projections.
#[derive(Clone, Debug)]
pub(crate) struct LinearAttention<B: Backend> {
    /// q, k and v, z, b and a, below one another.
    rows: Projection<B>,
    output: Projection<B>,
    /// [taps, channels].
    convolution: Tensor<B, 2>,
    decay: Tensor<B, 1>,
    dt_bias: Tensor<B, 1>,
    norm: Tensor<B, 1>,
    op: Delta,
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
            epsilon,
        };
        let (channels, taps, values) = (op.channels(), op.taps, op.v_heads * op.v_dim);
        let parts = [
            ("in_proj_qkv", channels),
            ("in_proj_z", values),
            ("in_proj_b", op.v_heads),
            ("in_proj_a", op.v_heads),
        ];
        let parts = parts.map(|(name, rows)| (format!("{at}.{name}.weight"), rows));
        let rows = loader.matrix(&parts, hidden);
        let output = loader.matrix(&[(format!("{at}.out_proj.weight"), hidden)], values);
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
        }
    }

    pub(crate) fn state(&self, batch: usize, device: &B::Device) -> LayerState<B> {
        let dtype = self.rows.weight.dtype();
        LayerState::Linear(LinearState::new(&self.op, batch, (device, dtype)))
    }

    /// x [B, T, H] → [B, T, H].
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        state: &mut LinearState<B>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let device = x.device();
        let rows = profile.part::<B, _>(PROJECTIONS, &device, || self.rows.forward(x, plan))?;
        let inputs = vec![
            primitive(rows),
            primitive(self.convolution.clone()),
            primitive(self.decay.clone()),
            primitive(self.dt_bias.clone()),
            primitive(self.norm.clone()),
            primitive(state.rows.clone()),
            primitive(state.memory.clone()),
        ];
        let outputs = profile.part::<B, _>("linear attention", &device, || {
            run::<B>(&Operation::Delta(self.op), inputs)
        })?;
        let mut outputs = outputs.into_iter();
        let mut next = || outputs.next().expect("three outputs");
        let y = float(next());
        state.rows = float(next());
        state.memory = float(next());
        profile.part::<B, _>(PROJECTIONS, &device, || self.output.forward(y, plan))
    }
}
