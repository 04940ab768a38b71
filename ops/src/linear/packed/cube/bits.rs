//! Bytes, words and small floats out of a buffer of 32-bit words.

use ::cubecl::prelude::*;
use butterfly_ir::Dtype;

/// The byte at offset `at`.
#[cube]
pub(crate) fn byte(words: &Array<u32>, at: u32) -> u32 {
    (words[(at / 4u32) as usize] >> ((at % 4u32) * 8u32)) & 255u32
}

/// The four bytes from offset `at` on, the first one lowest. Reads only words that hold one of them.
#[cube]
#[allow(clippy::manual_div_ceil)] // Kernels have operators and no methods.
pub(crate) fn word(words: &Array<u32>, at: u32) -> u32 {
    let shift = (at % 4u32) * 8u32;
    let low = words[(at / 4u32) as usize];
    let high = words[((at + 3u32) / 4u32) as usize];
    // In two steps, since a shift by all 32 bits is undefined. Without a shift, the second term is 0.
    (low >> shift) | ((high << 8u32) << (24u32 - shift))
}

/// The f16 at offset `at`, which is even.
#[cube]
pub(crate) fn half(words: &Array<u32>, at: u32) -> f32 {
    let bits = (words[(at / 4u32) as usize] >> ((at % 4u32) * 8u32)) & 0xffffu32;
    float(bits, 10u32, 5u32)
}

/// A float of fewer bits, a sign before `exponent` and `mantissa` bits, as f32: exactly, also where it
/// is subnormal, infinite or NaN.
#[cube]
pub(crate) fn float(bits: u32, #[comptime] mantissa: u32, #[comptime] exponent: u32) -> f32 {
    let sign = (bits >> comptime!(mantissa + exponent)) << 31u32;
    let rest = bits & comptime!((1u32 << (mantissa + exponent)) - 1);
    let least = comptime!(((1u32 << exponent) - 1) << mantissa);
    let mut result = rest << comptime!(23 - mantissa);
    if rest >= least {
        result |= 0x7f80_0000u32;
    } else {
        // The bits are those of a smaller f32, whose exponent has another bias: the product is exact,
        // but some GPUs take subnormal factors for 0, so integers are converted in place of them.
        let bias = comptime!((1u32 << (exponent - 1)) - 1);
        if rest < comptime!(1u32 << mantissa) {
            let unit = comptime!(f32::from_bits((128 - bias - mantissa) << 23)).runtime();
            result = u32::reinterpret(f32::cast_from(rest) * unit);
        } else {
            result += comptime!((127 - bias) << 23);
        }
    }
    f32::reinterpret(result | sign)
}

/// Number `at` of a buffer of f32, f16 or bf16.
#[cube]
pub(crate) fn number(words: &Array<u32>, at: u32, #[comptime] dtype: Dtype) -> f32 {
    if comptime!(dtype == Dtype::F32) {
        f32::reinterpret(words[at as usize])
    } else if comptime!(dtype == Dtype::F16) {
        half(words, at * 2u32)
    } else {
        let pair = words[(at / 2u32) as usize];
        f32::reinterpret(((pair >> ((at % 2u32) * 16u32)) & 0xffffu32) << 16u32)
    }
}

/// The four bits of element `i` of eight, which lie in a word.
#[cube]
pub(crate) fn nibble(word: u32, #[comptime] i: u32) -> u32 {
    (word >> comptime!(4 * i)) & 15u32
}

/// Byte `i` of two words.
#[cube]
pub(crate) fn of_two(low: u32, high: u32, #[comptime] i: u32) -> u32 {
    if comptime!(i < 4) {
        (low >> comptime!(8 * i)) & 255u32
    } else {
        (high >> comptime!(8 * (i - 4))) & 255u32
    }
}

/// A float of 8 bits with 4 of exponent and 3 of mantissa (e4m3fn), as f32: it has a NaN, but no
/// infinity.
#[cube]
pub(crate) fn e4m3(bits: u32) -> f32 {
    let sign = (bits >> 7u32) << 31u32;
    let rest = bits & 127u32;
    let mut result = (rest << 20u32) + comptime!((127 - 7) << 23);
    if rest == 127u32 {
        result = 0x7fc0_0000u32;
    } else if rest < 8u32 {
        result = u32::reinterpret(f32::cast_from(rest) * comptime!(1.0f32 / 512.0).runtime());
    }
    f32::reinterpret(result | sign)
}

/// A float of 4 bits with 2 of exponent and 1 of mantissa (e2m1), as f32.
#[cube]
pub(crate) fn e2m1(bits: u32) -> f32 {
    let rest = bits & 7u32;
    let mut twice = rest;
    if rest > 1u32 {
        twice = (2u32 + rest % 2u32) << (rest / 2u32 - 1u32);
    }
    let magnitude = f32::cast_from(twice) * 0.5f32;
    if bits > 7u32 { -magnitude } else { magnitude }
}

/// The power of two that a byte stands for (e8m0): 2^(bits - 127); NaN for 255.
#[cube]
pub(crate) fn e8m0(bits: u32) -> f32 {
    let mut result = bits << 23u32;
    if bits == 0u32 {
        result = 0x0040_0000u32;
    }
    if bits == 255u32 {
        result = 0x7fc0_0000u32;
    }
    f32::reinterpret(result)
}
