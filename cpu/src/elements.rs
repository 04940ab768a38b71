//! Keys and values as the caller stores them.
//!
//! In:  arrays of f32 or of 16-bit floats. Out: tiles of them in f32.

use crate::simd::{LANES, Simd};
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

/// The values of keys.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// An array of their own.
    Own(Elements<'a>),
    /// The value of a key is its first elements, as in latent attention.
    InKeys {
        /// Whether all kv heads of a sequence have the same keys, of which there is then one array
        /// `[B, 1, kv_room, D]`.
        shared: bool,
    },
}

impl<'a, E> From<E> for Values<'a>
where
    Elements<'a>: From<E>,
{
    fn from(elements: E) -> Self {
        Self::Own(elements.into())
    }
}

impl<'a> Elements<'a> {
    /// Some of them.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn slice(&self, range: Range<usize>) -> Elements<'a> {
        match self {
            Self::F32(all) => Elements::F32(&all[range]),
            Self::F16(all) => Elements::F16(&all[range]),
            Self::Bf16(all) => Elements::Bf16(&all[range]),
        }
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

    /// Writes the elements of 16 bits in a range as f32; nothing for those of f32.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn widen<S: Simd>(&self, range: Range<usize>, to: &mut [f32]) {
        // SAFETY: the caller's promise; each load reads the `N` elements of a chunk.
        unsafe {
            match self {
                Self::F32(_) => {}
                Self::F16(all) => widen::<S, f16>(&all[range], to),
                Self::Bf16(all) => widen::<S, bf16>(&all[range], to),
            }
        }
    }
}

/// A float of 16 bits.
trait Half: Copy + Default {
    /// # Safety
    /// The CPU has the instructions of `S`, and there are `N` elements.
    unsafe fn load<S: Simd>(from: *const Self) -> S::Vector;
}

impl Half for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(from) }
    }
}

impl Half for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(from) }
    }
}

/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn widen<S: Simd, E: Half>(from: &[E], to: &mut [f32]) {
    let to = &mut to[..from.len()];
    let whole = from.len() - from.len() % S::N;
    let (mut last, mut wide) = ([E::default(); LANES], [0.0; LANES]);
    // SAFETY: the caller's promise; chunks have `N` elements, and both arrays as many as any vector.
    unsafe {
        let chunks = from.chunks_exact(S::N).zip(to.chunks_exact_mut(S::N));
        for (from, to) in chunks {
            S::store_any(to.as_mut_ptr(), E::load::<S>(from.as_ptr()));
        }
        last[..from.len() - whole].copy_from_slice(&from[whole..]);
        S::store_any(wide.as_mut_ptr(), E::load::<S>(last.as_ptr()));
    }
    to[whole..].copy_from_slice(&wide[..from.len() - whole]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    /// That the instruction sets agree is tested with whole problems.
    #[test]
    fn all_halves() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for count in [halves.len(), halves.len() - 3] {
            let mut got = vec![0.0; count];
            // SAFETY: it needs no instructions.
            unsafe { Elements::from(&halves[..]).widen::<Portable>(0..count, &mut got) };
            for (half, got) in halves.iter().zip(got) {
                let want = half.to_f32();
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan());
            }
        }
    }
}
