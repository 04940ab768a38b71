//! Plain arrays of four f32, which compilers map to SSE2, NEON and WebAssembly's 128-bit SIMD.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each passes on what `Simd` asks of its caller: the instructions, and valid elements"
)]

use super::Simd;
use half::{bf16, f16};

/// Requires nothing.
pub(crate) enum Portable {}

/// Whether a fused multiply-add is one instruction; elsewhere it would be a library call.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[inline(always)]
fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// An f16 as f32, by operations that every vector unit has.
#[inline(always)]
fn widened(half: f16) -> f32 {
    let bits = half.to_bits();
    // The bits of a smaller f32, whose exponent has another bias: the product is exact.
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let shifted = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = if magnitude >= 0x0f80_0000 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(shifted | special | (u32::from(bits & 0x8000) << 16))
}

impl Simd for Portable {
    type Vector = [f32; 4];
    type Mask = [bool; 4];
    const N: usize = 4;
    const ROWS: usize = if cfg!(target_arch = "aarch64") { 12 } else { 4 };

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        unsafe { from.cast::<[f32; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: [f32; 4]) {
        unsafe { to.cast::<[f32; 4]>().write(x) }
    }
    #[inline(always)]
    unsafe fn load_any(from: *const f32) -> [f32; 4] {
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_any(to: *mut f32, x: [f32; 4]) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> [f32; 4] {
        unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(widened)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> [f32; 4] {
        let bits = unsafe { from.cast::<[u16; 4]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    unsafe fn sum([a, b, c, d]: [f32; 4]) -> f32 {
        (a + b) + (c + d)
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| {
            if FUSED {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(x: [f32; 4]) -> [f32; 4] {
        // After adding 1.5 * 2^23, no bits are left for a fraction. The caller's numbers are below
        // 2^22 in size.
        const SHIFT: f32 = 12_582_912.0;
        x.map(|x| (x + SHIFT) - SHIFT)
    }
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "callers hold exponents to 8 bits"
    )]
    unsafe fn scale_by_power(x: [f32; 4], n: [f32; 4]) -> [f32; 4] {
        zip(x, n, |x, n| {
            x * f32::from_bits(((n as i32 + 127) as u32) << 23)
        })
    }
    #[inline(always)]
    unsafe fn at_most(a: [f32; 4], b: [f32; 4]) -> [bool; 4] {
        std::array::from_fn(|i| a[i] <= b[i])
    }
    #[inline(always)]
    unsafe fn below(a: [f32; 4], b: [f32; 4]) -> [bool; 4] {
        std::array::from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    unsafe fn and(a: [bool; 4], b: [bool; 4]) -> [bool; 4] {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: [bool; 4], b: [bool; 4]) -> [bool; 4] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn select(mask: [bool; 4], a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if mask[i] { a[i] } else { b[i] })
    }
}
