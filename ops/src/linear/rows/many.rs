//! Products of many rows of x: panels of rows are unpacked to f32, and multiplied by `gemm`.

use super::Rows;
use super::columns::Columns;
use super::simd::Isa;
use gemm::Parallelism;
use std::cell::RefCell;
use std::ops::Range;

/// Elements of a panel: a megabyte, half of what caches of a core hold.
const PANEL: usize = 1 << 16;

/// Most rows of a panel that is multiplied at once, for rows of `k` elements.
pub(super) fn height(k: usize) -> usize {
    (PANEL / k).clamp(16, 512)
}

thread_local! {
    /// The panel of a thread.
    static UNPACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Some rows of a weight times x [`m`, K].
pub(super) fn multiply(
    isa: Isa,
    x: &[f32],
    m: usize,
    weight: &Rows,
    rows: Range<usize>,
    y: Columns,
) {
    let (k, n) = (weight.k, rows.len());
    UNPACKED.with_borrow_mut(|panel| {
        panel.resize(n * k, 0.0);
        weight.unpack_with(isa, rows.clone(), panel);
        let (to, stride) = y.part(m, rows);
        // SAFETY: x is [m, k], the panel [n, k] and y [m, n] with rows `stride` apart, which nobody
        // else uses.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                to,
                1,
                stride as isize,
                false,
                x.as_ptr(),
                1,
                k as isize,
                panel.as_ptr(),
                k as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    });
}
