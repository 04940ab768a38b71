//! Rows of weights as f32, whatever they are stored in, and products with them on the CPU.
//!
//! Owns: [`Rows`], a checked view of a weight whose rows can be unpacked, and [`multiply`]. One file a
//! format documents its layout and loads its elements into vectors (`simd`). Products of a few rows
//! unpack the weight in registers as they read it (`few`); those of many unpack panels of it that stay
//! in the caches of a core (`many`).
//!
//! Invariants: unpacked elements have the bits that the format's reference implementation gives in
//! f32, on every instruction set. Sums are f32, and none is split between threads, so that results do
//! not depend on their number.

#![expect(
    clippy::needless_range_loop,
    reason = "arrays of vectors have more elements than large vectors fill"
)]

mod affine;
mod columns;
mod dense;
mod few;
mod float8;
mod floats;
mod many;
mod mxfp4;
mod product;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q6_k;
mod q8_0;
mod simd;
#[cfg(test)]
mod tests;
mod weight;

pub(crate) use product::multiply;

use super::packed::Packed;
use super::storage::Storage;
use affine::Affine;
use burn::tensor::DType;
use dense::{Bf16, Dense, F16, F32};
use float8::Float8;
use floats::Floats;
use mxfp4::{Microscaled, Mxfp4};
use q2_k::Q2K;
use q3_k::Q3K;
use q4::{Q4_0, Q4_1};
use q4_k::{Q4K, Q5K};
use q5::{Q5_0, Q5_1};
use q6_k::Q6K;
use q8_0::Q8_0;
use simd::{Isa, Simd, Work};
use std::fmt;
use std::ops::Range;
use weight::{Blocks, Codes, Factors, PIECE, Row, Weight};

/// A weight matrix [N, K] on the host. Copies share its bytes.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    storage: Storage,
    n: usize,
    k: usize,
    format: Format<'a>,
}

/// The bytes, by format; their lengths are those of [N, K].
#[derive(Clone, Copy)]
enum Format<'a> {
    Q4_0(Blocks<'a, Q4_0, 18>),
    Q4_1(Blocks<'a, Q4_1, 20>),
    Q5_0(Blocks<'a, Q5_0, 22>),
    Q5_1(Blocks<'a, Q5_1, 24>),
    Q8_0(Blocks<'a, Q8_0, 34>),
    Q2K(Blocks<'a, Q2K, 84>),
    Q3K(Blocks<'a, Q3K, 110>),
    Q4K(Blocks<'a, Q4K, 144>),
    Q5K(Blocks<'a, Q5K, 176>),
    Q6K(Blocks<'a, Q6K, 210>),
    Mxfp4(Blocks<'a, Mxfp4, 17>),
    Affine2(Affine<'a, 2, 8>),
    Affine4(Affine<'a, 4, 16>),
    Affine8(Affine<'a, 8, 32>),
    Float8(Float8<'a>),
    Microscaled(Microscaled<'a>),
    F32(Dense<'a, F32, 4>),
    F16(Dense<'a, F16, 2>),
    Bf16(Dense<'a, Bf16, 2>),
}

/// Evaluates an expression with the weight of whatever format.
macro_rules! with_weight {
    ($format:expr, $weight:ident => $body:expr) => {
        match $format {
            Format::Q4_0($weight) => $body,
            Format::Q4_1($weight) => $body,
            Format::Q5_0($weight) => $body,
            Format::Q5_1($weight) => $body,
            Format::Q8_0($weight) => $body,
            Format::Q2K($weight) => $body,
            Format::Q3K($weight) => $body,
            Format::Q4K($weight) => $body,
            Format::Q5K($weight) => $body,
            Format::Q6K($weight) => $body,
            Format::Mxfp4($weight) => $body,
            Format::Affine2($weight) => $body,
            Format::Affine4($weight) => $body,
            Format::Affine8($weight) => $body,
            Format::Float8($weight) => $body,
            Format::Microscaled($weight) => $body,
            Format::F32($weight) => $body,
            Format::F16($weight) => $body,
            Format::Bf16($weight) => $body,
        }
    };
}
use with_weight;

impl<'a> Rows<'a> {
    /// A weight of `n` rows of `k` elements in the bytes of its tensors; those of dense weights are in
    /// the order of the machine.
    ///
    /// # Errors
    /// If a tensor has another length, or there is another number of them.
    pub fn new(storage: Storage, [n, k]: [usize; 2], tensors: &[&'a [u8]]) -> Result<Self, String> {
        let sizes = match storage {
            Storage::Dense(dtype) => vec![n.saturating_mul(k).saturating_mul(dtype.size())],
            Storage::Packed(packed) => packed.sizes(n, k)?,
        };
        let given: Vec<usize> = tensors.iter().map(|bytes| bytes.len()).collect();
        if given != sizes {
            return Err(format!("tensors of {given:?} bytes, expected {sizes:?}"));
        }
        let format = match storage {
            Storage::Dense(dtype) => Format::dense(dtype, k, tensors[0]),
            Storage::Packed(packed) => Format::packed(packed, k, tensors),
        };
        Ok(Self {
            storage,
            n,
            k,
            format: format.ok_or_else(|| format!("cannot unpack {storage:?}"))?,
        })
    }

    /// Whether many rows are quantised before they are multiplied with it.
    fn quantises(&self) -> bool {
        self.storage.quantises()
    }

    /// Row `row`, as f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not K long.
    pub fn unpack(&self, row: usize, out: &mut [f32]) {
        self.unpack_with(Isa::best(), row..row + 1, out);
    }

    /// As [`unpack`](Self::unpack), of consecutive rows.
    pub(crate) fn unpack_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.unpack_with(Isa::best(), rows, out);
    }

    fn unpack_with(&self, isa: Isa, rows: Range<usize>, out: &mut [f32]) {
        assert!(
            rows.start <= rows.end && rows.end <= self.n,
            "rows of the weight"
        );
        assert_eq!(out.len(), rows.len() * self.k, "elements of the rows");
        let k = self.k;
        if !out.is_empty() {
            with_weight!(self.format, weight => isa.run(Unpack { weight, k, first: rows.start, out }));
        }
    }
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = [self.n, self.k];
        f.debug_tuple("Rows")
            .field(&self.storage)
            .field(&shape)
            .finish()
    }
}

/// The lengths of tensors were checked before.
impl<'a> Format<'a> {
    fn dense(dtype: DType, k: usize, bytes: &'a [u8]) -> Option<Self> {
        Some(match dtype {
            DType::F32 => Self::F32(Dense::new(bytes, k)),
            DType::F16 => Self::F16(Dense::new(bytes, k)),
            DType::BF16 => Self::Bf16(Dense::new(bytes, k)),
            _ => return None,
        })
    }

    fn packed(packed: Packed, k: usize, tensors: &[&'a [u8]]) -> Option<Self> {
        let codes = tensors[0];
        Some(match packed {
            Packed::Q4_0 => Self::Q4_0(Blocks::new(codes, k)),
            Packed::Q4_1 => Self::Q4_1(Blocks::new(codes, k)),
            Packed::Q5_0 => Self::Q5_0(Blocks::new(codes, k)),
            Packed::Q5_1 => Self::Q5_1(Blocks::new(codes, k)),
            Packed::Q8_0 => Self::Q8_0(Blocks::new(codes, k)),
            Packed::Q2K => Self::Q2K(Blocks::new(codes, k)),
            Packed::Q3K => Self::Q3K(Blocks::new(codes, k)),
            Packed::Q4K => Self::Q4K(Blocks::new(codes, k)),
            Packed::Q5K => Self::Q5K(Blocks::new(codes, k)),
            Packed::Q6K => Self::Q6K(Blocks::new(codes, k)),
            Packed::Mxfp4 => Self::Mxfp4(Blocks::new(codes, k)),
            Packed::Affine {
                bits,
                group,
                scales,
            } => {
                let factors = [1, 2].map(|i| Floats::new(scales, tensors[i]));
                match bits {
                    2 => Self::Affine2(Affine::new(codes, factors, k, group as usize)),
                    4 => Self::Affine4(Affine::new(codes, factors, k, group as usize)),
                    8 => Self::Affine8(Affine::new(codes, factors, k, group as usize)),
                    _ => return None,
                }
            }
            Packed::Float8 { scales, .. } => {
                Self::Float8(Float8::new(codes, Floats::new(scales, tensors[1]), k))
            }
            Packed::Microscaled => Self::Microscaled(Microscaled {
                blocks: codes.as_chunks().0,
                exponents: tensors[1],
                columns: k / PIECE,
            }),
        })
    }
}

/// Writes rows from `first` on to `out`, which holds whole ones.
struct Unpack<'a, W> {
    weight: W,
    k: usize,
    first: usize,
    out: &'a mut [f32],
}

impl<W: Weight> Work for Unpack<'_, W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (row, out) in self.out.chunks_exact_mut(self.k).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { unpack::<S, _>(self.weight.row(self.first + row), out) }
        }
    }
}

/// Writes the elements of a row.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn unpack<S: Simd, R: Row>(row: R, out: &mut [f32]) {
    let mut pieces = out.chunks_mut(PIECE);
    let mut last = [0.0; PIECE];
    for block in 0.. {
        if pieces.len() == 0 {
            return;
        }
        let factors = row.factors::<S>(block);
        for (piece, number) in (0..R::BLOCK).zip(0..) {
            let Some(out) = pieces.next() else { return };
            // SAFETY: the caller's promise.
            let codes = unsafe { row.codes(block, number).load::<S>() };
            let whole = out.len() == PIECE;
            let to = if whole {
                out.as_mut_ptr()
            } else {
                last.as_mut_ptr()
            };
            for at in (0..PIECE).step_by(S::N) {
                // SAFETY: the caller's promise; `to` has 32 elements, a multiple of N.
                unsafe {
                    let mut element = codes[at / S::N];
                    if R::SCALES > 0 {
                        let index = piece * R::SCALES + at * R::SCALES / PIECE;
                        element = S::mul(factors.scale::<S>(index), element);
                        if R::MIN {
                            element = S::add(element, factors.min::<S>(index));
                        }
                    }
                    S::store(to.add(at), element);
                }
            }
            if !whole {
                out.copy_from_slice(&last[..out.len()]);
            }
        }
    }
}
