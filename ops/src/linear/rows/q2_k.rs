//! Q2_K: codes of 2 bits in blocks of 256, with a scale and a minimum of 4 bits for 16 of them.
//!
//! 84 bytes: 16 bytes, each with a scale (low half) and a minimum (high half); 64 bytes of codes; d
//! f16; dmin f16. Each 32 bytes of codes hold 128: the lowest two bits codes 0..32, the next two
//! codes 32..64, and so on. An element is `(d * scale) * code - dmin * minimum`.
//!
//! # Source
//! `block_q2_K` in ggml's `ggml-common.h`; `dequantize_row_q2_K` in `ggml-quants.c`.

use super::simd::Simd;
use super::weight::{Block, F16, OnePart, Scales, bytes};
use std::array::from_fn;

pub(super) enum Q2K {}

impl Block<84> for Q2K {
    type Codes<'a> = OnePart<'a>;
    type Factors = Scales<16>;
    const BLOCK: usize = 8;
    const SCALES: usize = 2;
    const MIN: bool = true;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 84]) -> Scales<16> {
        let (d, dmin) = (F16::at(block, 80).f32::<S>(), F16::at(block, 82).f32::<S>());
        Scales {
            scale: from_fn(|i| d * f32::from(block[i] & 15)),
            min: from_fn(|i| -(dmin * f32::from(block[i] >> 4))),
        }
    }

    #[inline(always)]
    fn codes(block: &[u8; 84], piece: u32) -> OnePart<'_> {
        OnePart {
            bytes: bytes(&block[16..], piece / 4),
            at: piece % 4 * 2,
            bits: 2,
        }
    }
}
