//! The state of a model between two chunks of its sequences.

use crate::{ModelError, Profile};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::KvCache;

/// KV caches and recurrent states of every layer, for a batch of sequences.
///
/// Sequences are equally long, unless chunks were those of the [first ones](Self::only_first) alone.
#[derive(Clone, Debug)]
pub struct State<B: Backend> {
    pub(crate) layers: Vec<LayerState<B>>,
    pub(crate) batch: usize,
    /// Sequences that the next chunk is for: the first ones.
    pub(crate) active: usize,
    /// Tokens of the longest sequence.
    pub(crate) position: usize,
    /// How many tokens each sequence is behind the longest; empty if all are equally long.
    pub(crate) lags: Vec<usize>,
    pub(crate) capacity: Option<usize>,
    pub(crate) prompt: Option<usize>,
    /// Measures the calls of [`Model::forward`](crate::Model::forward) with this state.
    pub profile: Profile,
}

/// The lengths of a sequence, in tokens, on which patterns depend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// Fixes the stages.
    pub(crate) capacity: usize,
    /// Where `tail` ends.
    pub(crate) prompt: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum LayerState<B: Backend> {
    Attention(KvCache<B>),
    Linear(LinearState<B>),
}

/// The recurrent state of linear attention; its size does not depend on the number of tokens.
#[derive(Clone, Debug)]
pub(crate) struct LinearState<B: Backend> {
    /// The last inputs of the convolution, `[B, taps - 1, channels]`.
    pub(crate) rows: Tensor<B, 3>,
    /// The state of the delta rule, `[B, Hv, Dk, Dv]` in f32.
    pub(crate) memory: Tensor<B, 4>,
}

/// A snapshot of a state before a chunk, to go back to if the chunk fails.
#[derive(Debug)]
pub(crate) struct Mark<B: Backend> {
    /// The state of each layer with linear attention; `None` for the others.
    linear: Vec<Option<LinearState<B>>>,
    position: usize,
    lags: Vec<usize>,
}

impl<B: Backend> LayerState<B> {
    /// Forgets all tokens.
    fn clear(&mut self) {
        match self {
            Self::Attention(cache) => {
                cache.truncate(0);
            }
            Self::Linear(state) => {
                state.rows = state.rows.zeros_like();
                state.memory = state.memory.zeros_like();
            }
        }
    }
}

impl<B: Backend> LinearState<B> {
    pub(crate) fn new(
        op: &butterfly::Delta,
        batch: usize,
        (device, dtype): (&B::Device, DType),
    ) -> Self {
        let memory = [batch, op.v_heads, op.k_dim, op.v_dim];
        let rows = [batch, op.taps - 1, op.channels()];
        // Memory of exactly these sizes, which the states after each chunk use again.
        B::memory_persistent_allocations(device, (), |()| Self {
            rows: Tensor::zeros(rows, (device, dtype)),
            memory: Tensor::zeros(memory, (device, DType::F32)),
        })
    }
}

impl<B: Backend> State<B> {
    /// Number of tokens of the longest sequence so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many tokens each sequence is behind the longest; empty if all are equally long.
    pub fn lags(&self) -> &[usize] {
        &self.lags
    }

    /// Chunks from now on are those of the first `sequences` alone; the others stay where they are. So prompts of different
    /// lengths are read: the longest comes first, the others in order, and each leaves when it is read. Afterwards all go
    /// on together, a few tokens at a time (see [`DECODE_QUERIES`](butterfly::DECODE_QUERIES)).
    ///
    /// More than there are count as all.
    pub fn only_first(&mut self, sequences: usize) {
        self.active = sequences.min(self.batch);
    }

    /// The lags of the sequences that the next chunk is for; empty if these are equally long.
    pub(crate) fn active_lags(&self) -> &[usize] {
        let first = &self.lags[..self.active.min(self.lags.len())];
        match first.iter().all(|lag| *lag == 0) {
            true => &[],
            false => first,
        }
    }

    /// Whether sequences differ in length, or will after the next chunk.
    pub(crate) fn is_uneven(&self) -> bool {
        self.active < self.batch || !self.lags.is_empty()
    }

    /// The next chunk had `tokens` tokens of each sequence.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
        if self.active < self.batch {
            self.lags.resize(self.batch, 0);
            let others = &mut self.lags[self.active..];
            others.iter_mut().for_each(|lag| *lag += tokens);
        }
    }

    /// The capacity, in tokens of a sequence, that fixes the stages of patterns; `None` if the
    /// stages follow the length of the text.
    pub fn capacity(&self) -> Option<usize> {
        self.capacity
    }

    /// Tells how many tokens of each sequence are the prompt, whose end `tail` patterns see densely.
    /// Without this, each chunk is taken to end the prompt.
    pub fn set_prompt(&mut self, tokens: usize) {
        self.prompt = Some(tokens);
    }

    /// Forgets the tokens from `length` on, and returns how many of the longest sequence are kept: `length`, unless there
    /// are fewer. Recurrent states cannot go back, and layers with a window may have dropped what
    /// would be seen again: all tokens are forgotten then, and the state is as it was when it was
    /// new.
    pub fn truncate(&mut self, length: usize) -> usize {
        if length >= self.position {
            return self.position;
        }
        // Layers with a window may have dropped tokens that are seen again after the cut.
        let mut kept = length;
        for layer in &mut self.layers {
            let there = match layer {
                LayerState::Attention(cache) => cache.truncate(length),
                LayerState::Linear(_) => false,
            };
            if !there {
                kept = 0;
            }
        }
        if kept == 0 {
            self.layers.iter_mut().for_each(LayerState::clear);
        }
        let cut = self.position - kept;
        let lags = self.lags.iter_mut();
        lags.for_each(|lag| *lag = lag.saturating_sub(cut));
        if self.lags.iter().all(|lag| *lag == 0) {
            self.lags = Vec::new();
        }
        self.position = kept;
        kept
    }

    /// A snapshot of the state, without copying any tensor: recurrent states are kept as further
    /// handles to the same tensors; KV caches drop no token that is seen after them, so their length
    /// is enough.
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
            lags: self.lags.clone(),
        }
    }

    /// Makes the caches of an empty state keep all tokens, also those that its policy does not see
    /// again.
    pub(crate) fn keep_all(&mut self) {
        for layer in &mut self.layers {
            match layer {
                LayerState::Attention(cache) => cache.keep_all(),
                LayerState::Linear(_) => {}
            }
        }
    }

    /// Undoes everything since `mark`.
    pub(crate) fn back_to(&mut self, mark: Mark<B>) {
        self.position = mark.position;
        self.lags = mark.lags;
        for (layer, linear) in self.layers.iter_mut().zip(mark.linear) {
            match (layer, linear) {
                (LayerState::Attention(cache), _) => {
                    cache.go_back(mark.position, &self.lags);
                }
                (LayerState::Linear(state), Some(linear)) => *state = linear,
                (LayerState::Linear(_), None) => {}
            }
        }
    }

    /// The lengths with which patterns take a chunk of `tokens` tokens: the fixed ones or, without
    /// them, the length of the text with the chunk.
    pub(crate) fn lengths(&self, tokens: usize) -> Result<Lengths, ModelError> {
        let needed = self.position + tokens;
        let capacity = match self.capacity {
            None => needed,
            Some(capacity) if needed <= capacity => capacity,
            Some(capacity) => {
                return Err(ModelError::Capacity {
                    tokens: needed,
                    capacity,
                });
            }
        };
        Ok(Lengths {
            capacity,
            prompt: self.prompt.unwrap_or(needed),
        })
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
