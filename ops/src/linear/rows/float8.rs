//! FP8 with scales for blocks of 128 by 128: elements e4m3fn of one byte.
//!
//! An element is `number * scale`, with the scale of its block of rows and columns; the last blocks
//! may be ragged. The scales are called inverse (`weight_scale_inv`), being those that undo the
//! scaling: they multiply.
//!
//! # Source
//! `weight_dequant` in DeepSeek-V3's `inference/kernel.py`; e4m3fn: OCP 8-bit Floating Point
//! Specification 1.0.

use super::super::packed::SQUARE;
use super::floats::Floats;
use super::simd::Simd;
use super::weight::{Codes, Loaded, PIECE, Row, Scale, Weight, unset, whole};

/// A matrix of floats of 8 bits, or one of its rows.
#[derive(Clone, Copy)]
pub(super) struct Float8<'a> {
    numbers: &'a [u8],
    scales: Floats<'a>,
    k: usize,
}

impl<'a> Float8<'a> {
    /// Rows of `k` elements.
    pub(super) fn new(numbers: &'a [u8], scales: Floats<'a>, k: usize) -> Self {
        Self { numbers, scales, k }
    }
}

impl Weight for Float8<'_> {
    type Row = Self;

    #[inline(always)]
    fn row(self, row: usize) -> Self {
        let columns = self.k.div_ceil(SQUARE);
        Self {
            numbers: &self.numbers[row * self.k..][..self.k],
            scales: self.scales.part(row / SQUARE * columns, columns),
            k: self.k,
        }
    }
}

impl<'a> Row for Float8<'a> {
    type Codes = E4m3<'a>;
    type Factors = Scale<f32>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = false;
    const BYTES: usize = PIECE;

    #[inline(always)]
    fn place(self, block: usize) -> *const u8 {
        self.numbers[block * PIECE..].as_ptr()
    }

    #[inline(always)]
    fn factors<S: Simd>(self, block: usize) -> Scale<f32> {
        Scale(self.scales.get::<S>(block * PIECE / SQUARE))
    }

    #[inline(always)]
    fn codes(self, block: usize, _piece: u32) -> E4m3<'a> {
        E4m3(&self.numbers[block * PIECE..])
    }
}

/// Floats e4m3fn: a sign, 4 bits of exponent, 3 of mantissa, no infinity. They may be fewer than a
/// piece at the end of a row, or more.
pub(super) struct E4m3<'a>(&'a [u8]);

impl Codes for E4m3<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let (mut all, last) = (unset::<S>(), &mut [0; PIECE]);
            let piece = whole(self.0, last);
            for i in 0..PIECE / S::N {
                all[i] = S::e4m3(S::load_i8(piece.as_ptr().add(i * S::N)));
            }
            all
        }
    }
}
