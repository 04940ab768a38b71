//! Keys and values as the caller stores them.
//!
//! In:  arrays of f32 or of 16-bit floats. Out: tiles of them in f32.

use half::{bf16, f16};
use std::ops::Range;

/// An array of floats.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// 32 bits; read in place.
    F32(&'a [f32]),
    /// IEEE 754, 16 bits; each tile is widened once for all queries of an item.
    F16(&'a [f16]),
    /// bfloat16; widened in the same way.
    Bf16(&'a [bf16]),
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(elements: &'a [f32]) -> Self {
        Self::F32(elements)
    }
}

impl<'a> From<&'a Vec<f32>> for Elements<'a> {
    fn from(elements: &'a Vec<f32>) -> Self {
        Self::F32(elements)
    }
}

impl<'a> From<&'a [f16]> for Elements<'a> {
    fn from(elements: &'a [f16]) -> Self {
        Self::F16(elements)
    }
}

impl<'a> From<&'a [bf16]> for Elements<'a> {
    fn from(elements: &'a [bf16]) -> Self {
        Self::Bf16(elements)
    }
}

impl Elements<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(all) => all.len(),
            Self::F16(all) => all.len(),
            Self::Bf16(all) => all.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i`.
    pub(crate) fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(all) => all[i],
            Self::F16(all) => all[i].to_f32(),
            Self::Bf16(all) => all[i].to_f32(),
        }
    }

    /// The elements of 16 bits in a range as f32, by operations that every vector unit has; nothing
    /// is written for those of f32.
    #[inline(always)]
    pub(crate) fn widen(&self, range: Range<usize>, to: &mut [f32]) {
        match self {
            Self::F32(_) => {}
            Self::F16(all) => {
                for (to, x) in to.iter_mut().zip(&all[range]) {
                    *to = widened(x.to_bits());
                }
            }
            Self::Bf16(all) => {
                for (to, x) in to.iter_mut().zip(&all[range]) {
                    *to = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            }
        }
    }
}

/// An f16 as f32.
#[inline(always)]
fn widened(half: u16) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_halves() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut got = vec![0.0; halves.len()];
        Elements::from(&halves[..]).widen(0..halves.len(), &mut got);
        for (half, got) in halves.iter().zip(got) {
            let want = half.to_f32();
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan());
        }
    }
}
