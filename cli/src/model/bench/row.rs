//! Measures one prompt and the tokens after it, or those of several sequences together.

use super::super::finite::Watch;
use super::super::{Place, chunk_of_each, floats, sync};
use super::table::Row;
use super::{Work, extent};
use crate::failure::Failure;
use burn::prelude::*;
use butterfly::AttentionBackend;
use butterfly_models::{
    Extent, Footprint, Logits, Model, Policy, Profile, Sampler, Taken, greedy, prompt_chunks,
};
use std::ops::Range;
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
    /// Tokens of the prompt of each of `batch` sequences, the longest first, which has `tokens`.
    fn lengths(&self, batch: usize, tokens: usize) -> Vec<usize> {
        let shortest = self.measure.shortest_prompt.map_or(tokens, |n| n as usize);
        let shorter = |i: usize| (tokens - shortest) * i / (batch - 1).max(1);
        (0..batch).map(|i| tokens - shorter(i)).collect()
    }

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
        let chunk = |sequences| chunk_of_each::<B>(self.run, sequences);
        let vocabulary = model.sizes.vocabulary;
        // A row of tokens for each sequence.
        let prompts = |sequences: usize, Range { start, end }: Range<usize>| -> Vec<u32> {
            let starts = (0..sequences).map(|sequence| sequence * tokens);
            let numbers = starts.flat_map(|first| first + start..first + end);
            numbers.map(|n| scattered(n, vocabulary)).collect()
        };
        let lengths = self.lengths(batch, tokens);
        let mut run = |most: usize, decode: usize, [of_prompt, of_decode]: [Profile; 2]| {
            let lengths: Vec<usize> = lengths.iter().map(|length| most.min(*length)).collect();
            let mut state = model.state(batch, Some(capacity), policy);
            state.profile = of_prompt;
            state.set_prompt(most);
            let mut sampler = Sampler::new(Default::default());
            sync::<B>(&place.device)?;
            let started = Instant::now();
            // Logits of the prompts that ended, the shortest first.
            let mut last = Vec::new();
            for part in prompt_chunks(&lengths, chunk) {
                let tokens = prompts(part.prompts, part.tokens);
                state.only_first(part.prompts);
                let logits = model.forward(&tokens, &mut state, policy, Logits::Last);
                let logits = logits.map_err(Failure::bad)?;
                let ended = part.ended.len();
                if ended > 0 {
                    last.push(logits.narrow(0, part.ended.start, ended));
                }
            }
            state.only_first(batch);
            sync::<B>(&place.device)?;
            let prefill = started.elapsed().as_secs_f64();
            last.reverse();
            let last = (!last.is_empty()).then(|| Tensor::cat(last, 0));
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
                Some(last) => choose(last, most - 1)?,
                None => vec![0; batch],
            };
            let first = started.elapsed().as_secs_f64();
            state.profile = of_decode;
            let started = Instant::now();
            for step in 0..decode {
                let logits = model.forward(&next, &mut state, policy, Logits::Last);
                next = choose(logits.map_err(Failure::bad)?, most + step)?;
            }
            Ok::<_, Failure>([prefill, first, started.elapsed().as_secs_f64()])
        };
        place.memory.release();
        // Warm up with every length of chunk that occurs.
        let shortest = lengths.last().copied().unwrap_or(tokens);
        let each = chunk(batch);
        match shortest < tokens {
            true => drop(run(tokens, 2.min(decode), off())?),
            false => {
                run(tokens.min(each), 2.min(decode), off())?;
                if !tokens.is_multiple_of(each) && tokens > each {
                    run(tokens % each, 0, off())?;
                }
            }
        }
        let [prefill, first, decoded] = run(tokens, decode, off())?;
        let sizes = [batch, capacity, each, tokens - shortest];
        let extent = Extent {
            chunk: each.min(tokens) as u64,
            ..extent(policy, sizes.map(|n| n as u64))
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
            let lengths = [batch, tokens, each, capacity, profiled];
            predicted = Some(self.predict(place, (&model.config, policy), lengths)?);
        }
        let step = 1.0 / profiled.max(1) as f64;
        let of_token = of_decode.seconds().into_iter();
        let key = model.config.attention.cached() * u64::from(place.dtype.bytes());
        Ok(Row {
            attention: attention.into(),
            batch,
            prompt_tokens: tokens,
            shortest_prompt: (shortest < tokens).then_some(shortest),
            prefill_seconds: prefill,
            prefill_tokens_per_second: lengths.iter().sum::<usize>() as f64 / prefill,
            first_token_seconds: first,
            decode_milliseconds: (decode > 0).then(|| 1e3 * decoded / decode as f64),
            decode_tokens_per_second: (decode > 0).then(|| (batch * decode) as f64 / decoded),
            memory,
            cache_bytes: key * extent.batch * extent.cached,
            profile: of_prompt.seconds(),
            decode_profile: of_token.map(|(part, all)| (part, step * all)).collect(),
            predicted,
            expert_load: of_prompt.loads(),
            layers: self.layers(policy),
        })
    }
}
