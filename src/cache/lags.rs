//! Sequences of different lengths in one cache.

use super::KvCache;
use burn::prelude::*;
use burn::tensor::DType;

/// How many tokens each sequence of a cache is behind the longest.
#[derive(Clone, Debug, Default)]
pub(super) struct Lags<B: Backend> {
    /// Empty if all are equally long.
    counts: Vec<usize>,
    /// Those of the first sequences, as operations take them, once one has asked for them.
    on_device: Option<Tensor<B, 1, Int>>,
}

impl<B: Backend> Lags<B> {
    /// Those of the first `sequences`; empty if these are equally long and no other is longer.
    pub(super) fn of(&self, sequences: usize) -> &[usize] {
        let first = &self.counts[..sequences.min(self.counts.len())];
        match first.iter().all(|lag| *lag == 0) {
            true => &[],
            false => first,
        }
    }

    /// Of the shortest sequence.
    pub(super) fn most(&self) -> usize {
        self.counts.iter().max().copied().unwrap_or(0)
    }

    /// The first `sequences` of `all` have got so many tokens, and the others none.
    pub(super) fn advance(&mut self, sequences: usize, all: usize, tokens: usize) {
        if sequences < all {
            self.counts.resize(all, 0);
            self.counts[sequences..]
                .iter_mut()
                .for_each(|lag| *lag += tokens);
            self.on_device = None;
        }
    }

    /// The last `cut` tokens of the longest sequence, and those at their positions, are gone.
    pub(super) fn shorten(&mut self, cut: usize) {
        if cut > 0 && !self.counts.is_empty() {
            let counts = self.counts.iter().map(|lag| lag.saturating_sub(cut));
            (self.counts, self.on_device) = (counts.collect(), None);
        }
    }

    pub(super) fn set(&mut self, counts: &[usize]) {
        if self.counts != counts {
            (self.counts, self.on_device) = (counts.to_vec(), None);
        }
    }

    /// As [`of`](Self::of), on the device, in i32; `None` if there are none.
    pub(super) fn on(&mut self, sequences: usize, device: &B::Device) -> Option<Tensor<B, 1, Int>> {
        let counts = self.of(sequences);
        if counts.is_empty() {
            return None;
        }
        if let Some(tensor) = &self.on_device
            && tensor.dims()[0] == sequences
        {
            return Some(tensor.clone());
        }
        let counts = counts
            .iter()
            .map(|lag| i32::try_from(*lag).unwrap_or(i32::MAX));
        let data = TensorData::new(counts.collect(), [sequences]);
        let tensor = Tensor::from_data(data, (device, DType::I32));
        self.on_device = Some(tensor.clone());
        Some(tensor)
    }
}

impl<B: Backend> KvCache<B> {
    /// How many tokens each sequence is behind the longest, of which [`len`](Self::len) is the number of tokens; empty if all
    /// are equally long.
    ///
    /// Appending to the first sequences alone makes the others fall behind.
    pub fn lags(&self) -> &[usize] {
        self.lags.of(self.sizes[0])
    }

    /// As [`truncate`](Self::truncate), and sets how many tokens each sequence is behind after it: to go back to where an
    /// append began.
    pub fn go_back(&mut self, len: usize, lags: &[usize]) -> bool {
        let there = self.truncate(len);
        if there {
            self.lags.set(lags);
        }
        there
    }
}
