//! Rows of floats: the elements themselves, in f32, f16 or bf16, in the order of the machine.

use super::simd::Simd;
use super::weight::{Codes, Loaded, PIECE, Row, Weight, unset, whole};
use std::marker::PhantomData;

/// An element type of `BYTES` bytes.
pub(super) trait Element<const BYTES: usize>: Sync + 'static {
    /// # Safety
    /// The CPU has the instructions of `S`; there are N elements.
    unsafe fn load<S: Simd>(from: *const u8) -> S::Vector;
}

pub(super) enum F32 {}
pub(super) enum F16 {}
pub(super) enum Bf16 {}

impl Element<4> for F32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::load(from.cast()) }
    }
}

impl Element<2> for F16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(from) }
    }
}

impl Element<2> for Bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(from) }
    }
}

/// A matrix whose elements are stored as they are, or one of its rows.
pub(super) struct Dense<'a, E, const BYTES: usize> {
    elements: &'a [[u8; BYTES]],
    k: usize,
    element: PhantomData<E>,
}

impl<E, const BYTES: usize> Clone for Dense<'_, E, BYTES> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E, const BYTES: usize> Copy for Dense<'_, E, BYTES> {}

impl<'a, E: Element<BYTES>, const BYTES: usize> Dense<'a, E, BYTES> {
    /// Rows of `k` elements.
    pub(super) fn new(bytes: &'a [u8], k: usize) -> Self {
        Self {
            elements: bytes.as_chunks().0,
            k,
            element: PhantomData,
        }
    }
}

impl<E: Element<BYTES>, const BYTES: usize> Weight for Dense<'_, E, BYTES> {
    type Row = Self;

    #[inline(always)]
    fn row(self, row: usize) -> Self {
        let elements = &self.elements[row * self.k..][..self.k];
        Self { elements, ..self }
    }
}

impl<'a, E: Element<BYTES>, const BYTES: usize> Row for Dense<'a, E, BYTES> {
    type Codes = Elements<'a, E, BYTES>;
    type Factors = ();
    const BLOCK: usize = 1;
    const SCALES: usize = 0;
    const MIN: bool = false;
    const BYTES: usize = PIECE * BYTES;

    #[inline(always)]
    fn place(self, block: usize) -> *const u8 {
        self.elements[block * PIECE..].as_ptr().cast()
    }

    #[inline(always)]
    fn factors<S: Simd>(self, _block: usize) {}

    #[inline(always)]
    fn codes(self, block: usize, _piece: u32) -> Elements<'a, E, BYTES> {
        Elements(&self.elements[block * PIECE..], PhantomData)
    }
}

/// The elements of a piece, which may be fewer at the end of a row, or more.
pub(super) struct Elements<'a, E, const BYTES: usize>(&'a [[u8; BYTES]], PhantomData<E>);

impl<E: Element<BYTES>, const BYTES: usize> Codes for Elements<'_, E, BYTES> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let (mut all, last) = (unset::<S>(), &mut [[0; BYTES]; PIECE]);
            let piece = whole(self.0, last);
            for i in 0..PIECE / S::N {
                all[i] = E::load::<S>(piece.as_ptr().add(i * S::N).cast());
            }
            all
        }
    }
}
