//! AVX-512F: 16 lanes, 32 registers.

#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each passes on what `Simd` asks of its caller: the instructions, and valid elements"
)]

use super::Simd;
use std::arch::x86_64::*;

/// Requires `avx512f`, and what [`super::Avx2`] requires.
pub(super) enum Avx512 {}

impl Simd for Avx512 {
    type Vector = __m512;
    type Ints = __m512i;
    const N: usize = 16;

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_f16(bits: u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(bits.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_1(from: *const u8) -> __m512i {
        unsafe {
            let bits = _mm512_set1_epi32(i32::from(from.cast::<u16>().read_unaligned()));
            let shifts = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_and_si512(_mm512_srlv_epi32(bits, shifts), _mm512_set1_epi32(1))
        }
    }
    #[inline(always)]
    unsafe fn load_2(from: *const u8) -> __m512i {
        unsafe {
            let bits = _mm512_set1_epi32(from.cast::<i32>().read_unaligned());
            let shifts =
                _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_and_si512(_mm512_srlv_epi32(bits, shifts), _mm512_set1_epi32(3))
        }
    }
    #[inline(always)]
    unsafe fn load_4(from: *const u8) -> __m512i {
        unsafe {
            let [low, high] = from.cast::<[i32; 2]>().read_unaligned();
            let bits = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
            let shifts =
                _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            _mm512_and_si512(_mm512_srlv_epi32(bits, shifts), _mm512_set1_epi32(15))
        }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: i32) -> __m512i {
        unsafe { _mm512_and_si512(a, _mm512_set1_epi32(b)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn plus(a: __m512i, b: i32) -> __m512i {
        unsafe { _mm512_add_epi32(a, _mm512_set1_epi32(b)) }
    }
    #[inline(always)]
    unsafe fn left(a: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn right(a: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn float(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn e4m3(a: __m512i) -> __m512 {
        unsafe {
            // The sign, and exponent and mantissa where an f32 has them: too small by 2^120, also if
            // subnormal.
            let moved = _mm512_slli_epi32::<20>(a);
            let size = _mm512_set1_epi32(0x7f << 20);
            let sized = _mm512_and_si512(moved, size);
            let signed = _mm512_and_si512(moved, _mm512_set1_epi32(0x7f << 20 | i32::MIN));
            let number = _mm512_mul_ps(_mm512_castsi512_ps(signed), _mm512_set1_ps(2f32.powi(120)));
            // All bits set are a NaN.
            let nan = _mm512_cmpeq_epi32_mask(sized, size);
            _mm512_mask_mov_ps(number, nan, _mm512_set1_ps(f32::NAN))
        }
    }
    #[inline(always)]
    unsafe fn e2m1_doubled(a: __m512i) -> __m512 {
        unsafe {
            let numbers = _mm512_setr_ps(
                0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0,
                -12.0,
            );
            _mm512_permutexvar_ps(a, numbers)
        }
    }
}
