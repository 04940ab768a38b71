//! Prompts → batches of prompts, each run from its first token to its last.

use super::continuation::{Continuation, New};
use super::finite::Watch;
use super::interrupt::Interrupt;
use super::prompts::Prompt;
use super::{Place, chunk_of_each};
use crate::args::Generate;
use crate::failure::Failure;
use crate::output;
use butterfly::{AttentionBackend, MOST_LAGS, Sparsity};
use butterfly_models::{Checkpoint, Extent, Footprint, LayerPolicy, Model, Policy};
use indicatif::ProgressBar;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

/// Most prompts of a batch. Weights are read once for all of them, so that more would hardly be
/// faster; and all wait for the one that ends last.
const MOST: usize = 256;

/// The batches of a run.
pub(super) struct Plan {
    /// Prompts by their place among all; those of a batch have the same length, or the longest comes first.
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
    let longest = lengths.iter().max().copied().unwrap_or(0);
    let is_even = lengths.iter().all(|length| *length == longest);
    let even = policy.takes_no_lags();
    if let (false, Some(what)) = (is_even, even) {
        output::note(format_args!("prompts of equal length run together: {what}"));
    }
    let capacity = capacity(command, longest);
    let staged = |layer: &LayerPolicy| {
        let Sparsity { pattern, block, .. } = layer.plan.sparsity();
        let blocks = u32::try_from(capacity).unwrap_or(u32::MAX).div_ceil(*block);
        pattern.stage_count(blocks) > 1
    };
    if !is_even
        && command.run.capacity.is_none()
        && policy.attention().any(|(_, layer)| staged(layer))
    {
        output::note(format_args!(
            "all prompts get the stages of {capacity} tokens, as the longest has with what is new; --capacity sets that"
        ));
    }
    let extent = |batch: &Vec<usize>| {
        let [length, shortest] =
            [batch.first(), batch.last()].map(|i| i.map_or(0, |i| lengths[*i]));
        let capacity = capacity as u64;
        let chunk = chunk_of_each::<B>(&command.run, batch.len()).min(length) as u64;
        // What is behind keeps the tokens of a window from being forgotten.
        let lag = (length - shortest) as u64;
        Extent {
            batch: batch.len() as u64,
            capacity,
            cached: policy.cached(capacity, chunk + lag),
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
        let batches = match is_even || even.is_some() {
            true => group(&lengths, most),
            false => in_order(&lengths, most.min(MOST_LAGS)),
        };
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

/// Indices from the longest to the shortest, at most so many together.
fn in_order(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| Reverse(lengths[*index]));
    order.chunks(most).map(<[usize]>::to_vec).collect()
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
    /// Tokens from which the stages of all are derived, and for which there is room.
    pub(super) capacity: usize,
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
        let state = model.state(batch.len(), Some(self.capacity), policy);
        let mut continuation = Continuation {
            model,
            policy,
            state,
            texts: texts.collect(),
            watch: std::mem::take(&mut sums.watch),
            interrupt: Some(self.interrupt),
        };
        let prefill = Instant::now();
        let chunk = |texts| chunk_of_each::<B>(&command.run, texts);
        let first = continuation.prefill(&prompts, chunk, bar)?;
        bar.finish_and_clear();
        sums.prefill_seconds += prefill.elapsed().as_secs_f64();
        let state = &continuation.state;
        let behind: usize = state.lags().iter().sum();
        sums.read += state.position() * batch.len() - behind;
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

    #[test]
    fn the_longest_come_first() {
        let lengths = [3, 5, 3, 9, 1];
        assert_eq!(in_order(&lengths, 64), [vec![3, 1, 0, 2, 4]]);
        assert_eq!(in_order(&lengths, 2), [vec![3, 1], vec![0, 2], vec![4]]);
    }
}
