//! A prompt and what a model goes on with, token by token.

use super::floats;
use crate::failure::Failure;
use burn::prelude::*;
use butterfly::AttentionBackend;
use butterfly_models::{Logits, Model, Policy, Sampler, State};

/// A model in the middle of a text.
pub(super) struct Continuation<'a, B: AttentionBackend> {
    pub(super) model: &'a Model<B>,
    pub(super) policy: &'a Policy,
    pub(super) state: State<B>,
    pub(super) sampler: Sampler,
}

impl<B: AttentionBackend> Continuation<'_, B> {
    /// Reads the prompt in chunks, and gives the first token. The sampler draws once, however many
    /// chunks there are.
    pub(super) fn prefill(&mut self, prompt: &[u32], chunk: usize) -> Result<u32, Failure> {
        let last = prompt.len().saturating_sub(1) / chunk * chunk;
        for chunk in prompt[..last].chunks(chunk) {
            self.read(chunk)?;
        }
        self.next(&prompt[last..])
    }

    /// The token after these.
    pub(super) fn next(&mut self, tokens: &[u32]) -> Result<u32, Failure> {
        let logits = self.read(tokens)?;
        Ok(self.sampler.next(&floats(logits)?))
    }

    /// The last token's logits, which nobody has waited for.
    fn read(&mut self, tokens: &[u32]) -> Result<Tensor<B, 3>, Failure> {
        let (model, state) = (self.model, &mut self.state);
        let logits = model.forward(tokens, state, self.policy, Logits::Last);
        logits.map_err(Failure::bad)
    }
}
