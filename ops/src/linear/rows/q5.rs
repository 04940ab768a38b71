//! Q5_0 and Q5_1: codes of 5 bits in blocks of 32.
//!
//! Q5_0, 22 bytes: d f16; 32 bits, of which bit i is the highest of code i; 16 bytes with the lower
//! four as in Q4_0. An element is `d * (code - 16)`.
//! Q5_1, 24 bytes: d f16; m f16; the same bits and bytes. An element is `d * code + m`.
//!
//! # Source
//! `block_q5_0`, `block_q5_1` in ggml's `ggml-common.h`; `dequantize_row_*` in `ggml-quants.c`.

use super::simd::Simd;
use super::weight::{Block, Codes, F16, Loaded, Scale, ScaleMin, unset};

pub(super) enum Q5_0 {}
pub(super) enum Q5_1 {}

impl Block<22> for Q5_0 {
    type Codes<'a> = Five<'a>;
    type Factors = Scale<F16>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = false;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 22]) -> Scale<F16> {
        Scale(F16::at(block, 0))
    }

    #[inline(always)]
    fn codes(block: &[u8; 22], _piece: u32) -> Five<'_> {
        let bytes = block.last_chunk().expect("20 bytes");
        Five { bytes, plus: -16 }
    }
}

impl Block<24> for Q5_1 {
    type Codes<'a> = Five<'a>;
    type Factors = ScaleMin<F16>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = true;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 24]) -> ScaleMin<F16> {
        ScaleMin(F16::at(block, 0), F16::at(block, 2))
    }

    #[inline(always)]
    fn codes(block: &[u8; 24], _piece: u32) -> Five<'_> {
        let bytes = block.last_chunk().expect("20 bytes");
        Five { bytes, plus: 0 }
    }
}

/// The high bits of codes, and the bytes of the others.
pub(super) struct Five<'a> {
    bytes: &'a [u8; 20],
    /// What is added to codes.
    plus: i32,
}

impl Codes for Five<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise; N divides 16, and 8 divides N.
        unsafe {
            let mut all = unset::<S>();
            let (high, low) = (self.bytes.as_ptr(), self.bytes.as_ptr().add(4));
            for i in 0..16 / S::N {
                let low = S::load_u8(low.add(i * S::N));
                let halves = [S::and(low, 15), S::right(low, 4)];
                for half in 0..2 {
                    let vector = i + half * (16 / S::N);
                    let high = S::left(S::load_1(high.add(vector * S::N / 8)), 4);
                    all[vector] = S::float(S::plus(S::or(halves[half], high), self.plus));
                }
            }
            all
        }
    }
}
