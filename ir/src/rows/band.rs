//! Bands: simple regions whose union is the set of (query, key) pairs of a row.
//!
//! For the queries of one block, every leaf of the pattern algebra and every combination
//! of leaves is a finite union of bands. Kernels of all targets execute bands and nothing
//! else, so a new leaf needs no new kernel.

use serde::{Deserialize, Serialize};

/// Stands for "no limit" in [`Band::end`] and, negated, in [`Band::first`]: larger than any
/// position, and small enough that adding a position does not overflow an `i32`.
pub const UNBOUNDED: i32 = 1 << 30;

/// Largest number of tokens of a sequence, so that every position is below [`UNBOUNDED`] and the
/// sum of a position and a limit of a band fits an `i32`.
pub const MAX_TOKENS: u32 = UNBOUNDED as u32 - 1;

/// The (query, key) region `lo <= k < hi` and `q + first <= k < q + end`, in tokens.
///
/// `lo` and `hi` are absolute key positions; `first` and `end` are relative to the
/// absolute position of the query. `lo` and `first` are inclusive, `hi` and `end` exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Band {
    /// First key.
    pub lo: i32,
    /// One past the last key.
    pub hi: i32,
    /// First key relative to the query; `-UNBOUNDED` for none.
    pub first: i32,
    /// One past the last key relative to the query; `UNBOUNDED` for none.
    pub end: i32,
}

impl Band {
    /// The keys `lo..hi`, for every query.
    pub fn keys(lo: i32, hi: i32) -> Self {
        Self {
            lo,
            hi,
            first: -UNBOUNDED,
            end: UNBOUNDED,
        }
    }

    /// The keys of `q + first .. q + end` that lie in `0..kv_len`.
    pub fn relative(first: i32, end: i32, kv_len: i32) -> Self {
        Self {
            lo: 0,
            hi: kv_len,
            first,
            end,
        }
    }

    /// [`Band::first`] of a sliding window of `tokens` keys, the query's own included.
    pub fn window_first(tokens: u32) -> i32 {
        1 - i64::from(tokens).min(i64::from(UNBOUNDED) + 1) as i32
    }

    /// Whether the band is empty because `lo..hi` or `first..end` is.
    pub fn is_empty(&self) -> bool {
        self.lo >= self.hi || self.first >= self.end
    }

    /// The keys of query `q` in this band, as `(start, end)`, end exclusive; empty if
    /// `start >= end`.
    pub fn of_query(&self, q: i32) -> (i32, i32) {
        (self.lo.max(q + self.first), self.hi.min(q + self.end))
    }

    /// Whether query `q` sees key `k`.
    pub fn contains(&self, q: i32, k: i32) -> bool {
        let (start, end) = self.of_query(q);
        start <= k && k < end
    }

    /// Keys seen by at least one query of `q0..=q1`, as `(start, end)`, end exclusive.
    ///
    /// The range is exact: in a band that is not empty, the ranges of consecutive queries
    /// overlap or touch.
    pub fn seen_by_any(&self, q0: i32, q1: i32) -> (i32, i32) {
        if self.is_empty() {
            return (0, 0);
        }
        (self.lo.max(q0 + self.first), self.hi.min(q1 + self.end))
    }

    /// Keys seen by every query of `q0..=q1`, as `(start, end)`, end exclusive.
    pub fn seen_by_all(&self, q0: i32, q1: i32) -> (i32, i32) {
        (self.lo.max(q1 + self.first), self.hi.min(q0 + self.end))
    }

    /// The band of the pairs that are in both bands.
    pub fn intersect(&self, other: &Self) -> Self {
        Self {
            lo: self.lo.max(other.lo),
            hi: self.hi.min(other.hi),
            first: self.first.max(other.first),
            end: self.end.min(other.end),
        }
    }

    /// Whether each of the four limits of `self` is at least as tight as that of `other`; then
    /// every pair of `self` is in `other`.
    pub fn within(&self, other: &Self) -> bool {
        other.lo <= self.lo
            && self.hi <= other.hi
            && other.first <= self.first
            && self.end <= other.end
    }
}

/// Keys that query `q` sees through the union of `bands`, as sorted half-open ranges with gaps
/// between them.
pub fn keys_of_query(bands: &[Band], q: i32) -> Vec<(i32, i32)> {
    let ranges = bands.iter().map(|band| band.of_query(q));
    merge(ranges.filter(|(start, end)| start < end).collect())
}

/// Sorts half-open ranges and joins those that overlap or touch.
pub fn merge(mut ranges: Vec<(i32, i32)>) -> Vec<(i32, i32)> {
    ranges.sort_unstable();
    let mut merged: Vec<(i32, i32)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}
