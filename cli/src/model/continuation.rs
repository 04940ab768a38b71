//! Generation: prefill of prompts, then decode token by token.

use super::finite::Watch;
use super::floats;
use super::interrupt::Interrupt;
use crate::failure::Failure;
use burn::prelude::*;
use butterfly::AttentionBackend;
use butterfly_models::{Logits, Model, Policy, Sampler, State, greedy, prompt_chunks};
use indicatif::ProgressBar;
use std::time::Instant;

/// A model in the middle of one text or several.
pub(super) struct Continuation<'a, B: AttentionBackend> {
    pub(super) model: &'a Model<B>,
    pub(super) policy: &'a Policy,
    pub(super) state: State<B>,
    /// One for each text, and the number by which messages call it.
    pub(super) texts: Vec<(Sampler, usize)>,
    /// Checks the logits that tokens are drawn from.
    pub(super) watch: Watch,
    /// What may ask to stop.
    pub(super) interrupt: Option<Interrupt>,
}

/// What was generated.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// Of each text.
    pub(super) texts: Vec<New>,
    /// Tokens that decode steps have drawn: those after the first of each text.
    pub(super) drawn: usize,
    /// What the steps took.
    pub(super) seconds: f64,
}

/// The new part of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct New {
    pub(super) tokens: Vec<u32>,
    /// Whether the model gave a token that ends the text.
    pub(super) ended: bool,
}

impl<B: AttentionBackend> Continuation<'_, B> {
    /// Reads the prompts, one of each text, the longest first, in chunks, and returns the first token after each:
    /// `None` if its logits are not finite, or if reading was interrupted before its end. Each
    /// sampler draws once, however many chunks there are. `chunk` says how many tokens are read at once of each of so many
    /// texts; `bar` counts tokens.
    ///
    /// A chunk ends where a prompt does, which leaves those that follow.
    pub(super) fn prefill(
        &mut self,
        prompts: &[&[u32]],
        chunk: impl Fn(usize) -> usize,
        bar: &ProgressBar,
    ) -> Result<Vec<Option<u32>>, Failure> {
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        let longest = lengths.first().copied().unwrap_or(0);
        self.state.set_prompt(self.state.position() + longest);
        let mut first = vec![None; prompts.len()];
        for part in prompt_chunks(&lengths, chunk) {
            if self.interrupted() {
                break;
            }
            let open = &prompts[..part.prompts];
            let tokens = open.iter().flat_map(|prompt| &prompt[part.tokens.clone()]);
            let tokens: Vec<u32> = tokens.copied().collect();
            self.state.only_first(part.prompts);
            let logits = self.read(&tokens)?;
            if !part.ended.is_empty() {
                let ended: Vec<bool> = (0..part.prompts).map(|i| part.ended.contains(&i)).collect();
                let drawn = self.draw(logits, &ended)?;
                first[part.ended.clone()].copy_from_slice(&drawn[part.ended]);
            } else if !bar.is_hidden() || self.interrupt.is_some() {
                // Chunks are queued on a GPU without waiting for it; only a visible bar needs to wait,
                // and a prompt that can be interrupted.
                super::sync::<B>(&logits.device())?;
            }
            bar.inc(tokens.len() as u64);
        }
        self.state.only_first(prompts.len());
        Ok(first)
    }

    /// Continues each text after its `first` token, until it has ended, its logits are not finite,
    /// it has `most` new tokens, or all of it is interrupted. `take` is given the number of the
    /// text and its new token, and says whether that text goes on.
    ///
    /// Texts stay in the batch until the last of them has ended.
    pub(super) fn decode(
        &mut self,
        first: Vec<Option<u32>>,
        ends: &[u32],
        most: usize,
        mut take: impl FnMut(usize, u32) -> Result<bool, Failure>,
    ) -> Result<Decoded, Failure> {
        let mut next = first;
        let mut decoded = Decoded {
            texts: vec![New::default(); next.len()],
            ..Decoded::default()
        };
        let started = Instant::now();
        loop {
            for (row, (next, text)) in next.iter_mut().zip(&mut decoded.texts).enumerate() {
                let Some(token) = *next else { continue };
                if ends.contains(&token) {
                    (*next, text.ended) = (None, true);
                    continue;
                }
                text.tokens.push(token);
                if !take(row, token)? || text.tokens.len() >= most {
                    *next = None;
                }
            }
            let open: Vec<bool> = next.iter().map(Option::is_some).collect();
            let going_on = open.iter().filter(|open| **open).count();
            if going_on == 0 || self.interrupted() {
                break;
            }
            // What a text that is over is given makes no difference to the others.
            let tokens: Vec<u32> = next.iter().map(|token| token.unwrap_or(0)).collect();
            let logits = self.read(&tokens)?;
            next = self.draw(logits, &open)?;
            decoded.drawn += going_on;
        }
        decoded.seconds = started.elapsed().as_secs_f64();
        Ok(decoded)
    }

    /// Whether it was asked to stop.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupt.is_some_and(Interrupt::asked)
    }

    /// The token by the logits of each of the first texts that is `open`; `None` if they are not finite.
    fn draw(&mut self, logits: Tensor<B, 3>, open: &[bool]) -> Result<Vec<Option<u32>>, Failure> {
        // What is not finite has to be looked at here.
        if self.texts.iter().all(|(sampler, _)| sampler.is_greedy())
            && let Some(drawn) = greedy(logits.clone()).map_err(Failure::bad)?
        {
            let drawn = drawn.into_iter().zip(open);
            return Ok(drawn.map(|(token, open)| open.then_some(token)).collect());
        }
        let logits = floats(logits)?;
        let vocabulary = logits.len() / open.len();
        let last = self.state.position() - 1;
        let lags = self
            .state
            .lags()
            .iter()
            .copied()
            .chain(std::iter::repeat(0));
        let rows = logits
            .chunks(vocabulary)
            .zip(&mut self.texts)
            .zip(open)
            .zip(lags);
        let drawn = rows.map(|(((logits, (sampler, number)), open), lag)| {
            let finite = *open && self.watch.see(logits, vocabulary, [*number, last - lag]);
            finite.then(|| sampler.next(logits))
        });
        Ok(drawn.collect())
    }

    /// The logits of the last token of each text, which a GPU may still be computing.
    fn read(&mut self, tokens: &[u32]) -> Result<Tensor<B, 3>, Failure> {
        let (model, state) = (self.model, &mut self.state);
        let logits = model.forward(tokens, state, self.policy, Logits::Last);
        logits.map_err(Failure::bad)
    }
}
