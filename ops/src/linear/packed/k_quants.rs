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
            for i in 0..16 {
                let q = (block[16 + 32 * half + within + i] >> (2 * quarter)) & 3;
                out[16 * sixteen + i] = scale * f32::from(q) - least;
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
            for i in 0..16 {
                let q = (block[32 + 32 * half + within + i] >> (2 * quarter)) & 3;
                let third = (block[within + i] >> (4 * half + quarter)) & 1;
                out[16 * sixteen + i] = scale * f32::from(i16::from(q | (third << 2)) - 4);
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
            for i in 0..32 {
                let q = block[16 + 32 * pair + i];
                out[64 * pair + i] = low * f32::from(q & 15) - low_least;
                out[64 * pair + 32 + i] = high * f32::from(q >> 4) - high_least;
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
            for i in 0..32 {
                let q = (block[48 + of_32 / 2 * 32 + i] >> (of_32 % 2 * 4)) & 15;
                let fifth = ((block[16 + i] >> of_32) & 1) << 4;
                out[32 * of_32 + i] = scale * f32::from(q | fifth) - least;
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
            for i in 0..16 {
                let low = block[64 * half + quarter % 2 * 32 + within + i];
                let low = (low >> (quarter / 2 * 4)) & 15;
                let high = (block[128 + 32 * half + within + i] >> (2 * quarter)) & 3;
                out[16 * sixteen + i] = scale * f32::from(i16::from(low | (high << 4)) - 32);
            }
        }
    }
}
