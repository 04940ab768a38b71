//! Layers with latent attention (arXiv:2405.04434): projections to latents, the cache of these, attention
//! over them.

pub(crate) mod program;

use super::attention::call;
use super::{Projection, Weight, around, float, one, primitive};
use crate::loader::Loader;
use crate::policy::LayerPolicy;
use crate::state::{LayerState, Lengths};
use crate::{ModelError, Profile};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::ops::{Absorb, Expand, Operation, Unabsorb, Up};
use butterfly::{AttentionBackend, Call, DECODE_QUERIES, KvCache, OperationError, attention};
use butterfly_compiler::form;
use butterfly_ir::Phase;
use butterfly_ir::model::{AttentionShape, Form, ModelConfig, Part};
use program::{Program, Sizes, Step};
use std::sync::Arc;

/// Names of the weights of each head, Kᵀ and V, where checkpoints have them apart: in folders of mlx-lm, in GGUF files.
const APART: [[&str; 2]; 2] = [["embed_q", "unembed_out"], ["k_b_proj", "v_b_proj"]];

/// The programs of a model with latent attention, which its layers share.
#[derive(Debug)]
pub(crate) struct Programs {
    attention: AttentionShape,
    sizes: Sizes,
    expanded: Program,
    absorbed: Program,
}

impl Programs {
    /// Those of a model; `None` if it has another kind of attention.
    ///
    /// # Errors
    /// [`ModelError::Layer`] if a part of the layer has no step.
    pub(crate) fn of(config: &ModelConfig) -> Result<Option<Arc<Self>>, ModelError> {
        let Some(sizes) = Sizes::of(config) else {
            return Ok(None);
        };
        let of = |form| program::of(config, &sizes, form).map_err(ModelError::Layer);
        Ok(Some(Arc::new(Self {
            attention: config.attention,
            expanded: of(Form::Expanded)?,
            absorbed: of(Form::Absorbed)?,
            sizes,
        })))
    }

    /// That of a call of `tokens` tokens, after which the cache holds `kept`.
    fn of_call(&self, tokens: usize, kept: usize, policy: &LayerPolicy) -> &Program {
        let phase = match tokens <= DECODE_QUERIES {
            true => Phase::Decode,
            false => Phase::Prefill,
        };
        let pattern = &policy.plan.sparsity().pattern;
        let lengths = [tokens, kept].map(|n| n as u64);
        match form::of(&self.attention, phase, pattern, lengths) {
            Form::Expanded => &self.expanded,
            Form::Absorbed | Form::AbsorbedByHead => &self.absorbed,
        }
    }
}

/// A layer with latent attention: programs, and the weights that their steps read.
#[derive(Clone, Debug)]
pub(crate) struct LatentAttention<B: Backend> {
    /// The projections of the programs, stacked into one matrix.
    pub(crate) rows: Projection<B>,
    /// From the latent of q to its heads.
    up: Option<Projection<B>>,
    /// [heads * (nope + v), rank], as [`Up`](butterfly::ops::Up) says: not packed.
    weight: Weight<B>,
    /// Of the latent of q, if it has one, and of that of k and v.
    norms: Vec<Tensor<B, 1>>,
    output: Projection<B>,
    programs: Arc<Programs>,
    /// Element type of the cache.
    dtype: DType,
}

impl<B: AttentionBackend> LatentAttention<B> {
    /// Loads the attention whose weights begin with `at`.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        at: &str,
        programs: &Arc<Programs>,
        config: &ModelConfig,
        hidden: usize,
    ) -> Self {
        let (sizes, biases) = (programs.sizes, config.biases);
        let of_q = match sizes.q_rank {
            Some(_) => "q_a_proj",
            None => "q_proj",
        };
        let parts = |what: &str| -> Vec<(String, usize)> {
            let names = [of_q, "kv_a_proj_with_mqa"].into_iter();
            let parts = names.zip(&programs.absorbed.projections);
            let parts = parts.map(|(name, rows)| (format!("{at}.{name}.{what}"), *rows));
            parts.collect()
        };
        let rows = Projection {
            weight: loader.weight(&parts("weight"), hidden),
            bias: (biases.inputs()).then(|| loader.bias(&parts("bias"))),
        };
        let up = sizes.q_rank.map(|rank| {
            let part = (format!("{at}.q_b_proj.weight"), sizes.q_width());
            Projection::new(loader.weight(&[part], rank))
        });
        let of_q = sizes.q_rank.map(|rank| ("q_a_layernorm", rank));
        let norms = of_q.into_iter().chain([("kv_a_layernorm", sizes.up.rank)]);
        let norms =
            norms.map(|(name, rank)| loader.norm(&format!("{at}.{name}.weight"), rank, 0.0));
        let norms = norms.collect();
        let weight = loader.of_part(Part::Latents, |loader| up_weight(loader, at, sizes.up));
        let width = sizes.up.heads * sizes.up.v;
        let output = Projection {
            weight: loader.weight(&[(format!("{at}.o_proj.weight"), hidden)], width),
            bias: (biases.output()).then(|| loader.bias(&[(format!("{at}.o_proj.bias"), hidden)])),
        };
        Self {
            rows,
            up,
            weight,
            norms,
            output,
            programs: programs.clone(),
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
        let sizes = &self.programs.sizes;
        let shape = [batch, sizes.cached(), sizes.up.rank];
        let block = policy.plan.sparsity().block as usize;
        let window = policy.lookback().map(|window| window as usize);
        let options = (device, self.dtype);
        LayerState::Attention(KvCache::of_latents(shape, capacity, block, window, options))
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
        let program = (self.programs).of_call(tokens, cache.kept() + tokens, policy);
        // What one step hands to the next: the latent of q or all its heads, then heads of q or o, beside them
        // keys and values, then o in the order of tokens.
        let mut latent: Option<Tensor<B, 3>> = None;
        let mut heads: Option<Tensor<B, 4>> = None;
        let mut keys: Option<[Tensor<B, 4>; 2]> = None;
        let mut o: Option<Tensor<B, 3>> = None;
        let lost = "graphs are verified: each step comes after what it reads";
        for step in &program.steps {
            match step {
                Step::Latents(latents) => {
                    latent = profile.part::<B, _>(Part::Heads, &device, || {
                        cache.append_latents(rows.clone(), &self.norms, rotation, latents.clone())
                    })?;
                }
                Step::Up => {
                    let x = latent.take().expect(lost);
                    let up = self.up.as_ref().expect(lost);
                    let q =
                        profile.part::<B, _>(Part::Projections, &device, || up.forward(x, plan))?;
                    latent = Some(q);
                }
                Step::Absorb(absorb) => {
                    let q = latent.take().unwrap_or_else(|| rows.clone());
                    let mut inputs = vec![primitive(q)];
                    inputs.extend(self.weight.tensors.iter().cloned());
                    let rotation = rotation.filter(|_| absorb.rotated > 0);
                    inputs.extend(rotation.map(|rotation| primitive(rotation.clone())));
                    let operation = Operation::Absorb(Absorb {
                        products: policy.plan.products(),
                        ..absorb.clone()
                    });
                    heads = Some(profile.part::<B, _>(Part::Latents, &device, || {
                        one(around::<B>(operation, inputs)?)
                    })?);
                }
                Step::Rotate(rotate) => {
                    let q = latent.take().unwrap_or_else(|| rows.clone());
                    let rotation = rotation.map(|rotation| primitive(rotation.clone()));
                    let inputs = [primitive(q)].into_iter().chain(rotation).collect();
                    let operation = Operation::Rotate(rotate.clone());
                    heads = Some(profile.part::<B, _>(Part::Heads, &device, || {
                        one(around::<B>(operation, inputs)?)
                    })?);
                }
                Step::Expand(expand) => {
                    keys = Some(profile.part::<B, _>(Part::Latents, &device, || {
                        self.expanded(expand, cache, policy)
                    })?);
                }
                Step::Attend { scale } => {
                    let q = heads.take().expect(lost);
                    let call = Call {
                        kv_len: Some(cache.kept()),
                        ..call(policy, lengths, *scale)
                    };
                    let keys = keys.take();
                    heads =
                        Some(
                            profile.part::<B, _>(Part::Attention, &device, || match keys {
                                None => cache.attend(q, &policy.plan, &call),
                                Some([k, v]) => attention(q, k, v, &policy.plan, &call),
                            })?,
                        );
                }
                Step::Unabsorb(unabsorb) => {
                    let heads = heads.take().expect(lost);
                    let weight = self.weight.tensors.iter().cloned();
                    let inputs = [primitive(heads)].into_iter().chain(weight).collect();
                    let operation = Operation::Unabsorb(Unabsorb {
                        products: policy.plan.products(),
                        ..unabsorb.clone()
                    });
                    o = Some(profile.part::<B, _>(Part::Latents, &device, || {
                        one(around::<B>(operation, inputs)?)
                    })?);
                }
            }
        }
        let width = self.programs.sizes.up.heads * self.programs.sizes.up.v;
        let in_order = |heads: Tensor<B, 4>| heads.swap_dims(1, 2).reshape([batch, tokens, width]);
        let o = o.or_else(|| heads.map(in_order)).expect(lost);
        Ok(profile.part::<B, _>(Part::Projections, &device, || self.output.forward(o, plan))?)
    }

    /// Keys and values of all heads, [B, heads, room, ...] each, from the latents of all tokens in the cache.
    fn expanded(
        &self,
        expand: &Expand,
        cache: &KvCache<B>,
        policy: &LayerPolicy,
    ) -> Result<[Tensor<B, 4>; 2], OperationError> {
        let [latents, _] = cache.tensors();
        let [batch, _, room, width] = latents.dims();
        let latents = primitive(latents.reshape([batch, room, width]));
        let operation = Operation::Expand(Expand {
            tokens: cache.kept(),
            products: policy.plan.products(),
            ..expand.clone()
        });
        let weight = self.weight.tensors.iter().cloned();
        let inputs = [latents].into_iter().chain(weight).collect();
        let mut outputs = around::<B>(operation, inputs)?.into_iter().map(float);
        let mut next = || outputs.next().expect("two outputs");
        Ok([next(), next()])
    }
}

/// The weight that makes keys and values of latents, from one matrix or from those of each head. It is small, and the
/// operations that read it take floats: what is packed is unpacked here, once.
fn up_weight<B: AttentionBackend>(loader: &mut Loader<'_, B>, at: &str, up: Up) -> Weight<B> {
    let whole = format!("{at}.kv_b_proj.weight");
    let apart = APART.map(|names| names.map(|name| format!("{at}.{name}.weight")));
    let apart = (apart.iter()).find(|names| names.iter().any(|name| loader.has(name)));
    match apart {
        Some([keys, values]) if !loader.has(&whole) => loader.of_heads([keys, values], up),
        Some(_) | None => loader.unpacked(&whole, [up.rows(), up.rank]),
    }
}
