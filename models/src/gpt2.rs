//! GPT-2: learned positions, layer norms with biases, gelu.

use crate::ModelError;
use crate::layers::{self, Attention, Projection, Weight};
use crate::loader::Loader;
use crate::policy::Policy;
use crate::state::{LayerState, State};
use crate::stream::Stream;
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::AttentionBackend;
use butterfly_ir::model::{ModelConfig, ModelSizes, Part};
use std::ops::Range;

#[derive(Clone, Debug)]
pub(crate) struct Gpt2<B: Backend> {
    embedding: Weight<B>,
    positions: Tensor<B, 2>,
    layers: Vec<Layer<B>>,
    norm: LayerNorm<B>,
    dtype: DType,
}

#[derive(Clone, Debug)]
struct Layer<B: Backend> {
    before: LayerNorm<B>,
    attention: Attention<B>,
    after: LayerNorm<B>,
    up: Projection<B>,
    down: Projection<B>,
}

#[derive(Clone, Debug)]
struct LayerNorm<B: Backend> {
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    epsilon: f32,
}

impl<B: AttentionBackend> LayerNorm<B> {
    fn load(loader: &mut Loader<'_, B>, at: &str, hidden: usize, epsilon: f32) -> Self {
        Self {
            weight: loader.norm(&format!("{at}.weight"), hidden, 0.0),
            bias: loader.rounded(&[(format!("{at}.bias"), hidden)], DType::F32),
            epsilon,
        }
    }

    /// Layer norm of the residual stream; the result is in `dtype`.
    fn forward(&self, x: Tensor<B, 3>, dtype: DType) -> Tensor<B, 3> {
        let x = x.clone() - x.mean_dim(2);
        let variance = x.clone().powi_scalar(2).mean_dim(2);
        let x = x / (variance + self.epsilon).sqrt();
        let weight = self.weight.clone().unsqueeze::<3>();
        (x * weight + self.bias.clone().unsqueeze::<3>()).cast(dtype)
    }
}

/// The tanh approximation of gelu, with which GPT-2 was trained.
fn gelu<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let inner = x.clone() + x.clone().powi_scalar(3) * 0.044_715;
    let root = (2.0 / std::f64::consts::PI).sqrt();
    x * ((inner * root).tanh() + 1.0) * 0.5
}

impl<B: AttentionBackend> Gpt2<B> {
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        config: &ModelConfig,
        sizes: &ModelSizes,
    ) -> Result<Self, ModelError> {
        let (hidden, wide) = (sizes.hidden as usize, sizes.intermediate as usize);
        let program = layers::program(config)?;
        let epsilon = config.norm_eps as f32;
        let embedding = loader.embedding(sizes);
        let count = config.max_positions as usize;
        let positions = loader.matrix("wpe.weight", [count, hidden]);
        // GPT-2 stores projections as [in, out].
        let projection = |loader: &mut Loader<'_, B>, at: String, to, from| {
            let weight = loader.transposed(&format!("{at}.weight"), to, from);
            let bias = loader.bias(&[(format!("{at}.bias"), to)]);
            Projection {
                weight,
                bias: Some(bias),
            }
        };
        let layers = (0..config.layers.len()).map(|i| {
            let at = format!("h.{i}");
            Layer {
                before: LayerNorm::load(loader, &format!("{at}.ln_1"), hidden, epsilon),
                attention: Attention {
                    rows: projection(loader, format!("{at}.attn.c_attn"), 3 * hidden, hidden),
                    output: projection(loader, format!("{at}.attn.c_proj"), hidden, hidden),
                    norms: None,
                    sinks: None,
                    softcap: None,
                    program: program.clone(),
                    dtype: loader.dtype(),
                },
                after: LayerNorm::load(loader, &format!("{at}.ln_2"), hidden, epsilon),
                up: projection(loader, format!("{at}.mlp.c_fc"), wide, hidden),
                down: projection(loader, format!("{at}.mlp.c_proj"), hidden, wide),
            }
        });
        let layers = layers.collect();
        Ok(Self {
            embedding,
            positions,
            layers,
            norm: LayerNorm::load(loader, "ln_f", hidden, epsilon),
            dtype: loader.dtype(),
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
        layers
            .filter_map(|(layer, policy)| {
                let policy = policy.as_ref()?;
                Some(layer.attention.cache(batch, room, policy, device))
            })
            .collect()
    }

    /// Tokens [B, T] at positions from `position` on, or so many before it as each sequence lags → the residual stream before
    /// the first layer.
    pub(crate) fn embed(
        &self,
        ids: Tensor<B, 2, Int>,
        position: usize,
        lags: &[usize],
    ) -> Result<Stream<B>, ModelError> {
        let tokens = ids.dims()[1];
        let end = position + tokens;
        let [positions, hidden] = self.positions.dims();
        if end > positions {
            return Err(ModelError::Positions {
                tokens: end,
                positions,
            });
        }
        let x = self.embedding.rows(ids, DType::F32)?;
        let of = |lag: usize| {
            let at = [position - lag..end - lag, 0..hidden];
            self.positions.clone().slice(at).unsqueeze::<3>()
        };
        let at = match lags {
            [] => of(0),
            lags => Tensor::cat(lags.iter().map(|lag| of(*lag)).collect(), 0),
        };
        // The residual stream is f32, whatever element type the layers compute in.
        Ok(Stream {
            x: x.cast(DType::F32) + at.cast(DType::F32),
            pending: None,
        })
    }

    /// The residual stream before the first of `layers` → that after the last of them. Nothing is
    /// left pending.
    pub(crate) fn through(
        &self,
        layers: Range<usize>,
        Stream { mut x, pending: _ }: Stream<B>,
        state: &mut State<B>,
        policy: &Policy,
    ) -> Result<Stream<B>, ModelError> {
        let [_, tokens, _] = x.dims();
        let device = x.device();
        let lengths = state.lengths(tokens)?;
        let profile = state.profile.clone();
        let dtype = self.dtype;
        for i in layers {
            let layer = &self.layers[i];
            let (LayerState::Attention(cache), Some(policy)) =
                (&mut state.layers[i], &policy.layers[i])
            else {
                unreachable!("state and policy were made for this model");
            };
            let normed = profile.part::<B, _>(Part::Norms, &device, || {
                layer.before.forward(x.clone(), dtype)
            });
            let attention = &layer.attention;
            let rows = profile.part::<B, _>(Part::Projections, &device, || {
                attention.rows.forward(normed, Some(&policy.plan))
            })?;
            let mixed = attention.forward(rows, cache, None, lengths, policy, &profile)?;
            let normed;
            (x, normed) = profile.part::<B, _>(Part::Norms, &device, || {
                let x = x + mixed.cast(DType::F32);
                let normed = layer.after.forward(x.clone(), dtype);
                (x, normed)
            });
            let plan = Some(&policy.plan);
            let wide = profile.part::<B, _>(Part::Projections, &device, || {
                layer.up.forward(normed, plan)
            })?;
            let inner = profile.part::<B, _>(Part::Gates, &device, || gelu(wide));
            let fed = profile.part::<B, _>(Part::Projections, &device, || {
                layer.down.forward(inner, plan)
            })?;
            x = profile.part::<B, _>(Part::Norms, &device, || x + fed.cast(DType::F32));
        }
        Ok(Stream { x, pending: None })
    }

    /// The residual stream after the last layer → hidden states after the last norm [B, T, H].
    pub(crate) fn finish(&self, stream: Stream<B>) -> Tensor<B, 3> {
        self.norm.forward(stream.x, self.dtype)
    }
}
