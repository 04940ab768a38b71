//! The state of a model between two chunks of its sequences.

use crate::{ModelError, Profile};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::KvCache;

/// KV caches and recurrent states of every layer, for a batch of sequences of equal length.
#[derive(Clone, Debug)]
pub struct State<B: Backend> {
    pub(crate) layers: Vec<LayerState<B>>,
    pub(crate) batch: usize,
    pub(crate) position: usize,
    pub(crate) capacity: Option<usize>,
    /// Measures the calls of [`Model::forward`](crate::Model::forward) with this state.
    pub profile: Profile,
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
    /// Number of tokens of each sequence so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The capacity, in tokens of a sequence, that fixes the stages of patterns; `None` if the
    /// stages follow the length of the text.
    pub fn capacity(&self) -> Option<usize> {
        self.capacity
    }

    /// Forgets the tokens from `length` on, and returns how many are kept: `length`, unless there
    /// are fewer. Recurrent states cannot go back: with them all tokens are forgotten, and the
    /// state is as it was when it was new.
    pub fn truncate(&mut self, length: usize) -> usize {
        if length >= self.position {
            return self.position;
        }
        let recurrent = |layer: &LayerState<B>| matches!(layer, LayerState::Linear(_));
        let kept = match self.layers.iter().any(recurrent) {
            true => 0,
            false => length,
        };
        for layer in &mut self.layers {
            match layer {
                LayerState::Attention(cache) => cache.truncate(kept),
                LayerState::Linear(state) => {
                    state.rows = state.rows.zeros_like();
                    state.memory = state.memory.zeros_like();
                }
            }
        }
        self.position = kept;
        kept
    }

    /// A snapshot of the state, without copying any tensor: recurrent states are kept as further
    /// handles to the same tensors; KV caches only grow, so their length is enough.
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

    /// Undoes everything since `mark`.
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

    /// The capacity with which patterns take a chunk of `tokens` tokens: the fixed one or, without
    /// one, the length of the text with the chunk.
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

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use crate::{Logits, Model, Policy, State, read_config};
    use burn_flex::Flex;
    use butterfly::{Dtype, Plan};
    use butterfly_tests::fixture;

    /// What follows a cut is what follows the same tokens in a new state.
    #[test]
    fn a_state_goes_back() {
        for (name, kept) in [("gpt2", 3), ("llama", 3), ("qwen3_5", 0)] {
            let path = fixture("models").join(name).join("config.json");
            let (config, sizes) = read_config(&path).expect("a config");
            let model = Model::<Flex>::random(&config, &sizes, Dtype::F32, &Default::default());
            let model = model.expect("a model");
            let policy = Policy::dense(&config, &Plan::dense());
            let read = |state: &mut State<Flex>, tokens: &[u32]| -> Vec<f32> {
                let logits = model.forward(tokens, state, &policy, Logits::Last);
                let data = logits.expect("logits").into_data();
                data.into_vec().expect("f32")
            };
            let new = || model.state(1, Some(16), &policy);
            let mut state = new();
            read(&mut state, &[1, 2, 3, 4, 5]);
            assert_eq!(state.truncate(9), 5);
            assert_eq!(state.truncate(5), 5);
            assert_eq!((state.truncate(3), state.position()), (kept, kept));
            let tokens = [1, 2, 3, 6, 7, 8];
            let got = read(&mut state, &tokens[kept..]);
            let mut other = new();
            read(&mut other, &tokens[..3]);
            // From the same place, in chunks of the same sizes, the sums are the same.
            let want = match kept {
                0 => read(&mut new(), &tokens),
                _ => read(&mut other, &tokens[3..]),
            };
            assert_eq!(got, want, "{name}");
            assert_eq!((state.truncate(0), state.position()), (0, 0));
            assert_eq!(
                read(&mut state, &tokens),
                read(&mut new(), &tokens),
                "{name}"
            );
        }
    }
}
