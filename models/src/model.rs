//! A whole model: tokens → logits.

use crate::decoder::Decoder;
use crate::folder::OUTPUT;
use crate::gpt2::Gpt2;
use crate::layers::Projection;
use crate::loader::{Loader, Pass, Unused};
use crate::{Folder, ModelError, Policy, Profile, State};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::{AttentionBackend, Dtype};
use butterfly_ir::model::{Family, ModelConfig, ModelSizes};

/// A language model on a device.
#[derive(Clone, Debug)]
pub struct Model<B: Backend> {
    /// Its attention layers.
    pub config: ModelConfig,
    /// All other sizes.
    pub sizes: ModelSizes,
    inner: Inner<B>,
    head: Projection<B>,
    device: B::Device,
}

#[derive(Clone, Debug)]
enum Inner<B: Backend> {
    Decoder(Decoder<B>),
    Gpt2(Gpt2<B>),
}

fn element(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

/// Of which tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// All of the chunk.
    All,
    /// The last one.
    Last,
}

impl<B: AttentionBackend> Model<B> {
    /// The model of a folder in element type `dtype`, and the tensors there that it does not
    /// use.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with every tensor that is missing or wrongly shaped.
    pub fn load(
        folder: &Folder,
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<(Self, Unused), ModelError> {
        Self::check(folder, device)?;
        Self::build(Some(folder), &folder.config, &folder.sizes, dtype, device)
    }

    /// Whether a folder has the tensors that its config asks for. Takes no memory, however large
    /// these would be.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn check(folder: &Folder, device: &B::Device) -> Result<(), ModelError> {
        let mut loader = Loader::new(Pass::Check, Some(folder), device, DType::F32);
        Self::parts(&mut loader, &folder.config, &folder.sizes);
        loader.finish().map(|_| ())
    }

    /// A model of the shapes of a config, as [`read_config`](crate::read_config) gives it, with
    /// random weights.
    ///
    /// # Errors
    /// None that a config which was read can cause.
    pub fn random(
        config: &ModelConfig,
        sizes: &ModelSizes,
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        Ok(Self::build(None, config, sizes, dtype, device)?.0)
    }

    fn build(
        folder: Option<&Folder>,
        config: &ModelConfig,
        sizes: &ModelSizes,
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<(Self, Unused), ModelError> {
        let mut loader = Loader::new(Pass::Load, folder, device, element(dtype));
        let (inner, head) = Self::parts(&mut loader, config, sizes);
        let unused = loader.finish()?;
        let model = Self {
            config: config.clone(),
            sizes: sizes.clone(),
            inner,
            head: Projection::new(head),
            device: device.clone(),
        };
        Ok((model, unused))
    }

    /// Its layers, and the output projection.
    fn parts(
        loader: &mut Loader<'_, B>,
        config: &ModelConfig,
        sizes: &ModelSizes,
    ) -> (Inner<B>, Tensor<B, 2>) {
        let inner = match config.family {
            Family::Gpt2 => Inner::Gpt2(Gpt2::load(loader, config, sizes)),
            _ => Inner::Decoder(Decoder::load(loader, config, sizes)),
        };
        let head = match sizes.tied {
            true => inner.embedding().clone(),
            false => {
                let part = (format!("/{OUTPUT}"), sizes.vocabulary as usize);
                loader.matrix(&[part], sizes.hidden as usize)
            }
        };
        (inner, head)
    }

    /// Where its weights are.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// Caches for `batch` texts of one length.
    ///
    /// With a `capacity` the stages of patterns are those of so many tokens throughout, so
    /// that decode and chunks see what one prefill of the whole text sees. Without one they
    /// follow the text as it grows, and its logits differ from those of one prefill.
    pub fn state(&self, batch: usize, capacity: Option<usize>, policy: &Policy) -> State<B> {
        let layers = policy.layers.iter();
        let blocks = layers.map(|layer| match layer {
            Some(layer) => layer.plan.sparsity().block as usize,
            None => 1,
        });
        let blocks: Vec<usize> = blocks.collect();
        let room = capacity.unwrap_or(1);
        State {
            layers: match &self.inner {
                Inner::Decoder(model) => model.state(batch, room, &blocks, &self.device),
                Inner::Gpt2(model) => model.state(batch, room, &blocks, &self.device),
            },
            batch,
            position: 0,
            capacity,
            profile: Profile::default(),
        }
    }

    /// The next tokens of each text, one row of `tokens` for each → logits [B, T, V], or
    /// [B, 1, V] for the last alone, in the model's element type.
    ///
    /// # Errors
    /// [`ModelError::Token`], [`ModelError::Capacity`], [`ModelError::Positions`] before
    /// anything runs, or [`ModelError::Operation`].
    pub fn forward(
        &self,
        tokens: &[u32],
        state: &mut State<B>,
        policy: &Policy,
        logits: Logits,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let vocabulary = self.sizes.vocabulary as usize;
        if let Some(at) = tokens.iter().position(|t| *t as usize >= vocabulary) {
            return Err(ModelError::Token {
                token: tokens[at],
                position: state.position + at,
                vocabulary,
            });
        }
        let length = tokens.len() / state.batch;
        let ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        let ids = TensorData::new(ids, [state.batch, length]);
        let ids = Tensor::from_data(ids, &self.device);
        let hidden = match &self.inner {
            Inner::Decoder(model) => model.forward(ids, state, policy)?,
            Inner::Gpt2(model) => model.forward(ids, state, policy)?,
        };
        let wanted = match logits {
            Logits::All => hidden,
            Logits::Last => hidden.narrow(1, length - 1, 1),
        };
        let profile = state.profile.clone();
        let logits = profile.part::<B, _>("output projection", &self.device, || {
            self.head.forward(wanted)
        });
        Ok(logits?)
    }
}

impl<B: AttentionBackend> Inner<B> {
    fn embedding(&self) -> &Tensor<B, 2> {
        match self {
            Self::Decoder(model) => model.embedding(),
            Self::Gpt2(model) => model.embedding(),
        }
    }
}
