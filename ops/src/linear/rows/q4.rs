//! Q4_0 and Q4_1: codes of 4 bits in blocks of 32.
//!
//! Q4_0, 18 bytes: d f16; 16 bytes whose low halves are codes 0..16, and high halves codes 16..32.
//! An element is `d * (code - 8)`.
//! Q4_1, 20 bytes: d f16; m f16; the same 16 bytes. An element is `d * code + m`.
//!
//! # Source
//! `block_q4_0`, `block_q4_1` in ggml's `ggml-common.h`; `dequantize_row_*` in `ggml-quants.c`.

use super::simd::Simd;
use super::weight::{Block, Codes, F16, Loaded, Scale, ScaleMin, unset};

pub(super) enum Q4_0 {}
pub(super) enum Q4_1 {}

impl Block<18> for Q4_0 {
    type Codes<'a> = Centred<'a>;
    type Factors = Scale<F16>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = false;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 18]) -> Scale<F16> {
        Scale(F16::at(block, 0))
    }

    #[inline(always)]
    fn codes(block: &[u8; 18], _piece: u32) -> Centred<'_> {
        Centred(Halves(block.last_chunk().expect("16 bytes")))
    }
}

impl Block<20> for Q4_1 {
    type Codes<'a> = Halves<'a>;
    type Factors = ScaleMin<F16>;
    const BLOCK: usize = 1;
    const SCALES: usize = 1;
    const MIN: bool = true;

    #[inline(always)]
    fn factors<S: Simd>(block: &[u8; 20]) -> ScaleMin<F16> {
        ScaleMin(F16::at(block, 0), F16::at(block, 2))
    }

    #[inline(always)]
    fn codes(block: &[u8; 20], _piece: u32) -> Halves<'_> {
        Halves(block.last_chunk().expect("16 bytes"))
    }
}

/// Bytes whose low halves are the first 16 codes, and high halves the others.
pub(super) struct Halves<'a>(pub(super) &'a [u8; 16]);

impl Halves<'_> {
    /// All codes plus a number.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn plus<S: Simd>(&self, number: i32) -> Loaded<S> {
        // SAFETY: the caller's promise; N divides 16.
        unsafe {
            let mut all = unset::<S>();
            for i in 0..16 / S::N {
                let bytes = S::load_u8(self.0.as_ptr().add(i * S::N));
                all[i] = S::float(S::plus(S::and(bytes, 15), number));
                all[i + 16 / S::N] = S::float(S::plus(S::right(bytes, 4), number));
            }
            all
        }
    }
}

impl Codes for Halves<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe { self.plus::<S>(0) }
    }
}

/// The same for signed codes: `code - 8`.
pub(super) struct Centred<'a>(Halves<'a>);

impl Codes for Centred<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe { self.0.plus::<S>(-8) }
    }
}
