//! Generation: prefill of a prompt, then decode token by token.

use super::finite::Watch;
use super::floats;
use crate::failure::Failure;
use burn::prelude::*;
use butterfly::AttentionBackend;
use butterfly_models::{Logits, Model, Policy, Sampler, State};
use indicatif::ProgressBar;

/// A model in the middle of a text.
pub(super) struct Continuation<'a, B: AttentionBackend> {
    pub(super) model: &'a Model<B>,
    pub(super) policy: &'a Policy,
    pub(super) state: State<B>,
    pub(super) sampler: Sampler,
    /// Checks the logits that tokens are drawn from.
    pub(super) watch: Watch,
}

impl<B: AttentionBackend> Continuation<'_, B> {
    /// Reads the prompt in chunks, and returns the first token after it; `None` if its logits are
    /// not finite. The sampler draws once, however many chunks there are. `bar` counts tokens.
    pub(super) fn prefill(
        &mut self,
        prompt: &[u32],
        chunk: usize,
        bar: &ProgressBar,
    ) -> Result<Option<u32>, Failure> {
        let last = prompt.len().saturating_sub(1) / chunk * chunk;
        for chunk in prompt[..last].chunks(chunk) {
            let logits = self.read(chunk)?;
            // Chunks are queued on a GPU without waiting for it; only a visible bar needs to wait.
            if !bar.is_hidden() {
                super::sync::<B>(&logits.device())?;
            }
            bar.inc(chunk.len() as u64);
        }
        let token = self.next(&prompt[last..])?;
        bar.inc((prompt.len() - last) as u64);
        Ok(token)
    }

    /// The token after these; `None` if its logits are not finite.
    pub(super) fn next(&mut self, tokens: &[u32]) -> Result<Option<u32>, Failure> {
        let logits = floats(self.read(tokens)?)?;
        let last = self.state.position() - 1;
        let finite = self.watch.see(&logits, logits.len(), [0, last]);
        Ok(finite.then(|| self.sampler.next(&logits)))
    }

    /// The logits of the last token, which a GPU may still be computing.
    fn read(&mut self, tokens: &[u32]) -> Result<Tensor<B, 3>, Failure> {
        let (model, state) = (self.model, &mut self.state);
        let logits = model.forward(tokens, state, self.policy, Logits::Last);
        logits.map_err(Failure::bad)
    }
}
