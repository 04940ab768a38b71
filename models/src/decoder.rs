//! Every family but GPT-2: each layer is a norm, softmax, latent or linear attention, a norm, and a gated
//! feed-forward layer or experts.

use crate::layers::{self, Attention, Experts, GatedMlp, LatentAttention, LatentPrograms};
use crate::layers::{LinearAttention, Projection, Unnormed, Weight, norm};
use crate::loader::Loader;
use crate::policy::Policy;
use crate::rotation::Frequencies;
use crate::state::{LayerState, State};
use crate::stream::{Pending, Stream};
use crate::{ModelError, Profile};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::{AttentionBackend, OperationError, Plan};
use butterfly_compiler::family;
use butterfly_ir::model::{LayerKind, ModelConfig, ModelSizes, Part};
use std::ops::Range;

/// Of a few tokens, the first layers are started one by one, so that the device is busy while the others are launched;
/// how few, and how many layers.
const FEW: usize = 16;
const STARTED: usize = 4;

/// The model from the embedding to the last norm; the output projection is not part of it.
#[derive(Clone, Debug)]
pub(crate) struct Decoder<B: Backend> {
    embedding: Weight<B>,
    layers: Vec<Layer<B>>,
    norm: Tensor<B, 1>,
    dtype: DType,
    epsilon: f32,
    rotation: Option<Frequencies>,
    /// That of layers with a window, where it is another.
    window_rotation: Option<Frequencies>,
    windows: Vec<bool>,
    /// Factor on embeddings.
    scale: f32,
}

#[derive(Clone, Debug)]
struct Layer<B: Backend> {
    before: Tensor<B, 1>,
    mixer: Mixer<B>,
    after: Tensor<B, 1>,
    feed: FeedForward<B>,
    /// Norms of what mixer and feed-forward layer give, where the model has them.
    outputs: Option<[Tensor<B, 1>; 2]>,
}

#[derive(Clone, Debug)]
enum Mixer<B: Backend> {
    Attention(Attention<B>),
    Latent(LatentAttention<B>),
    Linear(LinearAttention<B>),
}

impl<B: Backend> Mixer<B> {
    /// The projections with which it begins.
    fn rows(&self) -> &Projection<B> {
        match self {
            Self::Attention(attention) => &attention.rows,
            Self::Latent(latent) => &latent.rows,
            Self::Linear(linear) => &linear.rows,
        }
    }
}

#[derive(Clone, Debug)]
enum FeedForward<B: Backend> {
    Gated(GatedMlp<B>),
    Experts(Box<Experts<B>>),
}

impl<B: AttentionBackend> FeedForward<B> {
    fn load(loader: &mut Loader<'_, B>, layer: usize, names: &[&str], sizes: &ModelSizes) -> Self {
        let at = format!("layers.{layer}.mlp");
        match &sizes.experts {
            Some(shape) if !shape.dense.contains(&(layer as u32)) => {
                Self::Experts(Box::new(Experts::load(loader, (layer, &at), shape, sizes)))
            }
            _ => {
                let activation = layers::activation(sizes.gate);
                let sizes = [sizes.hidden, sizes.intermediate].map(|n| n as usize);
                Self::Gated(GatedMlp::load(loader, &at, names, sizes, activation))
            }
        }
    }

    fn forward(
        &self,
        x: Unnormed<'_, B>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<(Tensor<B, 3>, Pending<B>), OperationError> {
        match self {
            Self::Gated(mlp) => {
                let (x, y) = mlp.forward_normed(x, plan, profile)?;
                Ok((x, Pending::Rows(y)))
            }
            Self::Experts(experts) => experts.forward(x, plan, profile),
        }
    }
}

impl<B: AttentionBackend> Decoder<B> {
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &ModelConfig,
        sizes: &ModelSizes,
    ) -> Result<Self, ModelError> {
        let latent = LatentPrograms::of(config)?;
        let grouped = match latent {
            Some(_) => None,
            None => Some(layers::program(config)?),
        };
        let hidden = sizes.hidden as usize;
        let epsilon = config.norm_eps as f32;
        let family = family::of(config.family);
        let plus = match family.zero_centred {
            true => 1.0,
            false => 0.0,
        };
        let embedding = loader.embedding(sizes);
        let layers = config.layers.iter().enumerate().map(|(i, kind)| {
            let at = format!("layers.{i}");
            let before = loader.norm(&format!("{at}.input_layernorm.weight"), hidden, plus);
            let mixer = match (kind, &sizes.linear, &latent, &grouped) {
                (LayerKind::LinearAttention, Some(shape), _, _) => {
                    let at = format!("{at}.linear_attn");
                    Mixer::Linear(LinearAttention::load(loader, &at, shape, hidden, epsilon))
                }
                (_, _, Some(programs), _) => {
                    let at = format!("{at}.self_attn");
                    let layer = LatentAttention::load(loader, &at, programs, config, hidden);
                    Mixer::Latent(layer)
                }
                (_, _, None, Some(program)) => {
                    let at = format!("{at}.self_attn");
                    Mixer::Attention(Attention::load(loader, &at, program, config, hidden))
                }
                (_, _, None, None) => unreachable!("attention is latent or grouped"),
            };
            let mut of = |name: &str| loader.norm(&format!("{at}.{name}.weight"), hidden, plus);
            let (after, outputs) = match family.norms_after {
                false => (of("post_attention_layernorm"), None),
                true => {
                    let outputs = ["post_attention_layernorm", "post_feedforward_layernorm"];
                    (of("pre_feedforward_layernorm"), Some(outputs.map(of)))
                }
            };
            Layer {
                before,
                mixer,
                after,
                outputs,
                feed: FeedForward::load(loader, i, family.projections.gate_up, sizes),
            }
        });
        let layers = layers.collect();
        Ok(Self {
            embedding,
            layers,
            norm: loader.norm("norm.weight", hidden, plus),
            dtype: loader.dtype(),
            epsilon,
            rotation: config.rope.as_ref().map(Frequencies::new),
            window_rotation: config.window_rope.as_ref().map(Frequencies::new),
            windows: (config.layers.iter())
                .map(|kind| matches!(kind, LayerKind::WindowAttention { .. }))
                .collect(),
            scale: match family.scaled_embedding {
                true => (hidden as f32).sqrt(),
                false => 1.0,
            },
        })
    }

    pub(crate) fn embedding(&self) -> &Weight<B> {
        &self.embedding
    }

    pub(crate) fn state(
        &self,
        batch: usize,
        room: usize,
        policy: &Policy,
        device: &B::Device,
    ) -> Vec<LayerState<B>> {
        let layers = self.layers.iter().zip(&policy.layers);
        let states = layers.filter_map(|(layer, policy)| match &layer.mixer {
            Mixer::Attention(attention) => {
                Some(attention.cache(batch, room, policy.as_ref()?, device))
            }
            Mixer::Latent(latent) => Some(latent.cache(batch, room, policy.as_ref()?, device)),
            Mixer::Linear(linear) => Some(linear.state(batch, device)),
        });
        states.collect()
    }

    /// Tokens [B, T] → the residual stream before the first layer.
    pub(crate) fn embed(&self, ids: Tensor<B, 2, Int>) -> Result<Stream<B>, ModelError> {
        // The residual stream is f32, whatever element type the layers compute in.
        let x = self.embedding.rows(ids, DType::F32)?.cast(DType::F32);
        Ok(Stream {
            x: match self.scale == 1.0 {
                true => x,
                false => x * self.scale,
            },
            pending: None,
        })
    }

    /// The residual stream before the first of `layers` → that after the last of them.
    pub(crate) fn through(
        &self,
        layers: Range<usize>,
        Stream { mut x, mut pending }: Stream<B>,
        state: &mut State<B>,
        policy: &Policy,
    ) -> Result<Stream<B>, ModelError> {
        let [_, tokens, _] = x.dims();
        let device = x.device();
        let lengths = state.lengths(tokens)?;
        let profile = state.profile.clone();
        // Of each sequence, where they are not the same.
        let first: Vec<usize> = match state.active_lags() {
            [] => vec![state.position],
            lags => lags.iter().map(|lag| state.position - lag).collect(),
        };
        let rotation = |rotation: &Frequencies| -> Tensor<B, 2> {
            let of = |first: &usize| rotation.table(lengths.capacity, *first..first + tokens);
            let table: Vec<f32> = first.iter().flat_map(of).collect();
            let rows = first.len() * tokens;
            let width = table.len() / rows;
            Tensor::from_data(TensorData::new(table, [rows, width]), (&device, DType::F32))
        };
        let [usual, windows] = profile.part::<B, _>(Part::Heads, &device, || {
            [&self.rotation, &self.window_rotation].map(|of| of.as_ref().map(rotation))
        });
        for i in layers {
            let layer = &self.layers[i];
            let projection = layer.mixer.rows();
            let plan = match &policy.layers[i] {
                Some(policy) => Some(&policy.plan),
                None => policy.plan(),
            };
            let before = self.unnormed(x, pending.take(), &layer.before);
            let rows;
            (x, rows) = before.project(projection, plan, &profile)?;
            let mixed = match (&layer.mixer, &mut state.layers[i], &policy.layers[i]) {
                (Mixer::Attention(attention), LayerState::Attention(cache), Some(policy)) => {
                    let rotation = match &windows {
                        Some(rotation) if self.windows[i] => Some(rotation),
                        _ => usual.as_ref(),
                    };
                    attention.forward(rows, cache, rotation, lengths, policy, &profile)?
                }
                (Mixer::Latent(latent), LayerState::Attention(cache), Some(policy)) => {
                    let rotation = usual.as_ref();
                    latent.forward(rows, cache, rotation, lengths, policy, &profile)?
                }
                (Mixer::Linear(linear), LayerState::Linear(state), _) => {
                    linear.forward(rows, state, plan, &profile)?
                }
                _ => unreachable!("state and policy were made for this model"),
            };
            let mixed = self.output(Pending::Rows(mixed), layer, 0, &profile)?;
            let after = self.unnormed(x, Some(mixed), &layer.after);
            let fed;
            (x, fed) = layer.feed.forward(after, policy.plan(), &profile)?;
            pending = Some(self.output(fed, layer, 1, &profile)?);
            if tokens <= FEW && i < STARTED {
                B::start(&device);
            }
        }
        Ok(Stream { x, pending })
    }

    /// The residual stream after the last layer → hidden states after the last norm [B, T, H].
    pub(crate) fn finish(&self, stream: Stream<B>) -> Result<Tensor<B, 3>, ModelError> {
        Ok(self
            .unnormed(stream.x, stream.pending, &self.norm)
            .normed()?
            .1)
    }

    /// The norm of what a layer's mixer (0) or feed-forward layer (1) gives, where the model has it.
    fn output(
        &self,
        y: Pending<B>,
        layer: &Layer<B>,
        which: usize,
        profile: &Profile,
    ) -> Result<Pending<B>, OperationError> {
        let Some(norms) = &layer.outputs else {
            return Ok(y);
        };
        let y = y.rows()?;
        let device = y.device();
        let normed = profile.part::<B, _>(Part::Norms, &device, || {
            norm(y.cast(DType::F32), &norms[which], self.epsilon, self.dtype)
        })?;
        Ok(Pending::Rows(normed))
    }

    /// The residual stream x before a norm with this weight.
    fn unnormed<'a>(
        &self,
        x: Tensor<B, 3>,
        pending: Option<Pending<B>>,
        weight: &'a Tensor<B, 1>,
    ) -> Unnormed<'a, B> {
        Unnormed {
            stream: Stream { x, pending },
            weight,
            epsilon: self.epsilon,
            dtype: self.dtype,
        }
    }
}
