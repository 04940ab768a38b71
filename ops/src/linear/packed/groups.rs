//! Weights whose groups of elements have scales in tensors of their own.
//!
//! - Affine, as `mlx.core.quantize` writes it: an element is `scale * q + bias`, with q an unsigned integer
//!   of 2, 4 or 8 bits. A 32-bit word holds the q of neighbours, the first in its lowest bits.
//! - Microscaled: floats of 4 bits (e2m1), the first of two neighbours in the low nibble, times the power
//!   of two that 32 of them share (OCP Microscaling Formats v1.0).

use super::floats::{e2m1, power};
use crate::linear::rows::{Numbers, Source};

/// A weight of integers with scales and biases.
pub(crate) struct Affine<'a, const BITS: usize> {
    pub(crate) bytes: &'a [u8],
    pub(crate) scales: Numbers<'a>,
    pub(crate) biases: Numbers<'a>,
    /// K.
    pub(crate) columns: usize,
    /// Elements of a group, a multiple of the span.
    pub(crate) group: usize,
}

impl<const BITS: usize> Source for Affine<'_, BITS> {
    const SPAN: usize = 32;

    #[inline(always)]
    fn unpack(&self, row: usize, span: usize, out: &mut [f32]) {
        let first = row * self.columns + span * Self::SPAN;
        let (scale, bias) = (
            self.scales.at(first / self.group),
            self.biases.at(first / self.group),
        );
        let bytes = &self.bytes[first * BITS / 8..][..Self::SPAN * BITS / 8];
        let each = 8 / BITS;
        let mask = 255u8 >> (8 - BITS);
        let mut quants = [0; 32];
        for (quants, byte) in quants.chunks_exact_mut(each).zip(bytes) {
            for (part, q) in quants.iter_mut().enumerate() {
                *q = (byte >> (part * BITS)) & mask;
            }
        }
        for (out, q) in out.iter_mut().zip(quants) {
            *out = f32::from(q) * scale + bias;
        }
    }
}

/// A weight of floats of 4 bits with powers of two.
pub(crate) struct Microscaled<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) powers: &'a [u8],
    /// K.
    pub(crate) columns: usize,
}

impl Source for Microscaled<'_> {
    const SPAN: usize = 32;

    #[inline(always)]
    fn unpack(&self, row: usize, span: usize, out: &mut [f32]) {
        let block = row * (self.columns / Self::SPAN) + span;
        let factor = power(self.powers[block]);
        for (i, byte) in self.bytes[block * 16..][..16].iter().enumerate() {
            out[2 * i] = e2m1(byte & 15) * factor;
            out[2 * i + 1] = e2m1(byte >> 4) * factor;
        }
    }
}
