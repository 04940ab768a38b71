//! A window of text through a model: once by dense attention, then from any layer on by policies.
//!
//! In:  a window, and the policies to compare. Out: sums over the scored positions ([`Comparison`]).
//!
//! Invariants:
//! - What is compared ran through the same kernels, in the same chunks, as the dense pass.
//! - The first tokens of a window, whose queries see what they see by dense attention, are run once:
//!   later passes begin with a copy of the caches and recurrent states after them.

use super::Comparison;
use crate::stream::Stream;
use crate::{Model, ModelError, Policy, State};
use burn::prelude::*;
use butterfly::AttentionBackend;
use rayon::prelude::*;
use std::ops::Range;

/// Positions whose logits exist at once.
pub(crate) const ROWS: usize = 256;

/// How a window is read, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The first tokens of the window whose queries see all that they see by dense attention, in
    /// every policy that is compared.
    pub same: usize,
    /// Positions before this one are not scored.
    pub skip: usize,
    /// From there on only every n-th position is scored, with n at least 1.
    pub every: usize,
    /// Tokens that are taken at once; at least 1.
    pub chunk: usize,
    /// Tokens that fix the stages of patterns; at least those of the window.
    pub capacity: usize,
}

impl Reading {
    /// Number of scored positions in a window of `tokens` tokens.
    pub fn scored(&self, tokens: usize) -> usize {
        self.positions(0..tokens).count()
    }

    /// The scored positions among `range`.
    fn positions(&self, range: Range<usize>) -> impl Iterator<Item = usize> + use<> {
        let behind = range.start.saturating_sub(self.skip);
        let first = self.skip + behind.next_multiple_of(self.every);
        (first..range.end).step_by(self.every)
    }

    /// The chunks of `range`.
    fn chunks(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (chunk, end) = (self.chunk, range.end);
        range
            .step_by(chunk)
            .map(move |first| first..(first + chunk).min(end))
    }
}

/// A window of text, and what the model predicts for it by dense attention.
#[derive(Clone, Debug)]
pub struct Reference<B: Backend> {
    tokens: Vec<u32>,
    reading: Reading,
    /// Scored positions whose queries see the same in every policy.
    before: Comparison,
    /// Dense logits of the other scored positions, [n, V].
    logits: Vec<f32>,
    /// Caches and recurrent states after the first `reading.same` tokens.
    state: State<B>,
}

impl<B: AttentionBackend> Reference<B> {
    /// Runs a window by its model's own attention, as `dense` gives it.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn new(
        model: &Model<B>,
        tokens: &[u32],
        dense: &Policy,
        reading: Reading,
    ) -> Result<Self, ModelError> {
        model.check_tokens(tokens, 0)?;
        let mut state = model.state(1, Some(reading.capacity), dense);
        state.set_prompt(tokens.len());
        // Patterns may see what dense layers with a window would have dropped.
        state.keep_all();
        model.check_state(&state, dense)?;
        let mut reference = Self {
            tokens: tokens.to_vec(),
            reading,
            before: Comparison::default(),
            logits: Vec::new(),
            state: state.clone(),
        };
        let all = 0..model.config.layers.len();
        let same = reading.same.min(tokens.len());
        let run = |range: Range<usize>, state: &mut State<B>| {
            let stream = model.embed(&tokens[range.clone()], state)?;
            reference.pass(model, all.clone(), range, stream, state, dense)
        };
        let mut before = Comparison::default();
        for range in reading.chunks(0..same) {
            let stream = run(range.clone(), &mut state)?;
            reference.score(model, range, stream, dense, |next, logits| {
                before += Comparison::of(logits, logits, next);
            })?;
        }
        let shared = state.clone();
        let vocabulary = model.sizes.vocabulary as usize;
        let rows = reading.positions(same..tokens.len()).count();
        let mut dense_logits = Vec::with_capacity(rows * vocabulary);
        for range in reading.chunks(same..tokens.len()) {
            let stream = run(range.clone(), &mut state)?;
            reference.score(model, range, stream, dense, |_, logits| {
                dense_logits.extend_from_slice(logits);
            })?;
        }
        reference.before = before;
        reference.logits = dense_logits;
        reference.state = shared;
        Ok(reference)
    }

    /// Dense logits of the scored positions from the first on at which policies may differ, [n, V].
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Dense attention compared with itself: its losses, over as many positions as policies have.
    pub fn unchanged(&self, model: &Model<B>) -> Comparison {
        let positions = self.reading.positions(0..self.tokens.len());
        let positions: Vec<usize> = positions.skip(self.before.scored as usize).collect();
        let rows = self.logits.chunks(model.sizes.vocabulary as usize);
        let mut sum = self.before;
        for (logits, at) in rows.zip(positions) {
            sum += Comparison::of(logits, logits, self.tokens.get(at + 1).copied());
        }
        sum
    }

    /// One chunk, the positions `range` of the window, through `layers`.
    fn pass(
        &self,
        model: &Model<B>,
        layers: Range<usize>,
        range: Range<usize>,
        stream: Stream<B>,
        state: &mut State<B>,
        policy: &Policy,
    ) -> Result<Stream<B>, ModelError> {
        let run = |(stream, state): (Stream<B>, &mut State<B>)| {
            let after = model.through(layers.clone(), stream, state, policy)?;
            state.position = range.end;
            Ok(after)
        };
        B::on_threads(|| model.in_place(range.len(), (stream, state), run))
    }

    /// Gives `take` the logits of each scored position of a chunk, with the token after it.
    fn score(
        &self,
        model: &Model<B>,
        range: Range<usize>,
        stream: Stream<B>,
        policy: &Policy,
        mut take: impl FnMut(Option<u32>, &[f32]),
    ) -> Result<(), ModelError> {
        let positions: Vec<usize> = self.reading.positions(range.clone()).collect();
        self.rows(model, range, &positions, stream, policy, |from, logits| {
            let vocabulary = model.sizes.vocabulary as usize;
            for (at, logits) in positions[from..].iter().zip(logits.chunks(vocabulary)) {
                take(self.tokens.get(at + 1).copied(), logits);
            }
        })
    }

    /// Gives `take` the logits of `positions`, which lie in `range`, at most [`ROWS`] at a time: the
    /// number of the first, and rows [n, V].
    fn rows(
        &self,
        model: &Model<B>,
        range: Range<usize>,
        positions: &[usize],
        stream: Stream<B>,
        policy: &Policy,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        if positions.is_empty() {
            return Ok(());
        }
        let hidden = model.finish(stream)?;
        for (i, rows) in positions.chunks(ROWS).enumerate() {
            let ids: Vec<i32> = rows.iter().map(|at| (at - range.start) as i32).collect();
            let ids = TensorData::new(ids, [rows.len()]);
            let wanted = hidden
                .clone()
                .select(1, Tensor::from_data(ids, model.device()));
            let logits = B::on_threads(|| model.logits_of(wanted, policy))?;
            take(i * ROWS, &crate::floats(logits)?);
        }
        Ok(())
    }
}

/// The residual stream of a window before one layer, by dense attention in the layers below.
#[derive(Clone, Debug)]
pub struct Front<'a, B: Backend> {
    model: &'a Model<B>,
    reference: &'a Reference<B>,
    layer: usize,
    /// One for each chunk of the tokens from `reading.same` on.
    streams: Vec<Stream<B>>,
}

impl<'a, B: AttentionBackend> Front<'a, B> {
    /// Before the first layer.
    ///
    /// # Errors
    /// [`ModelError::Positions`] or [`ModelError::Operation`].
    pub fn new(model: &'a Model<B>, reference: &'a Reference<B>) -> Result<Self, ModelError> {
        let mut state = reference.state.clone();
        let streams = Self::chunks(reference).map(|range| {
            state.position = range.start;
            model.embed(&reference.tokens[range], &state)
        });
        Ok(Self {
            model,
            reference,
            layer: 0,
            streams: streams.collect::<Result<_, _>>()?,
        })
    }

    /// The chunks after the tokens that see the same in every policy.
    fn chunks(reference: &Reference<B>) -> impl Iterator<Item = Range<usize>> + use<B> {
        let (reading, end) = (reference.reading, reference.tokens.len());
        reading.chunks(reading.same.min(end)..end)
    }

    /// The layer that the stream goes into next.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Goes on by one layer, with its own attention as `dense` gives it.
    ///
    /// # Errors
    /// [`ModelError::State`] for a policy of another model, or after the last layer;
    /// [`ModelError::Operation`] if an operation fails.
    pub fn advance(&mut self, dense: &Policy) -> Result<(), ModelError> {
        let Self {
            model, reference, ..
        } = *self;
        let mut state = reference.state.clone();
        model.check_state(&state, dense)?;
        if self.layer == model.config.layers.len() {
            return Err(ModelError::State("has gone through all layers"));
        }
        let layers = self.layer..self.layer + 1;
        for (range, stream) in Self::chunks(reference).zip(&mut self.streams) {
            let before = stream.clone();
            *stream = reference.pass(model, layers.clone(), range, before, &mut state, dense)?;
        }
        self.layer += 1;
        Ok(())
    }

    /// Runs the layers from here on as `policy` gives them, and compares what they predict with
    /// what dense attention does.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn compare(&self, policy: &Policy) -> Result<Comparison, ModelError> {
        let Self {
            model, reference, ..
        } = *self;
        let mut state = reference.state.clone();
        model.check_state(&state, policy)?;
        let layers = self.layer..model.config.layers.len();
        let vocabulary = model.sizes.vocabulary as usize;
        let mut sum = reference.before;
        let mut dense = reference.logits.as_slice();
        for (range, stream) in Self::chunks(reference).zip(&self.streams) {
            let stream = reference.pass(
                model,
                layers.clone(),
                range.clone(),
                stream.clone(),
                &mut state,
                policy,
            )?;
            let positions: Vec<usize> = reference.reading.positions(range.clone()).collect();
            let add = |from: usize, logits: &[f32]| {
                let (own, rest) = dense.split_at(logits.len());
                dense = rest;
                let rows = own
                    .par_chunks(vocabulary)
                    .zip(logits.par_chunks(vocabulary));
                let rows = rows.zip(&positions[from..]);
                let each: Vec<Comparison> = rows
                    .map(|((dense, logits), at)| {
                        Comparison::of(dense, logits, reference.tokens.get(at + 1).copied())
                    })
                    .collect();
                // In order, so that sums do not depend on the number of threads.
                each.into_iter().for_each(|row| sum += row);
            };
            reference.rows(model, range, &positions, stream, policy, add)?;
        }
        Ok(sum)
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use crate::{Logits, read_config};
    use burn_flex::Flex;
    use butterfly::{Dtype, Plan, Sparsity};
    use butterfly_tests::fixture;

    const TOKENS: usize = 100;

    fn model(name: &str) -> Model<Flex> {
        let path = fixture("models").join(name).join("config.json");
        let (config, sizes) = read_config(&path).expect("a config");
        let model = Model::random(&config, &sizes, None, Dtype::F32, &Default::default());
        model.expect("a model")
    }

    fn text() -> Vec<u32> {
        (0..TOKENS as u32).map(|i| i * i * 7 % 251).collect()
    }

    fn policy(model: &Model<Flex>, pattern: &str) -> Policy {
        let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
        let plan = Plan::new(sparsity.clone()).expect("a plan");
        Policy::new(&model.config, &plan, &sparsity).expect("a policy")
    }

    /// Logits of the whole window by [`Model::forward`], position by position.
    fn forward(model: &Model<Flex>, policy: &Policy, chunk: usize) -> Vec<Vec<f32>> {
        let mut state = model.state(1, Some(TOKENS), policy);
        let mut rows = Vec::new();
        for tokens in text().chunks(chunk) {
            let logits = model.forward(tokens, &mut state, policy, Logits::All);
            let logits = crate::floats(logits.expect("a chunk")).expect("f32");
            rows.extend(
                logits
                    .chunks(model.sizes.vocabulary as usize)
                    .map(<[f32]>::to_vec),
            );
        }
        rows
    }

    /// Running the layers from one on, with what is stored of those below, gives what running the
    /// whole model with that policy gives: bit for bit, if nothing
    /// is taken from the dense pass and all positions are scored.
    #[test]
    fn a_part_of_a_run_equals_the_whole() {
        for name in ["gpt2", "llama", "mistral", "phi3", "qwen3_5"] {
            let model = model(name);
            let dense = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
            let softmax =
                (0..model.config.layers.len()).filter(|i| model.config.layers[*i].is_softmax());
            for (skip, every, same) in [(16, 1, 16), (0, 1, 16), (21, 3, 16), (0, 1, 0), (40, 7, 0)]
            {
                let reading = Reading {
                    same,
                    skip,
                    every,
                    chunk: 16,
                    capacity: TOKENS,
                };
                let own = forward(&model, &dense, reading.chunk);
                let reference = Reference::new(&model, &text(), &dense, reading).expect("runs");
                let mut front = Front::new(&model, &reference).expect("a front");
                for layer in softmax.clone() {
                    while front.layer() < layer {
                        front.advance(&dense).expect("one layer on");
                    }
                    let pattern = format!("block 8 layers {layer} causal & (window(9) | sink(1))");
                    let policy = policy(&model, &pattern);
                    let got = front.compare(&policy).expect("runs");
                    let other = forward(&model, &policy, reading.chunk);
                    let mut want = Comparison::default();
                    for at in (skip..TOKENS).step_by(every) {
                        let next = text().get(at + 1).copied();
                        want += Comparison::of(&own[at], &other[at], next);
                    }
                    assert_eq!(got.scored as usize, reading.scored(TOKENS));
                    assert!(got.kl > 1e-6, "{name}, layer {layer}: {got:?}");
                    // What sees the same is computed by the dense kernel here, and logits of a few
                    // positions by another than those of many: sums have another order.
                    let exact = (skip, every, same) == (0, 1, 0);
                    let most = if exact { 0.0 } else { 1e-3 };
                    for (got, want) in [(got.kl, want.kl), (got.loss, want.loss)] {
                        let off = (got - want).abs() / want;
                        assert!(off <= most, "{name}, layer {layer}: {got}, not {want}");
                    }
                    assert_eq!((got.agree, got.predicted), (want.agree, want.predicted));
                    let nothing = front.compare(&dense).expect("runs");
                    assert_eq!((nothing.kl, nothing.agree), (0.0, nothing.scored));
                    assert_eq!(nothing, reference.unchanged(&model));
                }
            }
        }
    }

    /// The borders of chunks change the order of sums, and no more.
    #[test]
    fn chunks_do_not_matter() {
        let model = model("llama");
        let dense = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
        let policy = policy(&model, "block 8 causal & local(1)");
        let run = |chunk, same| {
            let reading = Reading {
                same,
                skip: 0,
                every: 1,
                chunk,
                capacity: TOKENS,
            };
            let reference = Reference::new(&model, &text(), &dense, reading).expect("runs");
            let front = Front::new(&model, &reference).expect("a front");
            front.compare(&policy).expect("runs").kl
        };
        let whole = run(TOKENS, 0);
        assert!(whole > 1e-3, "{whole}");
        for (chunk, same) in [(1, 0), (7, 16), (64, 16), (16, 8)] {
            let parts = run(chunk, same);
            assert!((parts - whole).abs() < 1e-4 * whole, "{parts}, not {whole}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_an_error() {
        let (model, other) = (model("llama"), model("qwen3_5"));
        let [dense, others] = [&model, &other]
            .map(|model| Policy::dense(&model.config, &Plan::dense()).expect("a policy"));
        let reading = Reading {
            same: 0,
            skip: 0,
            every: 1,
            chunk: 64,
            capacity: TOKENS,
        };
        let token = Reference::new(&model, &[1, 1 << 30], &dense, reading).expect_err("refused");
        assert!(
            matches!(token, ModelError::Token { position: 1, .. }),
            "{token}"
        );
        let error = Reference::new(&model, &text(), &others, reading).expect_err("refused");
        assert!(matches!(error, ModelError::State(_)), "{error}");
        let short = Reading {
            capacity: 50,
            ..reading
        };
        let error = Reference::new(&model, &text(), &dense, short).expect_err("refused");
        assert!(matches!(error, ModelError::Capacity { .. }), "{error}");
        let reference = Reference::new(&model, &text(), &dense, reading).expect("runs");
        let mut front = Front::new(&model, &reference).expect("a front");
        for _ in &model.config.layers {
            front.advance(&dense).expect("one layer on");
        }
        assert!(matches!(front.advance(&dense), Err(ModelError::State(_))));
        assert!(matches!(front.compare(&others), Err(ModelError::State(_))));
    }
}
