//! The vector operations of which the kernel is made, implemented for each instruction set.
//!
//! In:  nothing. Out: [`Simd`] and its implementations.
//!
//! Invariants: the operations of a type may run only on a CPU that has its instructions;
//! [`crate::Isa::compute`] is the only place that enters code which uses them. The functions
//! are always inlined, so that a kernel compiled with the right target features contains
//! the instructions without calls.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use half::{bf16, f16};

/// Lanes of the largest vector.
pub(crate) const LANES: usize = 16;

/// A vector of f32, and the operations of the kernel on it.
///
/// # Safety
/// Every function requires the instruction set that the implementing type names;
/// `load` and `store` also require `N` valid elements, aligned to the size of the vector.
pub(crate) trait Simd: 'static {
    /// `N` numbers.
    type Vector: Copy;
    /// `N` truth values.
    type Mask: Copy;
    /// Elements of a vector.
    const N: usize;
    /// Most rows of two accumulators each that fit the registers beside the operands.
    const ROWS: usize;

    unsafe fn splat(x: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, x: Self::Vector);
    /// As `load`, at any alignment.
    unsafe fn load_any(from: *const f32) -> Self::Vector;
    /// As `store`, at any alignment.
    unsafe fn store_any(to: *mut f32, x: Self::Vector);
    /// `N` floats of 16 bits, IEEE 754, at any alignment.
    unsafe fn load_f16(from: *const f16) -> Self::Vector;
    /// `N` bfloat16, at any alignment.
    unsafe fn load_bf16(from: *const bf16) -> Self::Vector;
    /// The sum of all elements.
    unsafe fn sum(x: Self::Vector) -> f32;
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`; rounded only once if the CPU has that instruction.
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The larger of the two; `b` if either is NaN.
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(x: Self::Vector) -> Self::Vector;
    /// `x * 2^n` for integers `n` in -126..=127 and normal results.
    unsafe fn scale_by_power(x: Self::Vector, n: Self::Vector) -> Self::Vector;
    /// `a <= b`; false if either is NaN.
    unsafe fn at_most(a: Self::Vector, b: Self::Vector) -> Self::Mask;
    /// `a < b`; false if either is NaN.
    unsafe fn below(a: Self::Vector, b: Self::Vector) -> Self::Mask;
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    unsafe fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// `a` where the mask holds, else `b`.
    unsafe fn select(mask: Self::Mask, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}
