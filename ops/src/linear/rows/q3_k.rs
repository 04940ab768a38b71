//! Q3_K: codes of 3 bits in blocks of 256, with a scale of 6 bits for 16 of them.
//!
//! 110 bytes: 32 bytes of high bits; 64 bytes with the lower two, as in Q2_K; 12 bytes of scales; d
//! f16. The high bits of codes 32 i..32 (i + 1) are the bits i of the 32 bytes. Scale i has its
//! lower four bits in a half of byte i % 8 (low ones first), its upper two in byte 8 + i % 4, from
//! bit i / 4 * 2. An element is `(d * (scale - 32)) * (code - 4)`.
//!
//! # Source
//! `block_q3_K` in ggml's `ggml-common.h`; `dequantize_row_q3_K` in `ggml-quants.c`.

use super::simd::Simd;
use super::weight::{Block, F16, Scales, TwoParts, bytes};
use std::array::from_fn;

pub(super) enum Q3K {}

impl Block<110> for Q3K {
    type Codes<'a> = TwoParts<'a>;
    type Factors = Scales<16>;
    const BLOCK: usize = 8;
    const SCALES: usize = 2;
    const MIN: bool = false;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 110]) -> Scales<16> {
        let d = F16::at(block, 108).f32::<S>();
        let scales: &[u8; 12] = block[96..].first_chunk().expect("12 bytes");
        Scales {
            scale: from_fn(|i| {
                let low = scales[i % 8] >> (i / 8 * 4) & 15;
                let high = scales[8 + i % 4] >> (i / 4 * 2) & 3;
                d * f32::from((low | high << 4) as i8 - 32)
            }),
            min: [0.0; 16],
        }
    }

    #[inline(always)]
    fn codes(block: &[u8; 110], piece: u32) -> TwoParts<'_> {
        TwoParts {
            low: bytes(&block[32..], piece / 4),
            low_at: piece % 4 * 2,
            low_bits: 2,
            high: bytes(block, 0),
            high_at: piece,
            high_bits: 1,
            plus: -4,
        }
    }
}
