//! Q6_K: codes of 6 bits in blocks of 256, with a scale of 8 bits for 16 of them.
//!
//! 210 bytes: 128 bytes with the lower four bits of codes; 64 bytes with the upper two; 16 signed
//! scales; d f16. Each 64 bytes of lower bits hold 128 codes: the low halves codes 0..64, the high
//! ones codes 64..128. Each 32 bytes of upper bits do as well, from the lowest, 32 codes after
//! another. An element is `(d * scale) * (code - 32)`.
//!
//! # Source
//! `block_q6_K` in ggml's `ggml-common.h`; `dequantize_row_q6_K` in `ggml-quants.c`.

use super::simd::Simd;
use super::weight::{Block, F16, Scales, TwoParts, bytes};

pub(super) enum Q6K {}

impl Block<210> for Q6K {
    type Codes<'a> = TwoParts<'a>;
    type Factors = Scales<16>;
    const BLOCK: usize = 8;
    const SCALES: usize = 2;
    const MIN: bool = false;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 210]) -> Scales<16> {
        let d = F16::at(block, 208).f32::<S>();
        let scales: &[u8; 16] = block[192..].first_chunk().expect("16 bytes");
        Scales {
            scale: scales.map(|scale| d * f32::from(scale.cast_signed())),
            min: [0.0; 16],
        }
    }

    #[inline(always)]
    fn codes(block: &[u8; 210], piece: u32) -> TwoParts<'_> {
        let (half, quarter) = (piece / 4, piece % 4);
        TwoParts {
            low: bytes(block, 2 * half + quarter % 2),
            low_at: quarter / 2 * 4,
            low_bits: 4,
            high: bytes(&block[128..], half),
            high_at: quarter * 2,
            high_bits: 2,
            plus: -32,
        }
    }
}
