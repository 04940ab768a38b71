//! GGUF's formats with blocks of 256 elements, whose scales are packed too.
//!
//! Elements are numbered as their bits lie: in 2, 3 and 6 bits, a block is two halves of four quarters of
//! 32 elements, which share bytes; in 4 and 5 bits it is four pairs of 32.
//!
//! Source: ggml-org/llama.cpp, `ggml/src/ggml-common.h` and `ggml-quants.c` (`dequantize_row_q*_K`).

use super::floats::f16_at;
use crate::linear::rows::Block;

/// `d * scale * q - dmin * least`: 16 bytes of scales (low nibbles) and least numbers (high ones), 64
/// bytes of quants, `d`, `dmin`.
pub(crate) struct Q2K;
/// `d * (scale - 32) * (q - 4)`: 32 bytes of third bits, 64 of the two low bits, 12 of scales, `d`.
pub(crate) struct Q3K;
/// `d * scale * q - dmin * least`: `d`, `dmin`, 12 bytes of scales and least numbers, 128 of quants.
pub(crate) struct Q4K;
/// As [`Q4K`], with 32 bytes of fifth bits before the quants.
pub(crate) struct Q5K;
/// `d * scale * (q - 32)`: 128 bytes of low nibbles, 64 of the two high bits, 16 signed scales, `d`.
pub(crate) struct Q6K;

impl Block for Q2K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 84;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
        for sixteen in 0..16 {
            let (half, quarter, within) = (sixteen / 8, sixteen / 2 % 4, sixteen % 2 * 16);
            let scales = block[sixteen];
            let scale = d * f32::from(scales & 15);
            let least = dmin * f32::from(scales >> 4);
            let quants = &block[16 + 32 * half + within..][..16];
            for (out, q) in out[16 * sixteen..][..16].iter_mut().zip(quants) {
                *out = scale * f32::from((q >> (2 * quarter)) & 3) - least;
            }
        }
    }
}

impl Block for Q3K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = f16_at(block, 108);
        for sixteen in 0..16 {
            let (half, quarter, within) = (sixteen / 8, sixteen / 2 % 4, sixteen % 2 * 16);
            let four = (block[96 + sixteen % 8] >> (sixteen / 8 * 4)) & 15;
            let two = (block[104 + sixteen % 4] >> (sixteen / 4 * 2)) & 3;
            let scale = d * f32::from(i16::from(four | (two << 4)) - 32);
            let quants = &block[32 + 32 * half + within..][..16];
            let thirds = &block[within..][..16];
            let out = out[16 * sixteen..][..16].iter_mut();
            for ((out, q), third) in out.zip(quants).zip(thirds) {
                let q = (q >> (2 * quarter)) & 3;
                let third = (third >> (4 * half + quarter)) & 1;
                *out = scale * f32::from(i16::from(q | (third << 2)) - 4);
            }
        }
    }
}

/// Scale and least number of the 32 elements with number `of_32`, from 12 bytes at 4 on.
#[inline(always)]
fn six_bits(block: &[u8], of_32: usize) -> (f32, f32) {
    let at = 4 + of_32 % 4;
    let [first, second, third] = [block[at], block[at + 4], block[at + 8]];
    let (scale, least) = match of_32 < 4 {
        true => (first & 63, second & 63),
        false => (
            (third & 15) | ((first >> 6) << 4),
            (third >> 4) | ((second >> 6) << 4),
        ),
    };
    (f32::from(scale), f32::from(least))
}

impl Block for Q4K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
        for pair in 0..4 {
            let (scale, least) = six_bits(block, 2 * pair);
            let (low, low_least) = (d * scale, dmin * least);
            let (scale, least) = six_bits(block, 2 * pair + 1);
            let (high, high_least) = (d * scale, dmin * least);
            let quants = &block[16 + 32 * pair..][..32];
            let (lows, highs) = out[64 * pair..][..64].split_at_mut(32);
            for ((low_out, high_out), q) in lows.iter_mut().zip(highs).zip(quants) {
                *low_out = low * f32::from(q & 15) - low_least;
                *high_out = high * f32::from(q >> 4) - high_least;
            }
        }
    }
}

impl Block for Q5K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
        for of_32 in 0..8 {
            let (scale, least) = six_bits(block, of_32);
            let (scale, least) = (d * scale, dmin * least);
            let quants = &block[48 + of_32 / 2 * 32..][..32];
            let fifths = &block[16..48];
            let out = out[32 * of_32..][..32].iter_mut();
            for ((out, q), fifth) in out.zip(quants).zip(fifths) {
                let q = (q >> (of_32 % 2 * 4)) & 15;
                let fifth = ((fifth >> of_32) & 1) << 4;
                *out = scale * f32::from(q | fifth) - least;
            }
        }
    }
}

impl Block for Q6K {
    const ELEMENTS: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = f16_at(block, 208);
        for sixteen in 0..16 {
            let (half, quarter, within) = (sixteen / 8, sixteen / 2 % 4, sixteen % 2 * 16);
            let scale = d * f32::from(block[192 + sixteen].cast_signed());
            let lows = &block[64 * half + quarter % 2 * 32 + within..][..16];
            let highs = &block[128 + 32 * half + within..][..16];
            let out = out[16 * sixteen..][..16].iter_mut();
            for ((out, low), high) in out.zip(lows).zip(highs) {
                let low = (low >> (quarter / 2 * 4)) & 15;
                let high = (high >> (2 * quarter)) & 3;
                *out = scale * f32::from(i16::from(low | (high << 4)) - 32);
            }
        }
    }
}
