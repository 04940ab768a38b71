//! Scales that are floats of a type known at run time.

use super::simd::Simd;
use super::weight::F16;
use butterfly_ir::Dtype;

/// Floats, little-endian.
#[derive(Clone, Copy)]
pub(super) enum Floats<'a> {
    F32(&'a [[u8; 4]]),
    F16(&'a [[u8; 2]]),
    Bf16(&'a [[u8; 2]]),
}

impl<'a> Floats<'a> {
    pub(super) fn new(dtype: Dtype, bytes: &'a [u8]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(bytes.as_chunks().0),
            Dtype::F16 => Self::F16(bytes.as_chunks().0),
            Dtype::Bf16 => Self::Bf16(bytes.as_chunks().0),
        }
    }

    #[inline(always)]
    pub(super) fn get<S: Simd>(self, at: usize) -> f32 {
        match self {
            Self::F32(floats) => f32::from_le_bytes(floats[at]),
            Self::F16(floats) => F16::at(&floats[at], 0).f32::<S>(),
            Self::Bf16(floats) => {
                let [low, high] = floats[at];
                f32::from_le_bytes([0, 0, low, high])
            }
        }
    }

    /// Some of them.
    #[inline(always)]
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        match self {
            Self::F32(floats) => Self::F32(&floats[first..][..count]),
            Self::F16(floats) => Self::F16(&floats[first..][..count]),
            Self::Bf16(floats) => Self::Bf16(&floats[first..][..count]),
        }
    }
}
