//! Attention for users of Burn: as a function, and as a module that replaces another.

use crate::{Attend, AttentionBackend, Counts, Operation, OperationError, Plan, run};
use burn::module::Module;
use burn::nn::attention::MultiHeadAttention;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;

/// What a call of [`attention`] takes beside tensors; the default is that of training and
/// prefill: as many queries as keys, or the last of them, stage 0.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Picks the stage of the butterfly network: the layer's position among those replaced. A
    /// pattern that fixes the stage keeps it.
    pub index: u32,
    /// Keys that count; all that k has room for where `None`.
    pub kv_len: Option<usize>,
    /// Absolute position of the first query; `kv_len - q_len` where `None`.
    pub q_offset: Option<usize>,
    /// Tokens that fix the stages, at least `kv_len`; `kv_len` where `None`. Set it to the
    /// longest sequence for decode and chunked prefill to see what one prefill sees.
    pub capacity: Option<usize>,
    /// Factor on the logits; `1 / sqrt(D)` where `None`.
    pub scale: Option<f32>,
    /// Bends logits into `-c..c`.
    pub softcap: Option<f32>,
    /// One more logit for each q head.
    pub sinks: Option<Vec<f32>>,
    /// Where launches are counted.
    pub counts: Counts,
}

/// Attention by the pattern of `plan`: q [B, Hq, q_len, D], k [B, Hkv, kv_len, D],
/// v [B, Hkv, kv_len, Dv] → o [B, Hq, q_len, Dv].
///
/// Some strided inputs are copied, as [the crate](crate) says.
///
/// # Errors
/// [`OperationError`] when the inputs do not fit or there is no kernel.
pub fn attention<B: AttentionBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    plan: &Plan,
    call: &Call,
) -> Result<Tensor<B, 4>, OperationError> {
    attention_with_lse(q, k, v, plan, call).map(|(o, _)| o)
}

/// [`attention`], and the natural log-sum-exp of the logits [B, Hq, q_len] in f32: -inf where
/// a query sees nothing.
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
    let [_, _, q_len, head_dim] = q.dims();
    let kv_len = call.kv_len.unwrap_or(k.dims()[2]);
    let before = || {
        let wrong = || argument(format!("{q_len} queries are more than the {kv_len} keys"));
        kv_len.checked_sub(q_len).ok_or_else(wrong)
    };
    let attend = Attend {
        plan: plan.clone(),
        index: plan.sparsity().index(call.index, call.index),
        q_offset: call.q_offset.map_or_else(before, Ok)?,
        kv_len,
        capacity: call.capacity.unwrap_or(kv_len),
        scale: call.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
        softcap: call.softcap,
        sinks: call.sinks.clone(),
        counts: call.counts.clone(),
    };
    let primitive = |x: Tensor<B, 4>| x.into_primitive().tensor();
    let inputs = vec![primitive(q), primitive(k), primitive(v)];
    let outputs = run::<B>(&Operation::Attend(attend), inputs)?;
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
    /// Elements of a token.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Whether the projections have biases.
    #[config(default = true)]
    pub bias: bool,
}

/// Self-attention by a pattern, with its four projections: the place of Burn's
/// `MultiHeadAttention` in a causal model.
///
/// What a query sees is the plan's to say: there are no masks. Under a causal pattern texts padded
/// at their ends need none, because no token sees what follows it.
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
    /// The logit of what is masked, in the module that was replaced.
    min_float: f64,
    /// Picks the stage of the butterfly network.
    pub index: u32,
    #[module(skip)]
    plan: Plan,
}

/// The largest logit of a masked key that certainly has no weight beside those of other keys: in
/// f32 weights end 104 below the largest logit.
const MASKED: f64 = -1e3;

impl AttentionConfig {
    /// Fresh weights; `index` is the position of the layer among those replaced.
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
    /// The place of `other`, with its weights; causal, and by the pattern of `plan`.
    ///
    /// `quiet_softmax` becomes a sink of logit 0 for each head, for which artifacts need kernels
    /// with sinks. Dropout acts in training alone, which [`OperationError::Gradients`] refuses.
    /// A `min_float` above -1000 would give masked keys weight: [`Attention::forward`] refuses it.
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
    /// As [`attention`]; [`OperationError::Argument`] where projections do not divide into heads, or
    /// the module that was replaced has a `min_float` that masks nothing.
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

/// [B, T, n] → [B, heads, T, D].
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

/// The layer, if it takes rows like those of x.
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
