//! Floats of 4, 8 and 16 bits, and weights of floats of 8 bits with factors of squares.
//!
//! Sources: OCP Microscaling Formats (MX) v1.0, section 5.3, for e2m1 and e8m0; OCP 8-bit Floating Point
//! (OFP8) v1.0 for e4m3; DeepSeek-V3 (arXiv:2412.19437), section 3.3, for factors of squares.

use super::SQUARE;
use crate::linear::rows::{Numbers, Source};

/// The f16 at byte `at`.
#[inline(always)]
pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    widened(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// An f16 as f32, by operations that vector units have.
#[inline(always)]
pub(crate) fn widened(half: u16) -> f32 {
    // The bits of a smaller f32, whose exponent has another bias: the product is exact.
    let magnitude = u32::from(half & 0x7fff) << 13;
    let shifted = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = if magnitude >= 0x0f80_0000 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(shifted | special | (u32::from(half & 0x8000) << 16))
}

/// A float of 4 bits: a sign, 2 bits of exponent, 1 of mantissa (e2m1).
#[inline(always)]
pub(super) fn e2m1(bits: u8) -> f32 {
    const VALUES: [f32; 16] = [
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
    ];
    VALUES[usize::from(bits & 15)]
}

/// The power of two that a byte stands for (e8m0): 2^(bits - 127); NaN for 255.
#[inline(always)]
pub(super) fn power(bits: u8) -> f32 {
    f32::from_bits(match bits {
        0 => 0x0040_0000,
        255 => 0x7fc0_0000,
        _ => u32::from(bits) << 23,
    })
}

/// A float of 8 bits: a sign, 4 bits of exponent, 3 of mantissa (e4m3fn); it has NaN, but no infinity.
const fn e4m3(bits: u8) -> f32 {
    let rest = (bits & 127) as u32;
    let sign = (bits as u32 >> 7) << 31;
    let magnitude = match rest {
        127 => f32::NAN,
        // Eight of them are subnormal.
        0..8 => rest as f32 / 512.0,
        _ => f32::from_bits((rest << 20) + ((127 - 7) << 23)),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// All floats of 8 bits.
static FLOATS: [f32; 256] = {
    let mut all = [0.0; 256];
    let mut bits = 0u8;
    loop {
        all[bits as usize] = e4m3(bits);
        match bits.checked_add(1) {
            Some(next) => bits = next,
            None => break all,
        }
    }
};

/// A weight of floats of 8 bits.
pub(crate) struct Float8<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) factors: Numbers<'a>,
    /// K.
    pub(crate) columns: usize,
}

impl Source for Float8<'_> {
    const SPAN: usize = 8;

    #[inline(always)]
    fn unpack(&self, row: usize, span: usize, out: &mut [f32]) {
        let across = self.columns.div_ceil(SQUARE);
        let factor = self
            .factors
            .at(row / SQUARE * across + span * Self::SPAN / SQUARE);
        let bytes = &self.bytes[row * self.columns + span * Self::SPAN..][..Self::SPAN];
        for (out, bits) in out.iter_mut().zip(bytes) {
            *out = FLOATS[usize::from(*bits)] * factor;
        }
    }
}
