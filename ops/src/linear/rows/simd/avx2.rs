//! AVX2 with FMA and F16C: 8 lanes, 16 registers.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each passes on what `Simd` asks of its caller: the instructions, and valid elements"
)]

use super::Simd;
use std::arch::asm;
use std::arch::x86_64::*;

/// Requires `avx2`, `fma` and `f16c`.
pub(super) enum Avx2 {}

impl Simd for Avx2 {
    type Vector = __m256;
    type Ints = __m256i;
    const N: usize = 8;

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(x: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(bits: u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(bits.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m256 {
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m256i {
        unsafe { widen_u8(from) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m256i {
        unsafe { widen_i8(from) }
    }
    #[inline(always)]
    unsafe fn load_1(from: *const u8) -> __m256i {
        unsafe {
            let bits = _mm256_set1_epi8(from.read().cast_signed());
            let shifts = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_and_si256(_mm256_srlv_epi32(bits, shifts), _mm256_set1_epi32(1))
        }
    }
    #[inline(always)]
    unsafe fn load_2(from: *const u8) -> __m256i {
        unsafe {
            let bits = _mm256_set1_epi32(i32::from(from.cast::<u16>().read_unaligned()));
            let shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
            _mm256_and_si256(_mm256_srlv_epi32(bits, shifts), _mm256_set1_epi32(3))
        }
    }
    #[inline(always)]
    unsafe fn load_4(from: *const u8) -> __m256i {
        unsafe {
            let bits = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            _mm256_and_si256(_mm256_srlv_epi32(bits, shifts), _mm256_set1_epi32(15))
        }
    }
    #[inline(always)]
    unsafe fn and(a: __m256i, b: i32) -> __m256i {
        unsafe { _mm256_and_si256(a, _mm256_set1_epi32(b)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn plus(a: __m256i, b: i32) -> __m256i {
        unsafe { _mm256_add_epi32(a, _mm256_set1_epi32(b)) }
    }
    #[inline(always)]
    unsafe fn left(a: __m256i, bits: u32) -> __m256i {
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn right(a: __m256i, bits: u32) -> __m256i {
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn float(a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn e4m3(a: __m256i) -> __m256 {
        unsafe {
            // The sign, and exponent and mantissa where an f32 has them: too small by 2^120, also if
            // subnormal.
            let moved = _mm256_slli_epi32::<20>(a);
            let size = _mm256_set1_epi32(0x7f << 20);
            let sized = _mm256_and_si256(moved, size);
            let signed = _mm256_and_si256(moved, _mm256_set1_epi32(0x7f << 20 | i32::MIN));
            let number = _mm256_mul_ps(_mm256_castsi256_ps(signed), _mm256_set1_ps(2f32.powi(120)));
            // All bits set are a NaN.
            let nan = _mm256_castsi256_ps(_mm256_cmpeq_epi32(sized, size));
            _mm256_or_ps(number, nan)
        }
    }
    #[inline(always)]
    unsafe fn e2m1_doubled(a: __m256i) -> __m256 {
        unsafe {
            let sizes = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0);
            // Of the index, only the lowest three bits count.
            let number = _mm256_permutevar8x32_ps(sizes, a);
            let sign = _mm256_and_si256(_mm256_slli_epi32::<28>(a), _mm256_set1_epi32(i32::MIN));
            _mm256_or_ps(number, _mm256_castsi256_ps(sign))
        }
    }
}

/// `vpmovzxbd` from memory, written out: compilers move a mask that follows before the conversion,
/// which then has its bytes in a register, and on Zen takes twice the time.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen_u8(from: *const u8) -> __m256i {
    let ints: __m256i;
    unsafe {
        asm!(
            "vpmovzxbd {ints}, qword ptr [{from}]",
            ints = lateout(ymm_reg) ints,
            from = in(reg) from,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    ints
}

/// `vpmovsxbd` from memory, as [`widen_u8`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen_i8(from: *const u8) -> __m256i {
    let ints: __m256i;
    unsafe {
        asm!(
            "vpmovsxbd {ints}, qword ptr [{from}]",
            ints = lateout(ymm_reg) ints,
            from = in(reg) from,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    ints
}
