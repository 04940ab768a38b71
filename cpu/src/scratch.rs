//! Scratch memory of one thread, reused for all its items and aligned to cache lines.

use std::ops::{Deref, DerefMut};

/// An array that starts at a cache line, as the aligned vector loads of the kernel require.
#[derive(Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Aligned {
    /// Makes the array at least `len` numbers long. It may hold values from earlier use.
    pub(crate) fn reserve(&mut self, len: usize) {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0.0; 16]));
        }
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: a line is sixteen f32 without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16)
        }
    }
}

/// Scratch memory for one tile of queries; panels have `lanes` query rows.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Keys of a tile, `[keys, D]`, if they are stored in 16 bits.
    pub(crate) keys: Aligned,
    /// Values of a tile, `[keys, Dv]`, if they are stored in 16 bits.
    pub(crate) values: Aligned,
    /// Queries, `[panel, D, lanes]`.
    pub(crate) queries: Aligned,
    /// Sums of weighted values, `[panel, Dv, lanes]`.
    pub(crate) output: Aligned,
    /// Logits, then weights, of one panel, `[keys, lanes]`.
    pub(crate) logits: Aligned,
    /// Running maximum, `[panel, lanes]`.
    pub(crate) maximum: Aligned,
    /// Running sum of weights, `[panel, lanes]`.
    pub(crate) sum: Aligned,
    /// Rows that are being copied from or to the caller's arrays, `[4, D or Dv]`.
    pub(crate) rows: Aligned,
    /// Start and end of the keys that each lane sees in a tile, `[band, 2, lanes]`.
    pub(crate) ranges: Aligned,
}
