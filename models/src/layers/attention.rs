//! Softmax attention layers: projections, norms, rotation, cache, attention, gate.

use super::program::{Program, Step};
use super::{Projection, around, one, primitive};
use crate::loader::Loader;
use crate::policy::LayerPolicy;
use crate::state::{LayerState, Lengths};
use crate::{ModelError, Profile};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::ops::Operation;
use butterfly::{AttentionBackend, Call, KvCache};
use butterfly_compiler::family;
use butterfly_ir::model::{ModelConfig, Part};

/// A softmax attention layer: a program, and the weights that its steps read.
#[derive(Clone, Debug)]
pub(crate) struct Attention<B: Backend> {
    /// The projections of the program, stacked into one matrix.
    pub(crate) rows: Projection<B>,
    pub(crate) output: Projection<B>,
    pub(crate) norms: Option<[Tensor<B, 1>; 2]>,
    /// The logit of each q head's sink, where there are any.
    pub(crate) sinks: Option<Vec<f32>>,
    pub(crate) softcap: Option<f32>,
    pub(crate) program: Program,
    /// Element type of the cache.
    pub(crate) dtype: DType,
}

impl<B: AttentionBackend> Attention<B> {
    /// Loads the attention whose weights begin with `at`, by the names that the family of the model
    /// has for its projections.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        at: &str,
        program: &Program,
        config: &ModelConfig,
        hidden: usize,
    ) -> Self {
        let biases = config.biases;
        let names = family::of(config.family).projections;
        let parts = |what: &str| {
            let parts = names
                .qkv
                .iter()
                .zip(shares(&program.projections, names.qkv));
            let parts = parts.map(|(name, rows)| (format!("{at}.{name}.{what}"), rows));
            parts.collect::<Vec<_>>()
        };
        let weight = loader.weight(&parts("weight"), hidden);
        let width = program.q_heads * program.head_dim;
        let o = loader.weight(&[(format!("{at}.o_proj.weight"), hidden)], width);
        let rows = Projection {
            weight,
            bias: (biases.inputs()).then(|| loader.bias(&parts("bias"))),
        };
        let output = Projection {
            weight: o,
            bias: (biases.output()).then(|| loader.bias(&[(format!("{at}.o_proj.bias"), hidden)])),
        };
        let norms = program.norm.map(|plus| {
            ["q_norm", "k_norm"]
                .map(|name| loader.norm(&format!("{at}.{name}.weight"), program.head_dim, plus))
        });
        Self {
            rows,
            output,
            norms,
            sinks: (config.sinks)
                .then(|| loader.vector(&format!("{at}.sinks"), &[program.q_heads], 0.0)),
            softcap: config.softcap.map(|cap| cap as f32),
            program: program.clone(),
            dtype: loader.dtype(),
        }
    }

    /// An empty cache for `capacity` tokens, or those that the layer's queries see at a time.
    pub(crate) fn cache(
        &self,
        batch: usize,
        capacity: usize,
        policy: &LayerPolicy,
        device: &B::Device,
    ) -> LayerState<B> {
        let shape = [batch, self.program.kv_heads, self.program.head_dim];
        let options = (device, self.dtype);
        let block = policy.plan.sparsity().block as usize;
        LayerState::Attention(match policy.lookback() {
            None => KvCache::new(shape, capacity, block, options),
            Some(window) => KvCache::with_window(shape, capacity, block, window as usize, options),
        })
    }

    /// Projections [B, T, ..] → [B, T, H].
    pub(crate) fn forward(
        &self,
        rows: Tensor<B, 3>,
        cache: &mut KvCache<B>,
        rotation: Option<&Tensor<B, 2>>,
        lengths: Lengths,
        policy: &LayerPolicy,
        profile: &Profile,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let [batch, tokens, _] = rows.dims();
        let device = rows.device();
        let plan = Some(&policy.plan);
        let width = self.program.q_heads * self.program.head_dim;
        // The value that one step hands to the next: q, then o.
        let (mut q, mut o): (Option<Tensor<B, 4>>, Option<Tensor<B, 3>>) = (None, None);
        let lost = "graphs are verified: each step comes after what it reads";
        for step in &self.program.steps {
            match step {
                Step::Heads(append) => {
                    let inputs = [rows.clone(), rows.clone(), rows.clone()];
                    let heads = profile.part::<B, _>(Part::Heads, &device, || {
                        cache.append(inputs, self.norms.as_ref(), rotation, append.clone())
                    })?;
                    q = Some(heads);
                }
                Step::Attend { scale } => {
                    let q = q.take().expect(lost);
                    let call = Call {
                        softcap: self.softcap,
                        sinks: self.sinks.clone(),
                        ..call(policy, lengths, *scale)
                    };
                    let heads = profile.part::<B, _>(Part::Attention, &device, || {
                        cache.attend(q, &policy.plan, &call)
                    })?;
                    o = Some(heads.swap_dims(1, 2).reshape([batch, tokens, width]));
                }
                Step::Gate(gate) => {
                    let operation = Operation::GateOutput(*gate);
                    let inputs = vec![primitive(o.take().expect(lost)), primitive(rows.clone())];
                    o = Some(profile.part::<B, _>(Part::Gates, &device, || {
                        one(around::<B>(operation, inputs)?)
                    })?);
                }
            }
        }
        let o = o.expect(lost);
        Ok(profile.part::<B, _>(Part::Projections, &device, || self.output.forward(o, plan))?)
    }
}

/// A call of attention over a cache, with this factor on the logits.
pub(super) fn call(policy: &LayerPolicy, lengths: Lengths, scale: f32) -> Call {
    Call {
        index: policy.index,
        capacity: Some(lengths.capacity),
        prompt: Some(lengths.prompt),
        scale: Some(scale),
        counts: policy.counts.clone(),
        ..Call::default()
    }
}

/// The rows of each stored matrix: those of each projection or, if all are stored as one matrix,
/// their sum.
fn shares(projections: &[usize], names: &[&str]) -> Vec<usize> {
    match names {
        [_] => vec![projections.iter().sum()],
        _ => projections.to_vec(),
    }
}
