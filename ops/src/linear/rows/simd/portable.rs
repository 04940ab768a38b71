//! Loops over arrays, which compilers make vectors of.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each passes on what `Simd` asks of its caller: valid elements"
)]

use super::Simd;
use std::array::from_fn;

/// Requires no instructions.
pub(super) enum Portable {}

const N: usize = 8;

impl Simd for Portable {
    type Vector = [f32; N];
    type Ints = [i32; N];
    const N: usize = N;

    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; N] {
        unsafe { from.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: [f32; N]) {
        unsafe { to.cast::<[f32; N]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; N], b: [f32; N]) -> [f32; N] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; N], b: [f32; N]) -> [f32; N] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        from_fn(|i| {
            // Without such an instruction, `mul_add` calls a slow function.
            if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn sum(x: [f32; N]) -> f32 {
        let four: [f32; 4] = from_fn(|i| x[i] + x[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn splat_f16(bits: u16) -> [f32; N] {
        [wide(bits); N]
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> [f32; N] {
        let halves = unsafe { from.cast::<[[u8; 2]; N]>().read() };
        halves.map(|half| wide(u16::from_le_bytes(half)))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> [f32; N] {
        let halves = unsafe { from.cast::<[[u8; 2]; N]>().read() };
        halves.map(|[low, high]| f32::from_le_bytes([0, 0, low, high]))
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> [i32; N] {
        unsafe { from.cast::<[u8; N]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> [i32; N] {
        unsafe { from.cast::<[i8; N]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_1(from: *const u8) -> [i32; N] {
        let bits = unsafe { from.read() };
        from_fn(|i| i32::from(bits >> i & 1))
    }
    #[inline(always)]
    unsafe fn load_2(from: *const u8) -> [i32; N] {
        let bits = u16::from_le_bytes(unsafe { from.cast::<[u8; 2]>().read() });
        from_fn(|i| i32::from(bits >> (2 * i) & 3))
    }
    #[inline(always)]
    unsafe fn load_4(from: *const u8) -> [i32; N] {
        let bits = i32::from_le_bytes(unsafe { from.cast::<[u8; 4]>().read() });
        from_fn(|i| bits >> (4 * i) & 15)
    }
    #[inline(always)]
    unsafe fn and(a: [i32; N], b: i32) -> [i32; N] {
        a.map(|a| a & b)
    }
    #[inline(always)]
    unsafe fn or(a: [i32; N], b: [i32; N]) -> [i32; N] {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn plus(a: [i32; N], b: i32) -> [i32; N] {
        a.map(|a| a.wrapping_add(b))
    }
    #[inline(always)]
    unsafe fn left(a: [i32; N], bits: u32) -> [i32; N] {
        a.map(|a| a << bits)
    }
    #[inline(always)]
    unsafe fn right(a: [i32; N], bits: u32) -> [i32; N] {
        a.map(|a| (a.cast_unsigned() >> bits).cast_signed())
    }
    #[inline(always)]
    unsafe fn float(a: [i32; N]) -> [f32; N] {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    unsafe fn e4m3(a: [i32; N]) -> [f32; N] {
        a.map(|a| {
            let size = a.cast_unsigned() & 0x7f;
            // Exponent and mantissa as those of an f32 are too small by 2^120, also if subnormal.
            let number = f32::from_bits(size << 20) * 2f32.powi(120);
            // All bits set are a NaN.
            let number = if size == 0x7f { f32::NAN } else { number };
            f32::from_bits(number.to_bits() | (a.cast_unsigned() & 0x80) << 24)
        })
    }
    #[inline(always)]
    unsafe fn e2m1_doubled(a: [i32; N]) -> [f32; N] {
        a.map(|a| {
            let size = a & 7;
            let number = (size + (size - 4).max(0) + 2 * (size - 6).max(0)) as f32;
            f32::from_bits(number.to_bits() | (a.cast_unsigned() & 8) << 28)
        })
    }
}

/// The f32 of an f16, without branches.
#[inline(always)]
fn wide(bits: u16) -> f32 {
    let size = u32::from(bits & 0x7fff) << 13;
    // Exponent and mantissa as those of an f32 are too small by 2^112, also if subnormal.
    let finite = f32::from_bits(size) * 2f32.powi(112);
    // The largest exponent is that of infinity and NaN in both types.
    let number = if size >= 0x1f << 23 {
        f32::from_bits(size | 0xff << 23)
    } else {
        finite
    };
    f32::from_bits(number.to_bits() | u32::from(bits & 0x8000) << 16)
}
