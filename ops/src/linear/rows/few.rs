//! Products of a few rows of x: elements are unpacked in registers and multiplied at once.
//!
//! All in f32: within the elements of one scale the sum of `code * x`, then its product with the
//! scale; what formats add to elements is multiplied by sums of x, which are made once.

use super::columns::Columns;
use super::simd::{Isa, Simd, Work};
use super::weight::{Codes, Factors, Loaded, PIECE, Row, Weight};
use std::ops::Range;

/// x [`m`, `k`] with whole pieces, and sums of it.
pub(super) struct X {
    m: usize,
    /// Pieces of a row.
    pieces: usize,
    x: Vec<Piece>,
    /// Sums of pieces, and of halves of pieces: a vector for each, over whose lanes it is spread.
    sums: [Vec<f32>; 2],
}

/// The elements of a piece, which no vector of 32 bytes lies across cache lines of.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Piece([f32; PIECE]);

impl X {
    /// `elements` are [`m`, `k`].
    pub(super) fn new(isa: Isa, elements: &[f32], m: usize, k: usize) -> Self {
        let pieces = k.div_ceil(PIECE);
        let mut x = vec![Piece([0.0; PIECE]); m * pieces];
        for (x, row) in x.chunks_exact_mut(pieces).zip(elements.chunks_exact(k)) {
            for (x, elements) in x.iter_mut().zip(row.chunks(PIECE)) {
                x.0[..elements.len()].copy_from_slice(elements);
            }
        }
        let lanes = isa.lanes();
        let sums = [1, 2].map(|parts| {
            let mut sums = Vec::with_capacity(m * pieces * parts * lanes);
            for part in x.iter().flat_map(|x| x.0.chunks_exact(PIECE / parts)) {
                let (first, rest) = part.split_at(lanes);
                let start = sums.len();
                sums.extend_from_slice(first);
                for x in rest.chunks_exact(lanes) {
                    for (sum, x) in sums[start..].iter_mut().zip(x) {
                        *sum += x;
                    }
                }
            }
            sums
        });
        Self { m, pieces, x, sums }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &[Piece] {
        &self.x[row * self.pieces..][..self.pieces]
    }

    /// The sums of a row for formats with so many scales for a piece.
    #[inline(always)]
    fn sums(&self, row: usize, scales: usize) -> &[f32] {
        let sums = &self.sums[if scales == 2 { 1 } else { 0 }];
        let count = sums.len() / self.m;
        &sums[row * count..][..count]
    }
}

/// Some rows of a weight times all rows of x.
pub(super) struct Few<'a, W> {
    pub(super) weight: W,
    pub(super) rows: Range<usize>,
    pub(super) x: &'a X,
    pub(super) y: Columns<'a>,
}

impl<W: Weight> Work for Few<'_, W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        assert!(self.x.sums[0].len() == self.x.x.len() * S::N);
        let mut first = 0;
        while first < self.x.m {
            // SAFETY: the caller's promise.
            first += unsafe {
                match self.x.m - first {
                    // Two rows of the weight at once, but for large blocks, which keep a CPU busy.
                    1 if W::Row::BLOCK == 1 => self.times::<S, 1, 2>(first),
                    1 => self.times::<S, 1, 1>(first),
                    2 | 3 => self.times::<S, 2, 1>(first),
                    _ => self.times::<S, 4, 1>(first),
                }
            };
        }
    }
}

impl<W: Weight> Few<'_, W> {
    /// The rows of the weight, `R` at once, times `M` rows of x; returns `M`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn times<S: Simd, const M: usize, const R: usize>(&self, first: usize) -> usize {
        let x: [&[Piece]; M] = std::array::from_fn(|m| self.x.row(first + m));
        let sums = std::array::from_fn(|m| self.x.sums(first + m, W::Row::SCALES));
        for row in self.rows.clone().step_by(R) {
            // The last row several times, if there are not as many.
            let rows = std::array::from_fn(|r| (row + r).min(self.rows.end - 1));
            let weights = rows.map(|row| self.weight.row(row));
            // SAFETY: the caller's promise.
            unsafe {
                let dots = dots::<S, W::Row, M, R>(weights, x, sums);
                for (row, dots) in rows.into_iter().zip(dots) {
                    for (m, dot) in dots.into_iter().enumerate() {
                        self.y.put(first + m, row, dot);
                    }
                }
            }
        }
        M
    }
}

/// Sums that are made at the same time, since each addition waits for the last one.
const CHAINS: usize = 4;

/// How far ahead weights are brought into the caches, in bytes. CPUs do so by themselves, but not
/// beyond a page, and not early enough.
const AHEAD: usize = 1536;

/// Bytes of a line of a cache.
const LINE: usize = 64;

/// Sums of products of a row of the weight with `M` rows of x, in parts.
type Totals<S, const M: usize> = [[<S as Simd>::Vector; CHAINS]; M];

/// `R` rows of the weight times `M` rows of x.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn dots<S: Simd, W: Row, const M: usize, const R: usize>(
    rows: [W; R],
    x: [&[Piece]; M],
    sums: [&[f32]; M],
) -> [[f32; M]; R] {
    // Vectors are not touched in closures: what is not certainly inlined is compiled without `S`.
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals: [Totals<S, M>; R] = [[[S::splat(0.0); CHAINS]; M]; R];
        for block in 0..x[0].len() / W::BLOCK {
            for r in 0..R {
                let ahead = rows[r].place(block).wrapping_add(AHEAD);
                for line in (0..W::BYTES).step_by(LINE) {
                    S::prefetch(ahead.wrapping_add(line));
                }
                let factors = rows[r].factors::<S>(block);
                // Written out, so that the place of each piece in a block is a constant.
                macro_rules! pieces {
                    ($($piece:literal)*) => {$(
                        if $piece < W::BLOCK {
                            let w = rows[r].codes(block, $piece).load::<S>();
                            let number = block * W::BLOCK + $piece;
                            add::<S, W, M, $piece>(&mut totals[r], w, factors, number, x, sums);
                        }
                    )*};
                }
                pieces!(0 1 2 3 4 5 6 7);
            }
        }
        let mut dots = [[0.0; M]; R];
        for r in 0..R {
            for m in 0..M {
                let [a, b, c, d] = totals[r][m];
                dots[r][m] = S::sum(S::add(S::add(a, b), S::add(c, d)));
            }
        }
        dots
    }
}

/// Adds the products of a piece, the one with this number, which is `PIECE_OF_BLOCK` in its block.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn add<S: Simd, W: Row, const M: usize, const PIECE_OF_BLOCK: usize>(
    totals: &mut Totals<S, M>,
    w: Loaded<S>,
    factors: W::Factors,
    number: usize,
    x: [&[Piece]; M],
    sums: [&[f32]; M],
) {
    let vectors = PIECE / S::N;
    for m in 0..M {
        let x = x[m][number].0.as_ptr();
        let total = &mut totals[m];
        // SAFETY: the caller's promise; a piece has so many vectors.
        unsafe {
            if W::SCALES == 0 {
                for i in 0..vectors {
                    total[i] = S::mul_add(w[i], S::load(x.add(i * S::N)), total[i]);
                }
                continue;
            }
            let vectors = vectors / W::SCALES.max(1);
            for part in 0..W::SCALES {
                let first = part * vectors;
                let mut inner = S::mul(w[first], S::load(x.add(first * S::N)));
                for i in first + 1..first + vectors {
                    inner = S::mul_add(w[i], S::load(x.add(i * S::N)), inner);
                }
                let index = PIECE_OF_BLOCK * W::SCALES + part;
                total[0] = S::mul_add(inner, factors.scale::<S>(index), total[0]);
                if W::MIN {
                    let at = (number * W::SCALES + part) * S::N;
                    let sum = S::load(sums[m][at..][..S::N].as_ptr());
                    total[1] = S::mul_add(factors.min::<S>(index), sum, total[1]);
                }
            }
        }
    }
}
