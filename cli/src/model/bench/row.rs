//! Measures one prompt and the tokens after it.

use super::super::finite::Watch;
use super::super::{Place, chunk_of, floats, sync};
use super::Work;
use super::table::Row;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_models::{Extent, Footprint, Logits, Model, Policy, Profile, Sampler, Taken};
use std::time::Instant;

/// Most tokens whose decode is profiled.
const PROFILED: usize = 16;

/// Profiles of prefill and decode that are off.
fn off() -> [Profile; 2] {
    Default::default()
}

impl Work<'_> {
    /// Measures one prompt, after a warm-up that compiles what is compiled at first use.
    pub(super) fn row<B: AttentionBackend>(
        &self,
        place: &Place<B>,
        (model, policy, attention): (&Model<B>, &Policy, &str),
        taken: Taken,
        tokens: usize,
        watch: &mut Watch,
    ) -> Result<Row, Failure> {
        let decode = self.measure.decode as usize;
        let capacity = self.run.capacity.map_or(tokens + decode, |n| n as usize);
        let chunk = chunk_of::<B>(self.run) as usize;
        let vocabulary = model.sizes.vocabulary;
        let scattered = |i: u32| i.wrapping_mul(2_654_435_761) % vocabulary;
        let prompt: Vec<u32> = (0..).take(tokens).map(scattered).collect();
        let mut run = |length: usize, decode: usize, [of_prompt, of_decode]: [Profile; 2]| {
            let mut state = model.state(1, Some(capacity), policy);
            state.profile = of_prompt;
            state.set_prompt(length);
            let mut sampler = Sampler::new(Default::default());
            sync::<B>(&place.device)?;
            let started = Instant::now();
            let mut last = None;
            for chunk in prompt[..length].chunks(chunk) {
                let logits = model.forward(chunk, &mut state, policy, Logits::Last);
                last = Some(logits.map_err(Failure::bad)?);
            }
            sync::<B>(&place.device)?;
            let prefill = started.elapsed().as_secs_f64();
            let mut choose = |logits, position| {
                let logits = floats(logits)?;
                watch.see(&logits, logits.len(), [0, position]);
                Ok::<_, Failure>(sampler.next(&logits))
            };
            let mut token = match last {
                Some(last) => choose(last, length - 1)?,
                None => 0,
            };
            let first = started.elapsed().as_secs_f64();
            state.profile = of_decode;
            let started = Instant::now();
            for step in 0..decode {
                let logits = model.forward(&[token], &mut state, policy, Logits::Last);
                token = choose(logits.map_err(Failure::bad)?, length + step)?;
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
        let cached = policy.cached(capacity as u64, chunk as u64);
        let extent = Extent {
            batch: 1,
            capacity: capacity as u64,
            cached,
            expanded: policy.expanded(capacity as u64, chunk as u64),
            chunk: chunk.min(tokens) as u64,
            logits: 1,
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
            let lengths = [tokens, chunk, capacity, profiled];
            predicted = Some(self.predict(place, (&model.config, policy), lengths)?);
        }
        let each = 1.0 / profiled.max(1) as f64;
        let of_token = of_decode.seconds().into_iter();
        let key = model.config.attention.cached() * u64::from(place.dtype.bytes());
        Ok(Row {
            attention: attention.into(),
            prompt_tokens: tokens,
            prefill_seconds: prefill,
            prefill_tokens_per_second: tokens as f64 / prefill,
            first_token_seconds: first,
            decode_milliseconds: (decode > 0).then(|| 1e3 * decoded / decode as f64),
            decode_tokens_per_second: (decode > 0).then(|| decode as f64 / decoded),
            memory,
            cache_bytes: key * cached,
            profile: of_prompt.seconds(),
            decode_profile: of_token.map(|(part, all)| (part, each * all)).collect(),
            predicted,
            expert_load: of_prompt.loads(),
            layers: self.layers(policy),
        })
    }
}
