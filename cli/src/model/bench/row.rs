//! Measures one prompt and the tokens after it, or those of several sequences together.

use super::super::finite::Watch;
use super::super::{Place, chunk_of_each, floats, sync};
use super::table::Row;
use super::{Work, extent};
use crate::failure::Failure;
use burn::prelude::*;
use butterfly::AttentionBackend;
use butterfly_models::{Extent, Footprint, Logits, Model, Policy, Profile, Sampler, Taken, greedy};
use std::time::Instant;

/// Most tokens whose decode is profiled.
const PROFILED: usize = 16;

/// The n-th of the tokens that are read, which are scattered over the vocabulary.
#[expect(
    clippy::cast_possible_truncation,
    reason = "which tokens they are does not matter"
)]
fn scattered(n: usize, vocabulary: u32) -> u32 {
    (n as u32).wrapping_mul(2_654_435_761) % vocabulary
}

/// Profiles of prefill and decode that are off.
fn off() -> [Profile; 2] {
    Default::default()
}

impl Work<'_> {
    /// Measures the prompts of `batch` sequences of `tokens` tokens each, after a warm-up that compiles
    /// what is compiled at first use.
    pub(super) fn row<B: AttentionBackend>(
        &self,
        place: &Place<B>,
        (model, policy, attention): (&Model<B>, &Policy, &str),
        taken: Taken,
        [batch, tokens]: [usize; 2],
        watch: &mut Watch,
    ) -> Result<Row, Failure> {
        let decode = self.measure.decode as usize;
        let capacity = self.run.capacity.map_or(tokens + decode, |n| n as usize);
        let chunk = chunk_of_each::<B>(self.run, batch);
        let vocabulary = model.sizes.vocabulary;
        // A row of tokens for each sequence.
        let prompts = |from: usize, to: usize| -> Vec<u32> {
            let starts = (0..batch).map(|sequence| sequence * tokens);
            let numbers = starts.flat_map(|start| start + from..start + to);
            numbers.map(|n| scattered(n, vocabulary)).collect()
        };
        let mut run = |length: usize, decode: usize, [of_prompt, of_decode]: [Profile; 2]| {
            let mut state = model.state(batch, Some(capacity), policy);
            state.profile = of_prompt;
            state.set_prompt(length);
            let mut sampler = Sampler::new(Default::default());
            sync::<B>(&place.device)?;
            let started = Instant::now();
            let mut last = None;
            for from in (0..length).step_by(chunk) {
                let tokens = prompts(from, length.min(from + chunk));
                let logits = model.forward(&tokens, &mut state, policy, Logits::Last);
                last = Some(logits.map_err(Failure::bad)?);
            }
            sync::<B>(&place.device)?;
            let prefill = started.elapsed().as_secs_f64();
            let mut choose = |logits: Tensor<B, 3>, position| {
                if let Some(chosen) = greedy(logits.clone()).map_err(Failure::bad)? {
                    return Ok(chosen);
                }
                let logits = floats(logits)?;
                let rows = logits.chunks(logits.len() / batch).enumerate();
                let chosen = rows.map(|(sequence, logits)| {
                    watch.see(logits, logits.len(), [sequence, position]);
                    sampler.next(logits)
                });
                Ok::<Vec<u32>, Failure>(chosen.collect())
            };
            let mut next = match last {
                Some(last) => choose(last, length - 1)?,
                None => vec![0; batch],
            };
            let first = started.elapsed().as_secs_f64();
            state.profile = of_decode;
            let started = Instant::now();
            for step in 0..decode {
                let logits = model.forward(&next, &mut state, policy, Logits::Last);
                next = choose(logits.map_err(Failure::bad)?, length + step)?;
            }
            Ok::<_, Failure>([prefill, first, started.elapsed().as_secs_f64()])
        };
        place.memory.release();
        // Warm up with every length of chunk that occurs.
        run(tokens.min(chunk), 2.min(decode), off())?;
        if !tokens.is_multiple_of(chunk) && tokens > chunk {
            run(tokens % chunk, 0, off())?;
        }
        let [prefill, first, decoded] = run(tokens, decode, off())?;
        let extent = Extent {
            chunk: chunk.min(tokens) as u64,
            ..extent(policy, [batch, capacity, chunk].map(|n| n as u64))
        };
        let needs = Footprint::new::<B>(&model.config, &model.sizes, taken, place.target(), extent);
        let memory = place.memory.beside(&needs);
        let [of_prompt, of_decode] = match self.measure.profile {
            false => off(),
            true => [Profile::on(), Profile::on()],
        };
        let profiled = decode.min(PROFILED);
        let mut predicted = None;
        if self.measure.profile {
            run(tokens, profiled, [of_prompt.clone(), of_decode.clone()])?;
            let lengths = [batch, tokens, chunk, capacity, profiled];
            predicted = Some(self.predict(place, (&model.config, policy), lengths)?);
        }
        let each = 1.0 / profiled.max(1) as f64;
        let of_token = of_decode.seconds().into_iter();
        let key = model.config.attention.cached() * u64::from(place.dtype.bytes());
        Ok(Row {
            attention: attention.into(),
            batch,
            prompt_tokens: tokens,
            prefill_seconds: prefill,
            prefill_tokens_per_second: (batch * tokens) as f64 / prefill,
            first_token_seconds: first,
            decode_milliseconds: (decode > 0).then(|| 1e3 * decoded / decode as f64),
            decode_tokens_per_second: (decode > 0).then(|| (batch * decode) as f64 / decoded),
            memory,
            cache_bytes: key * extent.batch * extent.cached,
            profile: of_prompt.seconds(),
            decode_profile: of_token.map(|(part, all)| (part, each * all)).collect(),
            predicted,
            expert_load: of_prompt.loads(),
            layers: self.layers(policy),
        })
    }
}
