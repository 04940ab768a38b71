//! MLX's affine formats: codes of 2, 4 or 8 bits, with a scale and a bias for each 32, 64 or 128.
//!
//! Codes lie in words of 32 bits, from the lowest bits on; since words are little-endian, that is
//! from the lowest bits of each byte on. An element is `scale * code + bias`; MLX rounds it to the
//! type of the scale, here it stays f32.
//!
//! # Source
//! `mlx.core.quantize` and `mlx.core.dequantize` in MLX's documentation.

use super::floats::Floats;
use super::simd::Simd;
use super::weight::{Codes, Loaded, PIECE, Row, ScaleMin, Weight, unset};

/// A matrix of codes of `BITS` bits, or one of its rows: 2, 4 or 8, and 4 times as many `BYTES`.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a, const BITS: usize, const BYTES: usize> {
    codes: &'a [[u8; BYTES]],
    scales: Floats<'a>,
    biases: Floats<'a>,
    /// Pieces of a row.
    pieces: usize,
    /// 2 to this power pieces share a scale.
    shift: u32,
}

impl<'a, const BITS: usize, const BYTES: usize> Affine<'a, BITS, BYTES> {
    /// Rows of `k` elements with a scale for each `group` of them: 32, 64 or 128.
    pub(super) fn new(
        codes: &'a [u8],
        [scales, biases]: [Floats<'a>; 2],
        k: usize,
        group: usize,
    ) -> Self {
        const { assert!(BYTES == PIECE * BITS / 8 && matches!(BITS, 2 | 4 | 8)) };
        Self {
            codes: codes.as_chunks().0,
            scales,
            biases,
            pieces: k / PIECE,
            shift: (group / PIECE).trailing_zeros(),
        }
    }
}

impl<const BITS: usize, const BYTES: usize> Weight for Affine<'_, BITS, BYTES> {
    type Row = Self;

    #[inline(always)]
    fn row(self, row: usize) -> Self {
        let groups = self.pieces >> self.shift;
        Self {
            codes: &self.codes[row * self.pieces..][..self.pieces],
            scales: self.scales.part(row * groups, groups),
            biases: self.biases.part(row * groups, groups),
            ..self
        }
    }
}

impl<'a, const BITS: usize, const BYTES: usize> Row for Affine<'a, BITS, BYTES> {
    type Codes = Fields<'a, BITS, BYTES>;
    type Factors = ScaleMin<f32>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = true;
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn place(self, block: usize) -> *const u8 {
        self.codes[block].as_ptr()
    }

    #[inline(always)]
    fn factors<S: Simd>(self, block: usize) -> ScaleMin<f32> {
        let at = block >> self.shift;
        ScaleMin(self.scales.get::<S>(at), self.biases.get::<S>(at))
    }

    #[inline(always)]
    fn codes(self, block: usize, _piece: u32) -> Fields<'a, BITS, BYTES> {
        Fields(&self.codes[block])
    }
}

/// Codes of `BITS` bits, one after the other.
pub(super) struct Fields<'a, const BITS: usize, const BYTES: usize>(&'a [u8; BYTES]);

impl<const BITS: usize, const BYTES: usize> Codes for Fields<'_, BITS, BYTES> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise; there are 32 codes.
        unsafe {
            let mut all = unset::<S>();
            for i in 0..PIECE / S::N {
                let from = self.0.as_ptr().add(i * S::N * BITS / 8);
                all[i] = S::float(match BITS {
                    2 => S::load_2(from),
                    4 => S::load_4(from),
                    _ => S::load_u8(from),
                });
            }
            all
        }
    }
}
