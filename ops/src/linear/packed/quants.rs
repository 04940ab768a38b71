//! GGUF's formats with blocks of 32 elements.
//!
//! A block begins with its scale as f16 (`d`), in the `_1` formats followed by its least number (`m`).
//! Nibbles of 16 bytes follow: the low ones are elements 0 to 15, the high ones 16 to 31. In the formats
//! of 5 bits, four bytes before them hold the fifth bits, of element `i` in bit `i`.
//!
//! Source: ggml-org/llama.cpp, `ggml/src/ggml-common.h` and `ggml-quants.c` (`dequantize_row_*`).

use super::floats::{e2m1, f16_at, power};
use crate::linear::rows::Block;

/// `d * (q - 8)`.
pub(crate) struct Q4_0;
/// `d * q + m`.
pub(crate) struct Q4_1;
/// `d * (q - 16)`.
pub(crate) struct Q5_0;
/// `d * q + m`.
pub(crate) struct Q5_1;
/// `d * q`, with q a signed byte.
pub(crate) struct Q8_0;
/// Floats of 4 bits times a power of two, whose exponent is the first byte.
pub(crate) struct Mxfp4;

impl Block for Q4_0 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = f16_at(block, 0);
        for i in 0..16 {
            let q = block[2 + i];
            out[i] = f32::from(i16::from(q & 15) - 8) * d;
            out[16 + i] = f32::from(i16::from(q >> 4) - 8) * d;
        }
    }
}

impl Block for Q4_1 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        for i in 0..16 {
            let q = block[4 + i];
            out[i] = f32::from(q & 15) * d + m;
            out[16 + i] = f32::from(q >> 4) * d + m;
        }
    }
}

/// The quants of 5 bits whose fifth bits begin at byte `at`.
#[inline(always)]
fn five(block: &[u8], at: usize) -> [u8; 32] {
    let fifth = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let nibbles = &block[at + 4..][..16];
    let bit = |i: usize| u8::from((fifth >> i) & 1 == 1) << 4;
    let mut quants = [0; 32];
    for i in 0..16 {
        quants[i] = (nibbles[i] & 15) | bit(i);
        quants[16 + i] = (nibbles[i] >> 4) | bit(16 + i);
    }
    quants
}

impl Block for Q5_0 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = f16_at(block, 0);
        for (out, q) in out.iter_mut().zip(five(block, 2)) {
            *out = f32::from(i16::from(q) - 16) * d;
        }
    }
}

impl Block for Q5_1 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        for (out, q) in out.iter_mut().zip(five(block, 4)) {
            *out = f32::from(q) * d + m;
        }
    }
}

impl Block for Q8_0 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = f16_at(block, 0);
        for i in 0..32 {
            out[i] = f32::from(block[2 + i].cast_signed()) * d;
        }
    }
}

impl Block for Mxfp4 {
    const ELEMENTS: usize = 32;
    const BYTES: usize = 17;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = power(block[0]);
        for i in 0..16 {
            let q = block[1 + i];
            out[i] = e2m1(q & 15) * d;
            out[16 + i] = e2m1(q >> 4) * d;
        }
    }
}
