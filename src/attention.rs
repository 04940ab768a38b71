//! Attention for users of Burn: as a function, and as a module that replaces Burn's own.

use crate::{Attend, AttentionBackend, Counts, Operation, OperationError, Plan, run};
use burn::module::Module;
use burn::nn::attention::MultiHeadAttention;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{DType, TensorPrimitive};
use butterfly_ir::pattern::Routing;
use butterfly_ops::{Operation as LayerOperation, Pool};
use std::ops::Range;

/// The parameters of a call of [`attention`] that are not tensors.
///
/// The default suits training and prefill: all keys of k are read, the queries are the last
/// `q_len` tokens of the sequence, and the stage is 0.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Picks the stage of the butterfly network: the layer's position among the replaced layers,
    /// from 0. Ignored if the pattern fixes its stage.
    pub index: u32,
    /// Number of keys to read, in tokens: the first `kv_len` of k and v, which may have room for
    /// more. `None` reads all of them.
    pub kv_len: Option<usize>,
    /// Absolute position of the first query; `None` stands for `kv_len - q_len`.
    pub q_offset: Option<usize>,
    /// How many tokens each sequence is behind the longest, to which `kv_len` and `q_offset` apply: its queries begin, and
    /// its keys end, so many tokens earlier. Empty if all are equally long; for at most
    /// [`DECODE_QUERIES`](crate::DECODE_QUERIES) queries.
    pub lags: Vec<usize>,
    /// Number of tokens from which the stages are derived, at least `kv_len`; `None` stands for
    /// `kv_len`. Set it to the final length of the sequence, so that decode and chunked prefill see
    /// the same keys as one prefill of the whole sequence.
    pub capacity: Option<usize>,
    /// Number of tokens of the prompt, for patterns with `tail`; `None` stands for `kv_len`. Set it
    /// to the length of the whole prompt where that is read in chunks.
    pub prompt: Option<usize>,
    /// Factor on the logits; `None` stands for `1 / sqrt(D)`.
    pub scale: Option<f32>,
    /// Soft limit `c` on the logits: `c * tanh(logit / c)`, after the scale.
    pub softcap: Option<f32>,
    /// Attention sinks: for each q head one more logit, which takes part in the softmax without a
    /// value.
    pub sinks: Option<Vec<f32>>,
    /// Counts the launches of this call, by kernel.
    pub counts: Counts,
}

/// Attention by the pattern of `plan`: q [B, Hq, q_len, D], k [B, Hkv, kv_len, D],
/// v [B, Hkv, kv_len, Dv] → o [B, Hq, q_len, Dv].
///
/// Some strided inputs are copied first; [the crate](crate) lists them.
///
/// # Errors
/// [`OperationError`] when the inputs do not fit together or there is no kernel for them.
pub fn attention<B: AttentionBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    plan: &Plan,
    call: &Call,
) -> Result<Tensor<B, 4>, OperationError> {
    attention_with_lse(q, k, v, plan, call).map(|(o, _)| o)
}

/// [`attention`] that also returns the log-sum-exp of the logits, [B, Hq, q_len] in f32: natural
/// log, -inf where a query sees no key.
///
/// # Errors
/// As [`attention`].
pub fn attention_with_lse<B: AttentionBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    plan: &Plan,
    call: &Call,
) -> Result<(Tensor<B, 4>, Tensor<B, 3>), OperationError> {
    let means = match plan.routing() {
        None => None,
        Some(Routing { pool, .. }) => {
            let ([batch, heads, room, dim], pool) = (k.dims(), pool as usize);
            let pools = call.kv_len.unwrap_or(room).min(room) / pool;
            // At least one, since devices take no buffer without memory.
            let sizes = [batch, heads, pools.max(1), dim];
            let none = Tensor::empty(sizes, (&k.device(), DType::F32));
            Some(pooled(&k, none, pool, 0..pools)?)
        }
    };
    attend(q, (k, Values::Own(v)), means, plan, call)
}

/// The values of keys.
pub(crate) enum Values<B: Backend> {
    /// A tensor of their own.
    Own(Tensor<B, 4>),
    /// So many of the first elements of each key.
    InKeys(usize),
}

/// The means, of which those numbered `pools` are updated from the keys k [B, Hkv, room, D].
pub(crate) fn pooled<B: AttentionBackend>(
    k: &Tensor<B, 4>,
    means: Tensor<B, 4>,
    tokens: usize,
    pools: Range<usize>,
) -> Result<Tensor<B, 4>, OperationError> {
    let operation = LayerOperation::Pool(Pool { tokens, pools });
    let inputs = [k.clone(), means].map(|x| x.into_primitive().tensor());
    // Moved, so that the means can be updated in place.
    let outputs = run::<B>(&operation.into(), inputs.into_iter().collect())?;
    let mut outputs = outputs.into_iter().map(TensorPrimitive::Float);
    Ok(Tensor::from_primitive(
        outputs.next().expect("pool has one output"),
    ))
}

/// [`attention_with_lse`] with means of the keys, if the pattern chooses by them.
pub(crate) fn attend<B: AttentionBackend>(
    q: Tensor<B, 4>,
    (k, values): (Tensor<B, 4>, Values<B>),
    means: Option<Tensor<B, 4>>,
    plan: &Plan,
    call: &Call,
) -> Result<(Tensor<B, 4>, Tensor<B, 3>), OperationError> {
    let [_, _, q_len, head_dim] = q.dims();
    let kv_len = call.kv_len.unwrap_or(k.dims()[2]);
    let (v, v_in_k) = match values {
        Values::Own(v) => (Some(v), None),
        Values::InKeys(length) => (None, Some(length)),
    };
    let inputs = [Some(q), Some(k), v, means].into_iter().flatten();
    let before = || {
        let wrong = || argument(format!("{q_len} queries are more than the {kv_len} keys"));
        kv_len.checked_sub(q_len).ok_or_else(wrong)
    };
    if plan.sparsity().pattern.is_by_layer() {
        let what = "the pattern differs by layer; give `plan.of_layer(layer)`, with the layer's index in the model";
        return Err(argument(what.into()));
    }
    let attend = Attend {
        plan: plan.clone(),
        index: plan.sparsity().index(call.index, call.index),
        q_offset: call.q_offset.map_or_else(before, Ok)?,
        kv_len,
        lags: call.lags.clone(),
        capacity: call.capacity.unwrap_or(kv_len),
        v_in_k,
        prompt: call.prompt.unwrap_or(kv_len),
        scale: call.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
        softcap: call.softcap,
        sinks: call.sinks.clone(),
        counts: call.counts.clone(),
    };
    let inputs = inputs.map(|x| x.into_primitive().tensor());
    let outputs = run::<B>(&Operation::Attend(attend), inputs.collect())?;
    let mut outputs = outputs.into_iter().map(TensorPrimitive::Float);
    let (o, lse) = (outputs.next(), outputs.next());
    let lost = "attend has two outputs";
    Ok((
        Tensor::from_primitive(o.expect(lost)),
        Tensor::from_primitive(lse.expect(lost)),
    ))
}

/// Sizes of an [`Attention`] module.
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Elements of a token's row.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Whether the projections have biases.
    #[config(default = true)]
    pub bias: bool,
}

/// Self-attention by a pattern, with its four projections: replaces Burn's `MultiHeadAttention` in
/// a causal model.
///
/// The plan's pattern decides which keys a query sees; masks are not supported. Sequences padded at
/// their end need no mask under a causal pattern, because no token sees a later one.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// [d_model, Hq * D].
    pub query: Linear<B>,
    /// [d_model, Hkv * D].
    pub key: Linear<B>,
    /// [d_model, Hkv * D].
    pub value: Linear<B>,
    /// [Hq * D, d_model].
    pub output: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    quiet_softmax: bool,
    /// The logit that the replaced module gave to masked keys.
    min_float: f64,
    /// Picks the stage of the butterfly network: the layer's position among the replaced layers.
    pub index: u32,
    #[module(skip)]
    plan: Plan,
}

/// The largest `min_float` that is accepted as a mask. In f32 a softmax weight underflows to 0 once
/// its logit is 104 below the largest one; this bound leaves real logits ample room above that.
const MASKED: f64 = -1e3;

impl AttentionConfig {
    /// A module with freshly initialised weights; `index` is the position of the layer among the
    /// replaced layers, from 0.
    pub fn init<B: Backend>(&self, plan: Plan, index: u32, device: &B::Device) -> Attention<B> {
        let head_dim = self.d_model / self.n_heads.max(1);
        let linear = |from, to| {
            LinearConfig::new(from, to)
                .with_bias(self.bias)
                .init(device)
        };
        Attention {
            query: linear(self.d_model, self.n_heads * head_dim),
            key: linear(self.d_model, self.n_kv_heads * head_dim),
            value: linear(self.d_model, self.n_kv_heads * head_dim),
            output: linear(self.n_heads * head_dim, self.d_model),
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            quiet_softmax: false,
            min_float: f64::NEG_INFINITY,
            index,
            plan,
        }
    }
}

impl<B: Backend> Attention<B> {
    /// Replaces `other`: takes over its weights and attends by the pattern of `plan`.
    ///
    /// `quiet_softmax` becomes a sink of logit 0 for each head; artifacts then have to hold kernels
    /// with sinks. Dropout is left out: it acts only in training, which fails with
    /// [`OperationError::Gradients`]. With a `min_float` above -1000 the replaced module could give
    /// masked keys weight, so [`Attention::forward`] refuses it.
    pub fn replace(other: MultiHeadAttention<B>, plan: Plan, index: u32) -> Self {
        Self {
            n_heads: other.n_heads,
            n_kv_heads: other.n_heads,
            quiet_softmax: other.quiet_softmax,
            min_float: other.min_float,
            query: other.query,
            key: other.key,
            value: other.value,
            output: other.output,
            index,
            plan,
        }
    }
}

impl<B: AttentionBackend> Attention<B> {
    /// x [B, T, d_model] → [B, T, d_model].
    ///
    /// # Errors
    /// As [`attention`]; [`OperationError::Argument`] if a projection's width is not a multiple of
    /// its heads, a projection does not fit the rows, or the replaced module's `min_float` is too
    /// large to mask.
    pub fn forward(&self, x: Tensor<B, 3>) -> Result<Tensor<B, 3>, OperationError> {
        if self.min_float > MASKED || self.min_float.is_nan() {
            return Err(argument(format!(
                "the replaced module's min_float of {} leaves masked keys weight, which a pattern does not; set it to -1e4 or below before replacing",
                self.min_float
            )));
        }
        let call = Call {
            index: self.index,
            sinks: self.quiet_softmax.then(|| vec![0.0; self.n_heads]),
            ..Call::default()
        };
        let o = attention(
            heads(&self.query, "query", self.n_heads, &x)?,
            heads(&self.key, "key", self.n_kv_heads, &x)?,
            heads(&self.value, "value", self.n_kv_heads, &x)?,
            &self.plan,
            &call,
        )?;
        let rows = o.swap_dims(1, 2).flatten(2, 3);
        Ok(fits(&self.output, "output", &rows)?.forward(rows))
    }
}

/// Projects x and splits the result into heads: [B, T, n] → [B, heads, T, D].
fn heads<B: Backend>(
    linear: &Linear<B>,
    name: &str,
    heads: usize,
    x: &Tensor<B, 3>,
) -> Result<Tensor<B, 4>, OperationError> {
    let [_, width] = linear.weight.dims();
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(argument(format!(
            "`{name}` gives {width} elements, which {heads} heads do not divide"
        )));
    }
    let [batch, tokens, _] = x.dims();
    let rows = fits(linear, name, x)?.forward(x.clone());
    let rows = rows.reshape([batch, tokens, heads, width / heads]);
    Ok(rows.swap_dims(1, 2))
}

/// The layer, if it takes rows as long as those of x.
fn fits<'a, B: Backend>(
    linear: &'a Linear<B>,
    name: &str,
    x: &Tensor<B, 3>,
) -> Result<&'a Linear<B>, OperationError> {
    let ([takes, _], [_, _, given]) = (linear.weight.dims(), x.dims());
    match takes == given {
        true => Ok(linear),
        false => Err(argument(format!(
            "`{name}` takes rows of {takes} elements, but is given {given}"
        ))),
    }
}

fn argument(what: String) -> OperationError {
    OperationError::Argument {
        operation: "attend",
        what,
    }
}
