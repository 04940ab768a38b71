//! Prompts → batches of prompts of equal length, each run from its first token to its last.

use super::continuation::{Continuation, New};
use super::finite::Watch;
use super::interrupt::Interrupt;
use super::prompts::Prompt;
use super::{Place, chunk_of_each};
use crate::args::Generate;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_models::{Checkpoint, Extent, Footprint, Model, Policy};
use indicatif::ProgressBar;
use std::collections::HashMap;
use std::time::Instant;

/// Most prompts of a batch. Weights are read once for all of them, so that more would hardly be
/// faster; and all wait for the one that ends last.
const MOST: usize = 256;

/// The batches of a run.
pub(super) struct Plan {
    /// Prompts by their place among all; those of a batch have the same length.
    pub(super) batches: Vec<Vec<usize>>,
    /// Of the batch that needs most memory.
    pub(super) extent: Extent,
}

/// Groups prompts so that every batch fits into the memory of the device, if a single prompt does.
pub(super) fn plan<B: AttentionBackend>(
    place: &Place<B>,
    folder: &Checkpoint,
    policy: &Policy,
    prompts: &[Prompt],
    command: &Generate,
) -> Result<Plan, Failure> {
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    let extent = |batch: &Vec<usize>| {
        let length = batch.first().map_or(0, |first| lengths[*first]);
        let capacity = capacity(command, length) as u64;
        let chunk = chunk_of_each::<B>(&command.run, batch.len()).min(length) as u64;
        Extent {
            batch: batch.len() as u64,
            capacity,
            cached: policy.cached(capacity, chunk),
            expanded: policy.expanded(capacity, chunk),
            chunk,
            logits: 1,
        }
    };
    let taken = Model::<B>::check(folder, place.dtype, &place.device).map_err(Failure::bad)?;
    let needs =
        |extent| Footprint::new::<B>(&folder.config, &folder.sizes, taken, place.target(), extent);
    let mut most = MOST;
    loop {
        let batches = group(&lengths, most);
        let extents = batches.iter().map(extent);
        let extent = extents.max_by_key(|extent| needs(*extent).total());
        let extent = extent.expect("there is a prompt");
        if most == 1 || place.has_room(folder.path(), &needs(extent)) {
            return Ok(Plan { batches, extent });
        }
        most /= 2;
    }
}

/// Groups indices of equal lengths, at most so many together. Batches are in the order of their
/// first index, and so are the indices of each.
fn group(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut open = HashMap::new();
    for (index, length) in lengths.iter().enumerate() {
        let batch = *open.entry(*length).or_insert(batches.len());
        match batches.get_mut(batch) {
            Some(batch) if batch.len() < most => batch.push(index),
            Some(_) | None => {
                open.insert(*length, batches.len());
                batches.push(vec![index]);
            }
        }
    }
    batches
}

/// Tokens that a text with a prompt of `length` tokens has room for.
fn capacity(command: &Generate, length: usize) -> usize {
    let all = length + command.max_new_tokens as usize;
    command.run.capacity.map_or(all, |tokens| tokens as usize)
}

/// What batches share.
pub(super) struct Running<'a, B: AttentionBackend> {
    pub(super) command: &'a Generate,
    pub(super) prompts: &'a [Prompt],
    pub(super) model: &'a Model<B>,
    pub(super) policy: &'a Policy,
    pub(super) interrupt: Interrupt,
    /// When the command started.
    pub(super) started: Instant,
}

/// Sums over batches.
#[derive(Default)]
pub(super) struct Sums {
    /// Tokens of prompts that were read, and what that took.
    pub(super) read: usize,
    pub(super) prefill_seconds: f64,
    /// Tokens that decode steps have drawn, and what that took.
    pub(super) drawn: usize,
    pub(super) decode_seconds: f64,
    /// From the start of the command to its first token.
    pub(super) first_token_seconds: Option<f64>,
    pub(super) new: usize,
    pub(super) batches: usize,
    pub(super) watch: Watch,
}

impl Sums {
    /// Tokens of prompts and new ones, over the time that reading and generating them took.
    pub(super) fn tokens_per_second(&self) -> f64 {
        (self.read + self.new) as f64 / (self.prefill_seconds + self.decode_seconds)
    }
}

impl<B: AttentionBackend> Running<'_, B> {
    /// Continues the prompts of a batch. Each draws from a sequence of random numbers of its own,
    /// so that it becomes what it would become alone. `take` is as for [`Continuation::decode`];
    /// `bar` counts tokens of prompts, and is gone when the first token is there.
    pub(super) fn run(
        &self,
        batch: &[usize],
        sums: &mut Sums,
        bar: &ProgressBar,
        take: impl FnMut(usize, u32) -> Result<bool, Failure>,
    ) -> Result<Vec<New>, Failure> {
        let Self {
            command,
            model,
            policy,
            ..
        } = *self;
        let prompts = batch.iter().map(|index| &self.prompts[*index]);
        let number = |prompt: &Prompt| prompt.line.unwrap_or(0);
        let texts = prompts
            .clone()
            .map(|prompt| (command.draw.sampler(), number(prompt)));
        let prompts: Vec<&[u32]> = prompts.map(|prompt| &prompt.tokens[..]).collect();
        let length = prompts.first().map_or(0, |prompt| prompt.len());
        let state = model.state(batch.len(), Some(capacity(command, length)), policy);
        let mut continuation = Continuation {
            model,
            policy,
            state,
            texts: texts.collect(),
            watch: std::mem::take(&mut sums.watch),
            interrupt: Some(self.interrupt),
        };
        let prefill = Instant::now();
        let first =
            continuation.prefill(&prompts, chunk_of_each::<B>(&command.run, batch.len()), bar)?;
        bar.finish_and_clear();
        sums.prefill_seconds += prefill.elapsed().as_secs_f64();
        sums.read += continuation.state.position() * batch.len();
        if first.iter().any(Option::is_some) {
            let now = || self.started.elapsed().as_secs_f64();
            sums.first_token_seconds.get_or_insert_with(now);
        }
        let ends: &[u32] = match command.ignore_end {
            true => &[],
            false => &model.sizes.ends,
        };
        let decoded = continuation.decode(first, ends, command.max_new_tokens as usize, take)?;
        sums.drawn += decoded.drawn;
        sums.decode_seconds += decoded.seconds;
        sums.new += decoded
            .texts
            .iter()
            .map(|new| new.tokens.len())
            .sum::<usize>();
        sums.batches += 1;
        sums.watch = continuation.watch;
        Ok(decoded.texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_go_together_up_to_the_most() {
        let lengths = [3, 5, 3, 3, 5, 3, 1];
        assert_eq!(
            group(&lengths, 256),
            [vec![0, 2, 3, 5], vec![1, 4], vec![6]]
        );
        assert_eq!(
            group(&lengths, 2),
            [vec![0, 2], vec![1, 4], vec![3, 5], vec![6]]
        );
        let alone: Vec<Vec<usize>> = (0..lengths.len()).map(|index| vec![index]).collect();
        assert_eq!(group(&lengths, 1), alone);
    }
}
