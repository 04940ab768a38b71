//! MXFP4: codes of 4 bits, each a float e2m1, in blocks of 32 that share a power of two.
//!
//! In GGUF, 17 bytes: the exponent, biased by 127; 16 bytes whose low halves are codes 0..16, and
//! high halves codes 16..32.
//! Microscaled, as in gpt-oss's safetensors: a tensor of blocks of 16 bytes, whose halves are the codes in
//! order, low ones first, and a tensor of exponents. There 255 is a NaN, as the specification has
//! it; ggml takes it for a number.
//!
//! # Source
//! OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 (e2m1) and 5.4.1 (e8m0).
//! `block_mxfp4` in ggml's `ggml-common.h`, `dequantize_row_mxfp4` in `ggml-quants.c`.
//! `convert_moe_packed_tensors` in transformers' `integrations/mxfp4.py`.

use super::simd::Simd;
use super::weight::{Block, Codes, Loaded, PIECE, Row, Scale, Weight, unset};

pub(super) enum Mxfp4 {}

impl Block<17> for Mxfp4 {
    type Codes<'a> = Halves<'a>;
    type Factors = Scale<f32>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = false;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 17]) -> Scale<f32> {
        Scale(half_of_power(block[0]))
    }

    #[inline(always)]
    fn codes(block: &[u8; 17], _piece: u32) -> Halves<'_> {
        Halves(block.last_chunk().expect("16 bytes"))
    }
}

/// Blocks and exponents in two tensors: all rows, or one.
#[derive(Clone, Copy)]
pub(super) struct Microscaled<'a> {
    pub(super) blocks: &'a [[u8; 16]],
    pub(super) exponents: &'a [u8],
    /// Blocks of a row.
    pub(super) columns: usize,
}

impl Weight for Microscaled<'_> {
    type Row = Self;

    #[inline(always)]
    fn row(self, row: usize) -> Self {
        let columns = self.columns;
        Self {
            blocks: &self.blocks[row * columns..][..columns],
            exponents: &self.exponents[row * columns..][..columns],
            columns,
        }
    }
}

impl<'a> Row for Microscaled<'a> {
    type Codes = InOrder<'a>;
    type Factors = Scale<f32>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = false;
    const BYTES: usize = 16;

    #[inline(always)]
    fn place(self, block: usize) -> *const u8 {
        self.blocks[block].as_ptr()
    }

    #[inline(always)]
    fn factors<S: Simd>(self, block: usize) -> Scale<f32> {
        Scale(match self.exponents[block] {
            255 => f32::NAN,
            exponent => half_of_power(exponent),
        })
    }

    #[inline(always)]
    fn codes(self, block: usize, _piece: u32) -> InOrder<'a> {
        InOrder(&self.blocks[block])
    }
}

/// Bytes whose low halves are the first 16 codes, and high halves the others. Loaded are twice the
/// numbers, which are integers.
pub(super) struct Halves<'a>(&'a [u8; 16]);

/// Bytes whose halves are the codes in order. Loaded are twice the numbers.
pub(super) struct InOrder<'a>(&'a [u8; 16]);

impl Codes for Halves<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise; N divides 16.
        unsafe {
            let mut all = unset::<S>();
            for i in 0..16 / S::N {
                let bytes = S::load_u8(self.0.as_ptr().add(i * S::N));
                // ggml's table of integers has no negative zero.
                let zero = S::splat(0.0);
                all[i] = S::add(S::e2m1_doubled(S::and(bytes, 15)), zero);
                all[i + 16 / S::N] = S::add(S::e2m1_doubled(S::right(bytes, 4)), zero);
            }
            all
        }
    }
}

impl Codes for InOrder<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut all = unset::<S>();
            for i in 0..PIECE / S::N {
                all[i] = S::e2m1_doubled(S::load_4(self.0.as_ptr().add(i * S::N / 2)));
            }
            all
        }
    }
}

/// 2^(exponent - 128), also where that is subnormal.
#[inline(always)]
fn half_of_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 1 << (21 + exponent),
        _ => u32::from(exponent - 1) << 23,
    })
}
