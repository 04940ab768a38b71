//! The vector operations of products with packed weights, implemented for each instruction set.
//!
//! Invariants: the operations of a type run only on a CPU that has its instructions; [`Isa::run`] is
//! the only place that enters code which uses them. The functions are always inlined, so that a loop
//! compiled with the right target features contains the instructions without calls.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
use portable::Portable;

/// A vector of f32, and what products do with it.
///
/// # Safety
/// Every function requires the instruction set that the implementing type names. Those that take a
/// pointer require as many elements behind it as they read, at any alignment.
pub(super) trait Simd: 'static {
    /// `N` numbers.
    type Vector: Copy;
    /// `N` integers of 32 bits.
    type Ints: Copy;
    /// Elements of a vector: a divisor of 16.
    const N: usize;

    /// Brings bytes into the caches, if there are any.
    unsafe fn prefetch(from: *const u8);
    unsafe fn splat(x: f32) -> Self::Vector;
    /// A float of 16 bits, IEEE 754, in all lanes.
    unsafe fn splat_f16(bits: u16) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    /// Floats of 16 bits, IEEE 754.
    unsafe fn load_f16(from: *const u8) -> Self::Vector;
    /// bfloat16.
    unsafe fn load_bf16(from: *const u8) -> Self::Vector;
    unsafe fn store(to: *mut f32, x: Self::Vector);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`; rounded only once if the CPU has that instruction.
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The sum of all elements.
    unsafe fn sum(x: Self::Vector) -> f32;

    /// `N` unsigned bytes.
    unsafe fn load_u8(from: *const u8) -> Self::Ints;
    /// `N` signed bytes.
    unsafe fn load_i8(from: *const u8) -> Self::Ints;
    /// `N` bits, from the lowest one of the first byte on.
    unsafe fn load_1(from: *const u8) -> Self::Ints;
    /// `N` fields of 2 bits, from the lowest ones of the first byte on.
    unsafe fn load_2(from: *const u8) -> Self::Ints;
    /// `N` fields of 4 bits, from the lowest ones of the first byte on.
    unsafe fn load_4(from: *const u8) -> Self::Ints;
    unsafe fn and(a: Self::Ints, b: i32) -> Self::Ints;
    unsafe fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn plus(a: Self::Ints, b: i32) -> Self::Ints;
    unsafe fn left(a: Self::Ints, bits: u32) -> Self::Ints;
    /// Fills with zeros.
    unsafe fn right(a: Self::Ints, bits: u32) -> Self::Ints;
    /// Integers as numbers.
    unsafe fn float(a: Self::Ints) -> Self::Vector;
    /// Floats e4m3fn, as signed bytes, as numbers.
    unsafe fn e4m3(a: Self::Ints) -> Self::Vector;
    /// Bits of floats e2m1, which are below 16, as twice the numbers.
    unsafe fn e2m1_doubled(a: Self::Ints) -> Self::Vector;
}

/// Work that is compiled once for each instruction set.
pub(super) trait Work {
    /// # Safety
    /// The CPU has the instructions of `S`.
    unsafe fn run<S: Simd>(self);
}

/// An instruction set for which products are compiled. Results of different sets differ only by
/// rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// x86-64 with AVX-512F, beside what AVX2 needs.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The instruction set for which the program itself was compiled.
    Portable,
}

impl Isa {
    /// All instruction sets, fastest first.
    pub(super) const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// The fastest one that this CPU has.
    pub(super) fn best() -> Self {
        let mut all = Self::ALL.into_iter();
        all.find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this CPU has it.
    pub(super) fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// Elements of its vectors.
    pub(super) fn lanes(self) -> usize {
        match self {
            Self::Avx512 if self.is_available() => 16,
            Self::Avx512 | Self::Avx2 | Self::Portable => Portable::N,
        }
    }

    /// Does the work with these instructions; with those of the program if the CPU lacks them.
    pub(super) fn run(self, work: impl Work) {
        // SAFETY: each arm is entered only if the CPU has the instructions.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 if self.is_available() => avx512(work),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 if self.is_available() => avx2(work),
                Self::Avx512 | Self::Avx2 | Self::Portable => work.run::<Portable>(),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn avx512(work: impl Work) {
    // SAFETY: this function is compiled with these instructions, and its caller has checked them.
    unsafe { work.run::<Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(work: impl Work) {
    // SAFETY: this function is compiled with these instructions, and its caller has checked them.
    unsafe { work.run::<Avx2>() }
}
