//! Q8_0: codes of 8 bits in blocks of 32.
//!
//! 34 bytes: d f16; 32 signed codes. An element is `d * code`.
//!
//! # Source
//! `block_q8_0` in ggml's `ggml-common.h`; `dequantize_row_q8_0` in `ggml-quants.c`.

use super::simd::Simd;
use super::weight::{Block, F16, Scale, Signed};

pub(super) enum Q8_0 {}

impl Block<34> for Q8_0 {
    type Codes<'a> = Signed<'a>;
    type Factors = Scale<F16>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = false;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 34]) -> Scale<F16> {
        Scale(F16::at(block, 0))
    }

    #[inline(always)]
    fn codes(block: &[u8; 34], _piece: u32) -> Signed<'_> {
        Signed(block.last_chunk().expect("32 bytes"))
    }
}
