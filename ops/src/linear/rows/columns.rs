//! The output of a product, to which threads write at the same time.

use std::marker::PhantomData;
use std::ops::Range;

/// Columns of y, of which each task writes its own.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    y: *mut f32,
    len: usize,
    /// Elements of a row of y.
    stride: usize,
    first: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks write different columns, and nobody reads before all are done.
unsafe impl Send for Columns<'_> {}
// SAFETY: as above.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Those of rows of `stride` elements.
    pub(super) fn new(y: &'a mut [f32], stride: usize) -> Self {
        Self {
            y: y.as_mut_ptr(),
            len: y.len(),
            stride,
            first: 0,
            borrowed: PhantomData,
        }
    }

    /// The columns from `first` on.
    pub(super) fn from(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// Writes an element.
    ///
    /// # Safety
    /// No other task writes or reads the column.
    #[inline(always)]
    pub(super) unsafe fn put(self, row: usize, column: usize, value: f32) {
        let at = row * self.stride + self.first + column;
        assert!(at < self.len, "an element of y");
        // SAFETY: within y; nobody else writes there.
        unsafe { self.y.add(at).write(value) }
    }

    /// Where some columns of the first `m` rows begin, and the distance of rows.
    pub(super) fn part(self, m: usize, columns: Range<usize>) -> (*mut f32, usize) {
        let first = self.first + columns.start;
        let end = m.saturating_sub(1) * self.stride + self.first + columns.end;
        assert!(first <= end && end <= self.len, "columns of y");
        // SAFETY: within y.
        (unsafe { self.y.add(first) }, self.stride)
    }
}
