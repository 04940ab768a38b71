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
mod tests {
    use super::*;
    use crate::{Checkpoint, Logits, Model, Policy, read_config};
    use burn_flex::Flex;
    use butterfly::{Dtype, Plan, Sparsity, kept_at_most};
    use butterfly_tests::fixture;

    /// Tokens of the text: several times what a layer with a window keeps.
    const TOKENS: usize = 700;
    /// The window of the fixture's layers, and the blocks of kernels for layers that keep it.
    const WINDOW: usize = 20;
    const BLOCK: usize = 128;

    fn mistral() -> Model<Flex> {
        let folder = Checkpoint::open(&fixture("models").join("mistral")).expect("a folder");
        let (model, _) = Model::load(&folder, Dtype::F32, &Default::default()).expect("a model");
        model
    }

    fn text() -> Vec<u32> {
        (0..TOKENS as u32).map(|i| i * i * 7 % 251).collect()
    }

    fn caches(state: &State<Flex>) -> impl Iterator<Item = &KvCache<Flex>> {
        state.layers.iter().filter_map(|layer| match layer {
            LayerState::Attention(cache) => Some(cache),
            LayerState::Linear(_) => None,
        })
    }

    fn numbers(logits: Tensor<Flex, 3>) -> Vec<f32> {
        logits.into_data().into_vec().expect("f32")
    }

    /// Logits of a text in chunks equal those of the whole text, of which nothing is dropped.
    fn equal_in_chunks(model: &Model<Flex>, policy: &Policy, forgets: [bool; 4]) {
        let text = text();
        let run = |chunk: usize, capacity| {
            let mut state = model.state(1, capacity, policy);
            let mut logits = Vec::new();
            for tokens in text.chunks(chunk) {
                let chunk = model.forward(tokens, &mut state, policy, Logits::All);
                logits.extend(numbers(chunk.expect("a chunk")));
            }
            (logits, state)
        };
        let (whole, state) = run(TOKENS, Some(TOKENS));
        assert!(caches(&state).all(|cache| cache.first() == 0));
        for (chunk, capacity) in [(1, Some(TOKENS)), (7, None), (64, Some(TOKENS))] {
            let (parts, state) = run(chunk, capacity);
            let off = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0, f32::max);
            // Products of a few rows sum in another order than those of many.
            assert!(off <= 2e-5, "in chunks of {chunk}: {off}");
            let most = kept_at_most(WINDOW as u64, chunk as u64, BLOCK as u64) as usize;
            for (cache, forgets) in caches(&state).zip(forgets) {
                assert_eq!(cache.first() > 0, forgets, "in chunks of {chunk}");
                assert!(!forgets || cache.room() <= most);
                assert!(forgets || cache.room() >= TOKENS);
            }
        }
    }

    #[test]
    fn layers_with_a_window_forget_and_give_the_same_logits() {
        let model = mistral();
        let policy = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
        equal_in_chunks(&model, &policy, [true; 4]);
        // Three layers keep their window, one sees the first tokens of the text too.
        let pattern = "layers 2 block 8 causal & (window(30) | sink(1))";
        let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
        let plan = Plan::new(sparsity.clone()).expect("a plan");
        let policy = Policy::new(&model.config, &plan, &sparsity).expect("a policy");
        equal_in_chunks(&model, &policy, [true, true, false, true]);
    }

    /// The last layer fails, after the layers before it have dropped tokens to take the chunk.
    #[test]
    fn a_state_that_forgets_survives_a_chunk_that_fails() {
        let (model, text) = (mistral(), text());
        let policy = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
        let forward = |state: &mut State<Flex>, tokens: &[u32]| {
            model.forward(tokens, state, &policy, Logits::All)
        };
        let mut state = model.state(1, Some(TOKENS), &policy);
        forward(&mut state, &text[..100]).expect("a chunk");
        // As much as there is room for.
        let room = caches(&state).next().expect("a layer").room();
        forward(&mut state, &text[100..room]).expect("a chunk");
        assert!(caches(&state).all(|cache| cache.first() == 0));
        let mut undisturbed = state.clone();
        let next = &text[room..room + 50];
        let want = numbers(forward(&mut undisturbed, next).expect("a chunk"));
        assert!(caches(&undisturbed).all(|cache| cache.first() > 0));

        let right = state.layers[3].clone();
        let mut wrong = KvCache::new([1, 1, 8], room, BLOCK, &Default::default());
        let rows = Tensor::zeros([1, room, 24], &Default::default());
        let append = butterfly::Append {
            q_heads: 1,
            kv_heads: 1,
            head_dim: 8,
            q_step: 8,
            starts: [0, 8, 16],
            position: 0,
            lagging: false,
            norm: None,
            rotated: 0,
            interleaved: false,
        };
        let inputs = [rows.clone(), rows.clone(), rows];
        wrong.append(inputs, None, None, append).expect("append");
        state.layers[3] = LayerState::Attention(wrong);
        let error = forward(&mut state, next).expect_err("a cache of other heads");
        assert!(matches!(error, ModelError::Operation(_)), "{error}");
        assert_eq!(state.position(), room);
        assert!(caches(&state).next().is_some_and(|cache| cache.first() > 0));

        state.layers[3] = right;
        let got = numbers(forward(&mut state, next).expect("as before"));
        assert_eq!(got, want);
    }

    /// A pattern that sees more than the caches of a state keep is refused.
    #[test]
    fn a_state_that_forgets_is_for_its_policy() {
        let model = mistral();
        let dense = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
        for (pattern, fits) in [
            ("block 128 causal & window(10)", true),
            ("block 64 causal & window(20)", true),
            ("block 128 causal & window(21)", false),
            ("block 48 causal & window(20)", false),
            ("block 128 causal & (window(5) | sink(1))", false),
            ("causal", false),
        ] {
            let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
            let plan = Plan::new(sparsity.clone()).expect("a plan");
            let other = Policy::new(&model.config, &plan, &sparsity).expect("a policy");
            let mut state = model.state(1, Some(64), &dense);
            let result = model.forward(&[1, 2, 3], &mut state, &other, Logits::Last);
            match (result, fits) {
                (Ok(_), true) => {}
                (Err(ModelError::State(what)), false) => assert!(what.contains("forgets")),
                (other, _) => panic!("{pattern}: {:?}", other.map(|_| ())),
            }
        }
    }

    /// What follows a cut is what follows the same tokens in a new state.
    #[test]
    fn a_state_goes_back() {
        let models = [
            ("gpt2", 3),
            ("llama", 3),
            ("glm4_moe_lite", 3),
            ("qwen3_5", 0),
        ];
        for (name, kept) in models {
            let path = fixture("models").join(name).join("config.json");
            let (config, sizes) = read_config(&path).expect("a config");
            let model =
                Model::<Flex>::random(&config, &sizes, None, Dtype::F32, &Default::default());
            let model = model.expect("a model");
            let policy = Policy::dense(&config, &Plan::dense()).expect("a policy");
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
            let want = match kept {
                0 => read(&mut new(), &tokens),
                _ => read(&mut other, &tokens[3..]),
            };
            // The kept tokens were read in a chunk of another size, whose sums have another order.
            let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
            let error = error.fold(0.0, f32::max);
            assert!(error < 1e-5, "{name}: {error}");
            assert_eq!(got.len(), want.len());
            assert_eq!((state.truncate(0), state.position()), (0, 0));
            assert_eq!(
                read(&mut state, &tokens),
                read(&mut new(), &tokens),
                "{name}"
            );
        }
    }
}
