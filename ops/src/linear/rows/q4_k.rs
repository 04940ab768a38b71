//! Q4_K and Q5_K: codes of 4 or 5 bits in blocks of 256, with a scale and a minimum of 6 bits for
//! 32 of them.
//!
//! Q4_K, 144 bytes: d f16; dmin f16; 12 bytes of scales and minima; 128 bytes of codes. Each 32 bytes
//! of codes hold 64: the low halves codes 0..32, the high ones codes 32..64.
//! Q5_K, 176 bytes: the same with 32 bytes before the codes, whose bits i are the highest of codes
//! 32 i..32 (i + 1).
//! Of the 12 bytes, the lower six bits of bytes 0..4 are scales 0..4, those of bytes 4..8 minima
//! 0..4. Scales 4..8 have their lower four bits in the low halves of bytes 8..12, minima 4..8 in the
//! high ones, and their upper two bits in those of bytes 0..4 and 4..8.
//! An element is `(d * scale) * code - dmin * minimum`.
//!
//! # Source
//! `block_q4_K`, `block_q5_K` in ggml's `ggml-common.h`; `get_scale_min_k4` and `dequantize_row_*` in
//! `ggml-quants.c`.

use super::simd::Simd;
use super::weight::{Block, F16, OnePart, Scales, TwoParts, bytes};

pub(super) enum Q4K {}
pub(super) enum Q5K {}

impl Block<144> for Q4K {
    type Codes<'a> = OnePart<'a>;
    type Factors = Scales<8>;
    const BLOCK: usize = 8;
    const SCALES: usize = 1;
    const MIN: bool = true;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 144]) -> Scales<8> {
        factors::<S>(block.first_chunk().expect("16 bytes"))
    }

    #[inline(always)]
    fn codes(block: &[u8; 144], piece: u32) -> OnePart<'_> {
        OnePart {
            bytes: bytes(&block[16..], piece / 2),
            at: piece % 2 * 4,
            bits: 4,
        }
    }
}

impl Block<176> for Q5K {
    type Codes<'a> = TwoParts<'a>;
    type Factors = Scales<8>;
    const BLOCK: usize = 8;
    const SCALES: usize = 1;
    const MIN: bool = true;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 176]) -> Scales<8> {
        factors::<S>(block.first_chunk().expect("16 bytes"))
    }

    #[inline(always)]
    fn codes(block: &[u8; 176], piece: u32) -> TwoParts<'_> {
        TwoParts {
            low: bytes(&block[48..], piece / 2),
            low_at: piece % 2 * 4,
            low_bits: 4,
            high: bytes(&block[16..], 0),
            high_at: piece,
            high_bits: 1,
            plus: 0,
        }
    }
}

#[inline(always)]
fn factors<S: Simd>(head: &[u8; 16]) -> Scales<8> {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (scales, minima, rest) = (word(4), word(8), word(12));
    // Four bytes at once.
    let six = |low: u32, lower_four: u32, upper_two: u32| {
        let low = low & 0x3f3f_3f3f;
        let high = lower_four & 0x0f0f_0f0f | upper_two >> 2 & 0x3030_3030;
        (u64::from(low) | u64::from(high) << 32).to_le_bytes()
    };
    let scales = six(scales, rest, scales);
    let minima = six(minima, rest >> 4, minima);
    let (d, dmin) = (F16::at(head, 0).f32::<S>(), -F16::at(head, 2).f32::<S>());
    Scales {
        scale: scales.map(|scale| d * f32::from(scale)),
        min: minima.map(|minimum| dmin * f32::from(minimum)),
    }
}
