//! The instruction sets for which the kernel is compiled; one is chosen at run time.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Simd};

/// An instruction set for which the kernel is compiled. Results of different sets differ only by
/// rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// x86-64 with AVX-512F.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The instruction set for which the program itself was compiled.
    Portable,
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "AVX-512F",
            Self::Avx2 => "AVX2 with FMA",
            Self::Portable => "portable code",
        })
    }
}

impl Isa {
    /// All instruction sets, fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// The fastest one that this CPU has.
    pub fn best() -> Self {
        let mut all = Self::ALL.into_iter();
        all.find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
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

    /// Lanes of a panel for a tile of `rows` query rows: those of one vector if it holds all rows,
    /// else those of two.
    pub(crate) fn lanes(self, rows: usize) -> usize {
        let vector = match self {
            Self::Avx512 => 16,
            Self::Avx2 => 8,
            Self::Portable => Portable::N,
        };
        if rows <= vector { vector } else { 2 * vector }
    }

    /// Runs work that is compiled for this instruction set.
    ///
    /// # Safety
    /// [`Isa::is_available`] is true, and what the work itself relies on holds.
    pub(crate) unsafe fn run(self, work: impl Compiled) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512(work),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2(work),
                #[cfg(not(target_arch = "x86_64"))]
                Self::Avx512 | Self::Avx2 => unreachable!("is_available() is false"),
                Self::Portable => work.run::<Portable>(),
            }
        }
    }
}

/// Work that is compiled for each instruction set.
pub(crate) trait Compiled {
    /// Does it. Implementations are always inlined, so that they are compiled with the instructions.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`, and what the work itself relies on holds.
    unsafe fn run<S: Simd>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(work: impl Compiled) {
    // SAFETY: the caller's promise; this function is compiled with these instructions.
    unsafe { work.run::<Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(work: impl Compiled) {
    // SAFETY: the caller's promise; this function is compiled with these instructions.
    unsafe { work.run::<Avx2>() }
}
