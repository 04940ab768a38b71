//! Eight elements of a block of GGUF's formats; the layouts are described beside the formats.

use super::bits::{byte, e2m1, e8m0, half, nibble, of_two, word};
use ::cubecl::prelude::*;

/// Q4_0 and Q4_1 (with `least`): elements from `8 * group` on of the block at byte `at`.
#[cube]
pub(crate) fn q4(
    words: &Array<u32>,
    at: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] least: bool,
) {
    let scale = half(words, at);
    let quants = at + comptime!(if least { 4u32 } else { 2u32 }) + (group % 2u32) * 8u32;
    let shift = (group / 2u32) * 4u32;
    let low = word(words, quants);
    let high = word(words, quants + 4u32);
    let mut offset = -8.0f32 * scale;
    if least {
        offset = half(words, at + 2u32);
    }
    #[unroll]
    for i in 0..8u32 {
        let q = (of_two(low, high, i) >> shift) & 15u32;
        out[i as usize] = f32::cast_from(q) * scale + offset;
    }
}

/// Q5_0 and Q5_1 (with `least`).
#[cube]
pub(crate) fn q5(
    words: &Array<u32>,
    at: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] least: bool,
) {
    let scale = half(words, at);
    let head = comptime!(if least { 4u32 } else { 2u32 });
    let fifth = word(words, at + head) >> (group * 8u32);
    let quants = at + head + 4u32 + (group % 2u32) * 8u32;
    let shift = (group / 2u32) * 4u32;
    let low = word(words, quants);
    let high = word(words, quants + 4u32);
    let mut offset = -16.0f32 * scale;
    if least {
        offset = half(words, at + 2u32);
    }
    #[unroll]
    for i in 0..8u32 {
        let q = (of_two(low, high, i) >> shift) & 15u32;
        let q = q + ((fifth >> i) & 1u32) * 16u32;
        out[i as usize] = f32::cast_from(q) * scale + offset;
    }
}

/// Q8_0.
#[cube]
pub(crate) fn q8(words: &Array<u32>, at: u32, group: u32, out: &mut Array<f32>) {
    let scale = half(words, at);
    let low = word(words, at + 2u32 + group * 8u32);
    let high = word(words, at + 6u32 + group * 8u32);
    #[unroll]
    for i in 0..8u32 {
        out[i as usize] = signed(of_two(low, high, i)) * scale;
    }
}

/// The signed number of a byte.
#[cube]
fn signed(byte: u32) -> f32 {
    f32::cast_from((byte + 128u32) & 255u32) - 128.0f32
}

/// Q2_K. The 256 elements are two halves of four quarters, each with 2 bits of the same 32 bytes.
#[cube]
pub(crate) fn q2k(words: &Array<u32>, at: u32, group: u32, out: &mut Array<f32>) {
    let quarter = (group / 4u32) % 4u32;
    let quants = at + 16u32 + (group / 16u32) * 32u32 + (group % 4u32) * 8u32;
    let low = word(words, quants);
    let high = word(words, quants + 4u32);
    let scales = byte(words, at + group / 2u32);
    let scale = half(words, at + 80u32) * f32::cast_from(scales & 15u32);
    let least = half(words, at + 82u32) * f32::cast_from(scales >> 4u32);
    #[unroll]
    for i in 0..8u32 {
        let q = (of_two(low, high, i) >> (quarter * 2u32)) & 3u32;
        out[i as usize] = f32::cast_from(q) * scale - least;
    }
}

/// Q3_K: as Q2_K, and a third bit, which adds 4 where it is set.
#[cube]
pub(crate) fn q3k(words: &Array<u32>, at: u32, group: u32, out: &mut Array<f32>) {
    let quarter = (group / 4u32) % 4u32;
    let third = (group / 16u32) * 4u32 + quarter;
    let within = (group % 4u32) * 8u32;
    let quants = at + 32u32 + (group / 16u32) * 32u32 + within;
    let low = word(words, quants);
    let high = word(words, quants + 4u32);
    let low_third = word(words, at + within) >> third;
    let high_third = word(words, at + within + 4u32) >> third;
    // The scale of 16 elements has 6 bits: four in the first 8 bytes, two in the last 4.
    let sixteen = group / 2u32;
    let four = byte(words, at + 96u32 + sixteen % 8u32) >> ((sixteen / 8u32) * 4u32);
    let two = byte(words, at + 104u32 + sixteen % 4u32) >> ((sixteen / 4u32) * 2u32);
    let scale = f32::cast_from((four & 15u32) + (two & 3u32) * 16u32) - 32.0f32;
    let scale = half(words, at + 108u32) * scale;
    #[unroll]
    for i in 0..8u32 {
        let q = (of_two(low, high, i) >> (quarter * 2u32)) & 3u32;
        let q = q + (of_two(low_third, high_third, i) & 1u32) * 4u32;
        out[i as usize] = (f32::cast_from(q) - 4.0f32) * scale;
    }
}

/// Q4_K and Q5_K (with `fifth`). The 256 elements are four pairs of 32, which share the bytes of
/// their quants.
#[cube]
pub(crate) fn q45k(
    words: &Array<u32>,
    at: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] fifth: bool,
) {
    let of_32 = group / 4u32;
    let within = (group % 4u32) * 8u32;
    let quants = at + comptime!(if fifth { 48u32 } else { 16u32 });
    let quants = quants + (of_32 / 2u32) * 32u32 + within;
    let low = word(words, quants);
    let high = word(words, quants + 4u32);
    // Scale and least number of 32 elements have 6 bits each, in 12 bytes.
    let six = at + 4u32 + of_32 % 4u32;
    let first = byte(words, six);
    let second = byte(words, six + 4u32);
    let mut scale = first & 63u32;
    let mut least = second & 63u32;
    if of_32 >= 4u32 {
        let third = byte(words, six + 8u32);
        scale = (third & 15u32) + (first >> 6u32) * 16u32;
        least = (third >> 4u32) + (second >> 6u32) * 16u32;
    }
    let scale = half(words, at) * f32::cast_from(scale);
    let least = half(words, at + 2u32) * f32::cast_from(least);
    let shift = (of_32 % 2u32) * 4u32;
    let mut low_fifth = 0u32;
    let mut high_fifth = 0u32;
    if fifth {
        low_fifth = word(words, at + 16u32 + within) >> of_32;
        high_fifth = word(words, at + 20u32 + within) >> of_32;
    }
    #[unroll]
    for i in 0..8u32 {
        let mut q = (of_two(low, high, i) >> shift) & 15u32;
        if fifth {
            q += (of_two(low_fifth, high_fifth, i) & 1u32) * 16u32;
        }
        out[i as usize] = f32::cast_from(q) * scale - least;
    }
}

/// Q6_K. The 256 elements are two halves of four quarters; two quarters share the bytes of their low
/// bits, all four those of their high bits.
#[cube]
pub(crate) fn q6k(words: &Array<u32>, at: u32, group: u32, out: &mut Array<f32>) {
    let of_128 = group / 16u32;
    let quarter = (group / 4u32) % 4u32;
    let within = (group % 4u32) * 8u32;
    let quants = at + of_128 * 64u32 + (quarter % 2u32) * 32u32 + within;
    let low = word(words, quants);
    let high = word(words, quants + 4u32);
    let tops = at + 128u32 + of_128 * 32u32 + within;
    let low_top = word(words, tops) >> (quarter * 2u32);
    let high_top = word(words, tops + 4u32) >> (quarter * 2u32);
    let scale = signed(byte(words, at + 192u32 + group / 2u32)) * half(words, at + 208u32);
    #[unroll]
    for i in 0..8u32 {
        let q = (of_two(low, high, i) >> ((quarter / 2u32) * 4u32)) & 15u32;
        let q = q + (of_two(low_top, high_top, i) & 3u32) * 16u32;
        out[i as usize] = (f32::cast_from(q) - 32.0f32) * scale;
    }
}

/// MXFP4 in GGUF: the scale and the quants of a block lie together.
#[cube]
pub(crate) fn mxfp4(words: &Array<u32>, at: u32, group: u32, out: &mut Array<f32>) {
    let scale = e8m0(byte(words, at));
    let quants = at + 1u32 + (group % 2u32) * 8u32;
    let shift = (group / 2u32) * 4u32;
    let low = word(words, quants);
    let high = word(words, quants + 4u32);
    #[unroll]
    for i in 0..8u32 {
        out[i as usize] = e2m1((of_two(low, high, i) >> shift) & 15u32) * scale;
    }
}

/// Eight floats of 4 bits in a word, times `scale`.
#[cube]
pub(crate) fn e2m1s(word: u32, scale: f32, out: &mut Array<f32>) {
    #[unroll]
    for i in 0..8u32 {
        out[i as usize] = e2m1(nibble(word, i)) * scale;
    }
}
