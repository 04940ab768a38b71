//! A complete language model: tokens → logits.

use crate::checkpoint::OUTPUT;
use crate::decoder::Decoder;
use crate::gpt2::Gpt2;
use crate::layers::{Projection, Weight};
use crate::loader::{Loader, Pass, Unused};
use crate::state::LayerState;
use crate::stream::Stream;
use crate::weights::packed::dense;
use crate::{Checkpoint, ModelError, Policy, Profile, State, Taken};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::ops::Packed;
use butterfly::{AttentionBackend, Dtype};
use butterfly_compiler::family::{self, Layer};
use butterfly_ir::model::{LayerKind, ModelConfig, ModelSizes, Part};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A language model on a device.
#[derive(Clone, Debug)]
pub struct Model<B: Backend> {
    /// The attention layers.
    pub config: ModelConfig,
    /// All other sizes.
    pub sizes: ModelSizes,
    inner: Inner<B>,
    head: Projection<B>,
    device: B::Device,
    /// Tokens of the last chunk of a prompt, over all sequences.
    chunk: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
enum Inner<B: Backend> {
    Decoder(Box<Decoder<B>>),
    Gpt2(Gpt2<B>),
}

/// The tokens of a chunk whose logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// All tokens of each sequence.
    All,
    /// The last token of each sequence.
    Last,
}

impl<B: AttentionBackend> Model<B> {
    /// Loads the model of a folder in element type `dtype`. Also returns the names of the folder's
    /// tensors that it does not use.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with every tensor that is missing or has a wrong shape or type.
    pub fn load(
        folder: &Checkpoint,
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<(Self, Unused), ModelError> {
        Self::check(folder, dtype, device)?;
        let loader = Loader::new(Pass::Load, Some(folder), device, dense(dtype));
        Self::build(loader, &folder.config, &folder.sizes)
    }

    /// Checks that a folder has the tensors that its config asks for, without reading them or
    /// allocating memory for them. Returns the memory that they will take in element type `dtype`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn check(
        folder: &Checkpoint,
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<Taken, ModelError> {
        let loader = Loader::new(Pass::Check, Some(folder), device, dense(dtype));
        Self::measure(loader, &folder.config, &folder.sizes)
    }

    /// The tensors of a checkpoint that are missing or do not fit, each with what is wrong, and the
    /// names of those that the model does not use.
    ///
    /// # Errors
    /// [`ModelError::Layer`] for a family that does not run yet.
    pub fn compare(
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<(Vec<String>, Unused), ModelError> {
        let mut loader = Loader::new(Pass::Check, Some(checkpoint), device, DType::F32);
        Self::parts(&mut loader, &checkpoint.config, &checkpoint.sizes)?;
        Ok(loader.compared())
    }

    /// The memory that random weights of the shapes of a config take, packed as `packed` where their
    /// shapes allow it, else in element type `dtype`.
    ///
    /// # Errors
    /// As [`random`](Self::random).
    pub fn taken(
        config: &ModelConfig,
        sizes: &ModelSizes,
        packed: Option<Packed>,
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<Taken, ModelError> {
        let loader = Loader::new(Pass::Check, None, device, dense(dtype));
        Self::measure(loader.packed(packed), config, sizes)
    }

    fn measure(
        mut loader: Loader<'_, B>,
        config: &ModelConfig,
        sizes: &ModelSizes,
    ) -> Result<Taken, ModelError> {
        Self::parts(&mut loader, config, sizes)?;
        let taken = loader.taken();
        loader.finish().map(|_| taken)
    }

    /// Bytes of an element of the matrices of each part of a model in element type `dtype`, scales included:
    /// of a checkpoint or, without one, of random weights, packed as `packed` where their shapes allow it. The
    /// output projection is not among them where the embedding stands for it.
    ///
    /// # Errors
    /// [`ModelError::Layer`] for a family that does not run yet.
    pub fn stored(
        (checkpoint, packed): (Option<&Checkpoint>, Option<Packed>),
        (config, sizes): (&ModelConfig, &ModelSizes),
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<BTreeMap<Part, f64>, ModelError> {
        let loader = Loader::new(Pass::Check, checkpoint, device, dense(dtype));
        let mut loader = loader.packed(packed);
        Self::parts(&mut loader, config, sizes)?;
        Ok(loader.element_bytes())
    }

    /// A model with random weights of the shapes of a config, as returned by
    /// [`read_config`](crate::read_config).
    ///
    /// # Errors
    /// [`ModelError::Layer`] for a family that does not run yet.
    pub fn random(
        config: &ModelConfig,
        sizes: &ModelSizes,
        packed: Option<Packed>,
        dtype: Dtype,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let loader = Loader::new(Pass::Load, None, device, dense(dtype));
        Ok(Self::build(loader.packed(packed), config, sizes)?.0)
    }

    fn build(
        mut loader: Loader<'_, B>,
        config: &ModelConfig,
        sizes: &ModelSizes,
    ) -> Result<(Self, Unused), ModelError> {
        let device = loader.device().clone();
        // As for caches: each weight takes exactly its size, and not a part of a page that is larger.
        let (inner, head) = B::memory_persistent_allocations(&device, &mut loader, |loader| {
            Self::parts(loader, config, sizes)
        })?;
        B::memory_cleanup(&device);
        let unused = loader.finish()?;
        let model = Self {
            config: config.clone(),
            sizes: sizes.clone(),
            inner,
            head: Projection::new(head),
            device: device.clone(),
            chunk: Arc::default(),
        };
        Ok((model, unused))
    }

    /// The layers, and the output projection.
    fn parts(
        loader: &mut Loader<'_, B>,
        config: &ModelConfig,
        sizes: &ModelSizes,
    ) -> Result<(Inner<B>, Weight<B>), ModelError> {
        let inner = match family::of(config.family).layer {
            Layer::Gpt2 => Inner::Gpt2(Gpt2::load(loader, config, sizes)?),
            Layer::Gated => Inner::Decoder(Box::new(Decoder::load(loader, config, sizes)?)),
        };
        let head = match sizes.tied {
            true => inner.embedding().clone(),
            false => {
                let part = (format!("/{OUTPUT}"), sizes.vocabulary as usize);
                loader.of_part(Part::OutputProjection, |loader| {
                    loader.weight(&[part], sizes.hidden as usize)
                })
            }
        };
        Ok((inner, head))
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// Empty caches and recurrent states for `batch` sequences.
    ///
    /// `capacity` is the largest length of a sequence, in tokens, and fixes the stages of patterns:
    /// decode and chunks then see what one prefill of the whole text sees. Without it the number of
    /// stages follows the length of the text so far, and logits differ from those of one prefill.
    pub fn state(&self, batch: usize, capacity: Option<usize>, policy: &Policy) -> State<B> {
        let room = capacity.unwrap_or(1);
        State {
            layers: match &self.inner {
                Inner::Decoder(model) => model.state(batch, room, policy, &self.device),
                Inner::Gpt2(model) => model.state(batch, room, policy, &self.device),
            },
            batch,
            active: batch,
            position: 0,
            lags: Vec::new(),
            capacity,
            prompt: None,
            profile: Profile::default(),
        }
    }

    /// Runs the next chunk of each sequence.
    ///
    /// `tokens` holds B rows of T tokens, where B is the batch of `state`, or as many as it is told
    /// [to go on with](State::only_first). Returns logits
    /// `[B, T, V]`, or `[B, 1, V]` for [`Logits::Last`], in the model's element type.
    ///
    /// # Errors
    /// [`ModelError::Token`], [`ModelError::Chunk`], [`ModelError::State`],
    /// [`ModelError::Capacity`] or [`ModelError::Positions`] before anything runs;
    /// [`ModelError::Operation`] if an operation fails. The state is then as it was before the
    /// call. Only if the device itself fails is the state lost: its next use is a
    /// [`ModelError::State`].
    pub fn forward(
        &self,
        tokens: &[u32],
        state: &mut State<B>,
        policy: &Policy,
        logits: Logits,
    ) -> Result<Tensor<B, 3>, ModelError> {
        self.check_tokens(tokens, state.position)?;
        let sequences = state.active;
        if tokens.is_empty() || sequences == 0 || !tokens.len().is_multiple_of(sequences) {
            return Err(ModelError::Chunk {
                tokens: tokens.len(),
                batch: sequences,
            });
        }
        self.check_state(state, policy)?;
        let mark = state.mark();
        let result = B::on_threads(|| self.run_in_place(tokens, state, policy, logits));
        if result.is_err() {
            state.back_to(mark);
        }
        result
    }

    /// Checks that tokens, the first of which is at `position`, are in the vocabulary.
    pub(crate) fn check_tokens(&self, tokens: &[u32], position: usize) -> Result<(), ModelError> {
        let vocabulary = self.sizes.vocabulary as usize;
        match tokens.iter().position(|t| *t as usize >= vocabulary) {
            None => Ok(()),
            Some(at) => Err(ModelError::Token {
                token: tokens[at],
                position: position + at,
                vocabulary,
            }),
        }
    }

    /// Checks that state and policy fit this model, and that all caches of the state have the same
    /// length.
    pub(crate) fn check_state(&self, state: &State<B>, policy: &Policy) -> Result<(), ModelError> {
        let kinds = &self.config.layers;
        let other = || ModelError::State("or the policy was made for another model");
        if let (true, Some(what)) = (state.is_uneven(), policy.takes_no_lags()) {
            return Err(ModelError::Uneven(what));
        }
        if state.layers.len() != kinds.len() || policy.layers.len() != kinds.len() {
            return Err(other());
        }
        for ((kind, layer), policy) in kinds.iter().zip(&state.layers).zip(&policy.layers) {
            match (kind, layer, policy) {
                (
                    LayerKind::FullAttention | LayerKind::WindowAttention { .. },
                    LayerState::Attention(cache),
                    Some(policy),
                ) => {
                    if cache.len() != state.position || cache.lags() != state.lags {
                        return Err(ModelError::State("was lost when the device failed"));
                    }
                    if !policy.fits(cache) {
                        return Err(ModelError::State(
                            "forgets tokens that patterns of this policy see",
                        ));
                    }
                }
                (LayerKind::LinearAttention, LayerState::Linear(_), _) => {}
                (
                    LayerKind::FullAttention
                    | LayerKind::WindowAttention { .. }
                    | LayerKind::LinearAttention,
                    _,
                    _,
                ) => {
                    return Err(other());
                }
            }
        }
        Ok(())
    }

    /// As [`run`](Self::run), in memory that [`in_place`](Self::in_place) keeps.
    fn run_in_place(
        &self,
        tokens: &[u32],
        state: &mut State<B>,
        policy: &Policy,
        logits: Logits,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let decodes = tokens.len() == state.active;
        let run = |state: &mut State<B>| self.run(tokens, state, policy, logits);
        match decodes {
            true => B::memory_persistent_allocations(&self.device, state, run),
            false => self.in_place(tokens.len(), state, run),
        }
    }

    /// Runs a chunk of a prompt of `tokens` tokens, over all sequences. Tensors are the same in
    /// every layer, and those of a prompt's chunk are large: each gets memory of exactly its size,
    /// which is kept for chunks of as many tokens.
    pub(crate) fn in_place<S: Send, T: Send>(
        &self,
        tokens: usize,
        state: S,
        run: impl Fn(S) -> T + Send,
    ) -> T {
        if self.chunk.swap(tokens, Relaxed) != tokens {
            B::memory_cleanup(&self.device);
        }
        B::memory_persistent_allocations(&self.device, state, run)
    }

    fn run(
        &self,
        tokens: &[u32],
        state: &mut State<B>,
        policy: &Policy,
        logits: Logits,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let length = tokens.len() / state.active;
        let profile = state.profile.clone();
        let stream =
            profile.part::<B, _>(Part::Embedding, &self.device, || self.embed(tokens, state))?;
        let stream = self.through(0..self.config.layers.len(), stream, state, policy)?;
        let hidden = profile.part::<B, _>(Part::Norms, &self.device, || self.finish(stream))?;
        let wanted = match logits {
            Logits::All => hidden,
            Logits::Last => hidden.narrow(1, length - 1, 1),
        };
        let logits = profile.part::<B, _>(Part::OutputProjection, &self.device, || {
            self.logits_of(wanted, policy)
        })?;
        state.advance(length);
        Ok(logits)
    }

    /// The residual stream of the next chunk of `state` before the first layer; B rows of tokens.
    pub(crate) fn embed(&self, tokens: &[u32], state: &State<B>) -> Result<Stream<B>, ModelError> {
        let length = tokens.len() / state.active;
        let ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        let ids = TensorData::new(ids, [state.active, length]);
        let ids = Tensor::from_data(ids, &self.device);
        match &self.inner {
            Inner::Decoder(model) => model.embed(ids),
            Inner::Gpt2(model) => model.embed(ids, state.position, state.active_lags()),
        }
    }

    /// The residual stream before the first of `layers` → that after the last of them. Appends to
    /// the caches of these layers, but leaves the position of the state.
    pub(crate) fn through(
        &self,
        layers: Range<usize>,
        stream: Stream<B>,
        state: &mut State<B>,
        policy: &Policy,
    ) -> Result<Stream<B>, ModelError> {
        match &self.inner {
            Inner::Decoder(model) => model.through(layers, stream, state, policy),
            Inner::Gpt2(model) => model.through(layers, stream, state, policy),
        }
    }

    /// The residual stream after the last layer → hidden states after the last norm [B, T, H].
    pub(crate) fn finish(&self, stream: Stream<B>) -> Result<Tensor<B, 3>, ModelError> {
        match &self.inner {
            Inner::Decoder(model) => model.finish(stream),
            Inner::Gpt2(model) => Ok(model.finish(stream)),
        }
    }

    /// Hidden states [B, T, H] → logits [B, T, V].
    pub(crate) fn logits_of(
        &self,
        hidden: Tensor<B, 3>,
        policy: &Policy,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let logits = self.head.forward(hidden, policy.plan())?;
        Ok(match self.sizes.logit_softcap {
            None => logits,
            Some(cap) => (logits / cap).tanh() * cap,
        })
    }
}

impl<B: AttentionBackend> Inner<B> {
    fn embedding(&self) -> &Weight<B> {
        match self {
            Self::Decoder(model) => model.embedding(),
            Self::Gpt2(model) => model.embedding(),
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
