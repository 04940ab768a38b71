//! Attention of a tile of few query rows, as decode has them.
//!
//! In:  a checked problem, and a tile whose rows fill at most half of a vector. Out: o and LSE, as from
//! [`tile`](crate::tile).
//!
//! With queries in the lanes of a vector most lanes would be idle, and v would be read in columns. Here
//! lanes hold neighbouring elements of a key or value, which are read once, in the order of memory.
//! Only the softmax, which is small, has queries in its lanes.

use crate::{
    Problem,
    query_tiles::{KEYS, Panel},
    scratch::Scratch,
    simd::{LANES, Simd},
    tile::{Item, finish_row, keys_of, weigh, widen_keys},
};

/// Whether this is the code for a tile of so many query rows.
#[inline(always)]
pub(crate) fn takes<S: Simd>(panels: &[Panel]) -> bool {
    matches!(panels, [panel] if 2 * panel.rows <= S::N)
}

/// Computes an item.
///
/// # Safety
/// The CPU has the instructions of `S`; the problem passed its check; the tile was made for `S::N`
/// lanes, and [`takes`] is true of its panels.
#[inline(always)]
pub(crate) unsafe fn compute<S: Simd>(problem: &Problem, item: &mut Item, scratch: &mut Scratch) {
    let tile = item.tile;
    let (d, dv, lanes) = (problem.head_dim, problem.v_head_dim, S::N);
    let panel = &tile.panels[0];
    scratch.queries.reserve(panel.rows * d);
    scratch.output.reserve(panel.rows * dv);
    scratch.logits.reserve(KEYS * lanes);
    scratch.maximum.reserve(lanes);
    scratch.sum.reserve(lanes);
    scratch.ranges.reserve(tile.bands.len() * 2 * lanes);
    for row in 0..panel.rows {
        let (head, query) = (row / tile.len, row % tile.len);
        let head = item.kv_head * problem.group() + head;
        let from = (head * problem.q_len + tile.first + query) * d;
        scratch.queries[row * d..][..d].copy_from_slice(&problem.q[from..][..d]);
    }
    scratch.output[..panel.rows * dv].fill(0.0);
    scratch.maximum[..lanes].fill(f32::NEG_INFINITY);
    scratch.sum[..lanes].fill(0.0);
    for &keys in &tile.tiles {
        let Some(visit) = panel.visit(keys) else {
            continue;
        };
        // SAFETY: the caller's promise.
        unsafe { widen_keys::<S>(problem, item.kv_head, keys, scratch) };
        let [k, v] = keys_of(
            problem,
            item.kv_head,
            keys,
            visit,
            [&scratch.keys, &scratch.values],
        );
        let count = k.len() / d;
        // Lanes without a query take part in the softmax, and have to stay finite.
        scratch.logits[..count * lanes].fill(0.0);
        let logits = &mut scratch.logits[..count * lanes];
        let queries = &scratch.queries[..panel.rows * d];
        // SAFETY: the caller's promise; the slices have whole rows, and there are lanes for all of them.
        let factors = unsafe {
            dots::<S>(queries, k, d, problem.scale, logits);
            let logits = logits.as_mut_ptr();
            let (maximum, sum) = (scratch.maximum.as_mut_ptr(), scratch.sum.as_mut_ptr());
            let ranges = &mut scratch.ranges;
            let [factor] =
                weigh::<S, 1>(problem, tile, panel, visit, logits, [maximum, sum], ranges);
            let mut factors = [0.0; LANES];
            S::store_any(factors.as_mut_ptr(), factor);
            factors
        };
        let output = &mut scratch.output[..panel.rows * dv];
        let (weights, v_step) = (&scratch.logits[..count * lanes], problem.v_step());
        // SAFETY: as above; rows of v have at least `dv` elements.
        unsafe { add::<S>(weights, (v, v_step), dv, &factors, output) };
    }
    for row in 0..panel.rows {
        let running = [scratch.maximum[row], scratch.sum[row]];
        finish_row(problem, item, row, running, &scratch.output[row * dv..]);
    }
}

/// Calls `$strip::<S, R>` for rows of a tile, `R` at once: each row of the other operand is then loaded
/// for several of them.
macro_rules! strips {
    ($rows:expr, $strip:ident($($argument:expr),*)) => {{
        let mut row = 0;
        while row < $rows {
            row += match $rows - row {
                1 => $strip::<S, 1>(row, $($argument),*),
                2 => $strip::<S, 2>(row, $($argument),*),
                3 => $strip::<S, 3>(row, $($argument),*),
                _ => $strip::<S, 4>(row, $($argument),*),
            };
        }
    }};
}

/// Writes `scale * k · q` of every key [`keys`, `d`] and query [rows, `d`] to `logits` [keys, lanes].
///
/// # Safety
/// The CPU has the instructions of `S`; there are whole rows, and no more queries than lanes.
#[inline(always)]
unsafe fn dots<S: Simd>(queries: &[f32], k: &[f32], d: usize, scale: f32, logits: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { strips!(queries.len() / d, dots_of(queries, k, d, scale, logits)) }
}

/// As [`dots`], of `R` queries from `row` on. Returns `R`.
///
/// # Safety
/// As for [`dots`].
#[inline(always)]
unsafe fn dots_of<S: Simd, const R: usize>(
    row: usize,
    queries: &[f32],
    k: &[f32],
    d: usize,
    scale: f32,
    logits: &mut [f32],
) -> usize {
    let whole = d - d % S::N;
    let queries: [&[f32]; R] = std::array::from_fn(|r| &queries[(row + r) * d..][..d]);
    for (k, logits) in k.chunks_exact(d).zip(logits.chunks_exact_mut(S::N)) {
        let to = &mut logits[row..row + R];
        // SAFETY: the caller's promise; a vector at `at` ends within the row.
        unsafe {
            let mut sums = [S::splat(0.0); R];
            for at in (0..whole).step_by(S::N) {
                let k = S::load_any(k.as_ptr().add(at));
                for r in 0..R {
                    let q = S::load_any(queries[r].as_ptr().add(at));
                    sums[r] = S::mul_add(q, k, sums[r]);
                }
            }
            for r in 0..R {
                let mut sum = S::sum(sums[r]);
                for at in whole..d {
                    sum += queries[r][at] * k[at];
                }
                to[r] = scale * sum;
            }
        }
    }
    R
}

/// `output = factors * output + weights^T v`: weights [keys, lanes], output [rows, `dv`], and v the first
/// `dv` elements of each of its rows of `step`.
///
/// # Safety
/// As for [`dots`]; `step` is at least `dv`.
#[inline(always)]
unsafe fn add<S: Simd>(
    weights: &[f32],
    (v, step): (&[f32], usize),
    dv: usize,
    factors: &[f32; LANES],
    output: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        strips!(
            output.len() / dv,
            add_of(weights, (v, step), dv, factors, output)
        )
    }
}

/// As [`add`], of `R` rows of the output from `row` on. Returns `R`.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
unsafe fn add_of<S: Simd, const R: usize>(
    row: usize,
    weights: &[f32],
    (v, step): (&[f32], usize),
    dv: usize,
    factors: &[f32; LANES],
    output: &mut [f32],
) -> usize {
    let output = &mut output[row * dv..][..R * dv];
    let mut at = 0;
    // SAFETY: the caller's promise; vectors from `at` on end within rows of `dv` elements.
    unsafe {
        while dv - at >= 2 * S::N {
            columns::<S, R, 2>(row, weights, (v, step), dv, factors, output, at);
            at += 2 * S::N;
        }
        if dv - at >= S::N {
            columns::<S, R, 1>(row, weights, (v, step), dv, factors, output, at);
            at += S::N;
        }
    }
    for at in at..dv {
        for r in 0..R {
            let pairs = weights.chunks_exact(S::N).zip(v.chunks_exact(step));
            let sum: f32 = pairs.map(|(weights, v)| weights[row + r] * v[at]).sum();
            let to = &mut output[r * dv + at];
            *to = factors[row + r] * *to + sum;
        }
    }
    R
}

/// As [`add_of`], of `V` vectors of each row from element `at` on.
///
/// # Safety
/// As for [`add`]; the vectors end within rows.
#[inline(always)]
unsafe fn columns<S: Simd, const R: usize, const V: usize>(
    row: usize,
    weights: &[f32],
    (v, step): (&[f32], usize),
    dv: usize,
    factors: &[f32; LANES],
    output: &mut [f32],
    at: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        for (weights, v) in weights.chunks_exact(S::N).zip(v.chunks_exact(step)) {
            let mut value = [S::splat(0.0); V];
            for (i, value) in value.iter_mut().enumerate() {
                *value = S::load_any(v.as_ptr().add(at + i * S::N));
            }
            for r in 0..R {
                let weight = S::splat(weights[row + r]);
                for i in 0..V {
                    sums[r][i] = S::mul_add(weight, value[i], sums[r][i]);
                }
            }
        }
        for r in 0..R {
            let factor = S::splat(factors[row + r]);
            for (i, sum) in sums[r].into_iter().enumerate() {
                let to = output.as_mut_ptr().add(r * dv + at + i * S::N);
                S::store_any(to, S::mul_add(factor, S::load_any(to), sum));
            }
        }
    }
}
