//! What a running text keeps from one chunk to the next.

use crate::{ModelError, Profile};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::KvCache;

/// The caches of every layer, for texts of one length each.
#[derive(Clone, Debug)]
pub struct State<B: Backend> {
    pub(crate) layers: Vec<LayerState<B>>,
    pub(crate) batch: usize,
    pub(crate) position: usize,
    pub(crate) capacity: Option<usize>,
    /// Measures what is run with this state.
    pub profile: Profile,
}

#[derive(Clone, Debug)]
pub(crate) enum LayerState<B: Backend> {
    Attention(KvCache<B>),
    Linear(LinearState<B>),
}

/// What linear attention keeps: the same for any number of tokens.
#[derive(Clone, Debug)]
pub(crate) struct LinearState<B: Backend> {
    /// The last rows before the convolution [B, taps - 1, channels].
    pub(crate) rows: Tensor<B, 3>,
    /// [B, Hv, Dk, Dv] in f32.
    pub(crate) memory: Tensor<B, 4>,
}

/// A state as it was before a chunk.
#[derive(Debug)]
pub(crate) struct Mark<B: Backend> {
    /// Of each layer with linear attention.
    linear: Vec<Option<LinearState<B>>>,
    position: usize,
}

impl<B: Backend> LinearState<B> {
    pub(crate) fn new(
        op: &butterfly::Delta,
        batch: usize,
        (device, dtype): (&B::Device, DType),
    ) -> Self {
        let memory = [batch, op.v_heads, op.k_dim, op.v_dim];
        Self {
            rows: Tensor::zeros([batch, op.taps - 1, op.channels()], (device, dtype)),
            memory: Tensor::zeros(memory, (device, DType::F32)),
        }
    }
}

impl<B: Backend> State<B> {
    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens that fix the stages of patterns; `None` where they grow with the text.
    pub fn capacity(&self) -> Option<usize> {
        self.capacity
    }

    /// What a chunk that fails has to leave: linear attention by handles, caches by their length.
    pub(crate) fn mark(&self) -> Mark<B> {
        let layers = self.layers.iter();
        Mark {
            linear: layers
                .map(|layer| match layer {
                    LayerState::Attention(_) => None,
                    LayerState::Linear(linear) => Some(linear.clone()),
                })
                .collect(),
            position: self.position,
        }
    }

    /// Forgets what came since.
    pub(crate) fn back_to(&mut self, mark: Mark<B>) {
        self.position = mark.position;
        for (layer, linear) in self.layers.iter_mut().zip(mark.linear) {
            match (layer, linear) {
                (LayerState::Attention(cache), _) => cache.truncate(mark.position),
                (LayerState::Linear(state), Some(linear)) => *state = linear,
                (LayerState::Linear(_), None) => {}
            }
        }
    }

    /// The capacity for patterns once `tokens` more have come.
    pub(crate) fn capacity_for(&self, tokens: usize) -> Result<usize, ModelError> {
        let needed = self.position + tokens;
        match self.capacity {
            None => Ok(needed),
            Some(capacity) if needed <= capacity => Ok(capacity),
            Some(capacity) => Err(ModelError::Capacity {
                tokens: needed,
                capacity,
            }),
        }
    }
}
