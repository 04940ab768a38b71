//! The matrix product of the kernel, with sums in registers.
//!
//! With queries in the lanes of a vector, both products of attention have the same form:
//! `logits[key][query] = k[key][d] · q[d][query]`, summed over `d`, and
//! `o[dv][query] = v[key][dv] · p[key][query]`, summed over `key`. The left operand is
//! read in place, one number at a time, with two strides; the right one is a panel of
//! queries that stays in the L1 cache. So k and v need no transposition, and the softmax
//! between the products needs no reduction across lanes.

use crate::simd::Simd;

/// The left operand: element (row, step) is at `start + row * row_stride + step * step_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    /// Element (0, 0).
    pub(crate) start: *const f32,
    /// Elements from one row to the next.
    pub(crate) row_stride: usize,
    /// Elements from one step to the next.
    pub(crate) step_stride: usize,
    /// Rows of the left operand and of the result.
    pub(crate) rows: usize,
    /// Number of terms of each sum.
    pub(crate) steps: usize,
}

/// Multiplies `left` by the panel `right`, which has [`Left::steps`] rows of `W` vectors, into
/// the panel `out`, which has [`Left::rows`] rows: `out = factor * out + sum` if `ACCUMULATED`,
/// else `out = factor * sum`.
///
/// # Safety
/// The CPU has the instructions of `S`; all elements of `left` lie in one allocation; both
/// panels have all their rows and are aligned to the size of a vector.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, const W: usize, const ACCUMULATED: bool>(
    left: Left,
    right: *const f32,
    factor: [S::Vector; W],
    out: *mut f32,
) {
    let mut row = 0;
    // Each strip height is used while that many rows are left; heights above `S::ROWS` compile to
    // nothing.
    macro_rules! strips {
        ($($rows:literal)*) => {$(
            if S::ROWS >= $rows {
                while left.rows - row >= $rows {
                    // SAFETY: the caller's promise; `$rows` rows are left from `row` on.
                    unsafe {
                        strip::<S, $rows, W, ACCUMULATED>(
                            Left { start: left.start.add(row * left.row_stride), ..left },
                            right,
                            factor,
                            out.add(row * W * S::N),
                        );
                    }
                    row += $rows;
                }
            }
        )*};
    }
    strips!(12 8 6 4 2 1);
}

/// `R` rows of the product, their sums in registers.
///
/// # Safety
/// As for [`product`], with `R` rows left.
#[inline(always)]
unsafe fn strip<S: Simd, const R: usize, const W: usize, const ACCUMULATED: bool>(
    left: Left,
    right: *const f32,
    factor: [S::Vector; W],
    out: *mut f32,
) {
    // SAFETY: the caller's promise; `starts` point to rows of the left operand and are not read
    // past its last step; both panels have all their vectors.
    unsafe {
        let mut sums = [[S::splat(0.0); W]; R];
        // `black_box` makes the compiler keep the address of every third row in a register;
        // otherwise it computes each row's address from that of the row before.
        let mut starts = [left.start; 4];
        for (i, start) in starts.iter_mut().enumerate().take(R.div_ceil(3)) {
            *start = std::hint::black_box(left.start.add(3 * i * left.row_stride));
        }
        let mut right = right;
        for _ in 0..left.steps {
            let mut column = [S::splat(0.0); W];
            for (w, lanes) in column.iter_mut().enumerate() {
                *lanes = S::load(right.add(w * S::N));
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                let number = S::splat(*starts[row / 3].add(row % 3 * left.row_stride));
                for (sum, lanes) in sum.iter_mut().zip(column) {
                    *sum = S::mul_add(number, lanes, *sum);
                }
            }
            right = right.add(W * S::N);
            for start in &mut starts {
                *start = start.wrapping_add(left.step_stride);
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
            for (w, (sum, factor)) in sum.into_iter().zip(factor).enumerate() {
                let to = out.add((row * W + w) * S::N);
                let result = if ACCUMULATED {
                    S::mul_add(factor, S::load(to), sum)
                } else {
                    S::mul(factor, sum)
                };
                S::store(to, result);
            }
        }
    }
}
