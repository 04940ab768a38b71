//! Streams of keys: how many tokens one key of a kernel stands for.

use super::band::{Band, UNBOUNDED};

/// A sequence of keys that stand for `stride` consecutive tokens each.
///
/// The stride is 1 for the keys of the tokens themselves, and the block size for summaries of
/// blocks. Key `j` stands for the tokens `j * stride .. (j + 1) * stride`, and a query sees it
/// through a band exactly when it sees all of these tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Number of tokens that a key stands for, at least 1.
    pub stride: u32,
}

impl Stream {
    /// One key per token.
    pub const TOKENS: Self = Self { stride: 1 };

    /// The keys `start..end` that the query at token `q` sees through `band`, whose `lo` and `hi`
    /// count keys and whose `first` and `end` count tokens; the range may be empty.
    pub fn of_query(&self, band: &Band, q: i32) -> (i32, i32) {
        let stride = self.stride.cast_signed();
        let start = match band.first {
            first if first <= -UNBOUNDED => 0,
            // Rounded up: of an earlier key the query does not see all tokens.
            first => -(-(q + first)).div_euclid(stride),
        };
        let end = match band.end {
            end if end >= UNBOUNDED => band.hi,
            end => (q + end).div_euclid(stride),
        };
        (band.lo.max(start), band.hi.min(end))
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self::TOKENS
    }
}
