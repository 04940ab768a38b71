//! Llama, Mistral, Phi-3 and Qwen: each layer is a norm, softmax or linear attention, a norm, and a gated
//! feed-forward layer.

use crate::ModelError;
use crate::layers::{self, Attention, GatedMlp, LinearAttention, Weight, add_norm, norm};
use crate::loader::Loader;
use crate::policy::Policy;
use crate::rotation::Frequencies;
use crate::state::{LayerState, State};
use crate::stream::Stream;
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::AttentionBackend;
use butterfly_compiler::family;
use butterfly_ir::model::{LayerKind, ModelConfig, ModelSizes};
use std::ops::Range;

/// The model from the embedding to the last norm; the output projection is not part of it.
#[derive(Clone, Debug)]
pub(crate) struct Decoder<B: Backend> {
    embedding: Weight<B>,
    layers: Vec<Layer<B>>,
    norm: Tensor<B, 1>,
    dtype: DType,
    epsilon: f32,
    rotation: Option<Frequencies>,
}

#[derive(Clone, Debug)]
struct Layer<B: Backend> {
    before: Tensor<B, 1>,
    mixer: Mixer<B>,
    after: Tensor<B, 1>,
    mlp: GatedMlp<B>,
}

#[derive(Clone, Debug)]
enum Mixer<B: Backend> {
    Attention(Attention<B>),
    Linear(LinearAttention<B>),
}

impl<B: AttentionBackend> Decoder<B> {
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &ModelConfig,
        sizes: &ModelSizes,
    ) -> Result<Self, ModelError> {
        let program = layers::program(config)?;
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
            let mixer = match (kind, &sizes.linear) {
                (LayerKind::LinearAttention, Some(shape)) => {
                    let at = format!("{at}.linear_attn");
                    Mixer::Linear(LinearAttention::load(loader, &at, shape, hidden, epsilon))
                }
                _ => {
                    let at = format!("{at}.self_attn");
                    Mixer::Attention(Attention::load(loader, &at, &program, config, hidden))
                }
            };
            let after = format!("{at}.post_attention_layernorm.weight");
            Layer {
                before,
                mixer,
                after: loader.norm(&after, hidden, plus),
                mlp: GatedMlp::load(
                    loader,
                    &format!("{at}.mlp"),
                    family.projections.gate_up,
                    sizes,
                ),
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
            Mixer::Linear(linear) => Some(linear.state(batch, device)),
        });
        states.collect()
    }

    /// Tokens [B, T] → the residual stream before the first layer.
    pub(crate) fn embed(&self, ids: Tensor<B, 2, Int>) -> Result<Stream<B>, ModelError> {
        // The residual stream is f32, whatever element type the layers compute in.
        Ok(Stream {
            x: self.embedding.rows(ids, DType::F32)?.cast(DType::F32),
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
        let positions = state.position..state.position + tokens;
        let rotation = self.rotation.as_ref().map(|rotation| {
            let table = rotation.table(lengths.capacity, positions);
            let width = table.len() / tokens;
            Tensor::from_data(
                TensorData::new(table, [tokens, width]),
                (&device, DType::F32),
            )
        });
        for i in layers {
            let layer = &self.layers[i];
            let normed;
            (x, normed) = profile.part::<B, _>("norms", &device, || {
                self.join(x, pending.take(), &layer.before)
            })?;
            let mixed = match (&layer.mixer, &mut state.layers[i], &policy.layers[i]) {
                (Mixer::Attention(attention), LayerState::Attention(cache), Some(policy)) => {
                    attention.forward(
                        normed,
                        cache,
                        rotation.as_ref(),
                        lengths,
                        policy,
                        &profile,
                    )?
                }
                (Mixer::Linear(linear), LayerState::Linear(state), _) => {
                    linear.forward(normed, state, policy.plan(), &profile)?
                }
                _ => unreachable!("state and policy were made for this model"),
            };
            let normed;
            (x, normed) = profile.part::<B, _>("norms", &device, || {
                add_norm(x, mixed, &layer.after, self.epsilon)
            })?;
            pending = Some(layer.mlp.forward(normed, policy.plan(), &profile)?);
        }
        Ok(Stream { x, pending })
    }

    /// The residual stream after the last layer → hidden states after the last norm [B, T, H].
    pub(crate) fn finish(&self, stream: Stream<B>) -> Result<Tensor<B, 3>, ModelError> {
        Ok(self.join(stream.x, stream.pending, &self.norm)?.1)
    }

    /// Adds the pending output, if any, to the residual stream x; returns the sum and its norm.
    fn join(
        &self,
        x: Tensor<B, 3>,
        pending: Option<Tensor<B, 3>>,
        weight: &Tensor<B, 1>,
    ) -> Result<(Tensor<B, 3>, Tensor<B, 3>), ModelError> {
        Ok(match pending {
            None => (x.clone(), norm(x, weight, self.epsilon, self.dtype)?),
            Some(y) => add_norm(x, y, weight, self.epsilon)?,
        })
    }
}
