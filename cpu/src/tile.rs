//! Attention of one tile of queries over the tiles of keys that it visits.
//!
//! In:  a checked problem, a [`QueryTile`] made for the same number of lanes, the slices
//! for the result. Out: o and LSE of every q head of the GQA group.
//!
//! Invariants: an item is computed by one thread in a fixed order, so the result does not
//! depend on the number of threads; once the scratch memory has grown to the size needed,
//! nothing is allocated.
//!
//! Source: FlashAttention-2, arXiv:2307.08691, algorithm 1: the outer loop runs over
//! queries, the inner one over keys, and o is divided by the sum of weights at the end.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`Problem::check` holds positions below 2^30"
)]

use crate::{
    Elements, Problem, Values, few,
    isa::Compiled,
    product::{Left, product},
    query_tiles::{KEYS, Keys, Panel, QueryTile, Visit},
    scratch::Scratch,
    simd::Simd,
    softmax, transpose,
};

/// One tile of queries for one kv head of one sequence, and the slices for its result.
pub(crate) struct Item<'a> {
    /// Sequence and kv head as one number: `sequence * kv_heads + kv_head`.
    pub(crate) kv_head: usize,
    /// The queries.
    pub(crate) tile: &'a QueryTile,
    /// `[len, Dv]` for each q head of the group.
    pub(crate) o: Vec<&'a mut [f32]>,
    /// `[len]` for each q head of the group.
    pub(crate) lse: Vec<&'a mut [f32]>,
}

/// One item as work for an instruction set, which relies on a problem that passed its check and an item
/// made for `lanes` lanes, a number that [`Isa::lanes`](crate::Isa::lanes) returned.
pub(crate) struct ItemWork<'a, 'b, 'c> {
    pub(crate) lanes: usize,
    pub(crate) problem: &'a Problem<'b>,
    pub(crate) item: &'a mut Item<'c>,
    pub(crate) scratch: &'a mut Scratch,
}

impl Compiled for ItemWork<'_, '_, '_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (problem, item, scratch) = (self.problem, self.item, self.scratch);
        // SAFETY: the caller's promise; `lanes` is the lanes of one vector or of two.
        unsafe {
            if self.lanes != S::N {
                compute::<S, 2>(problem, item, scratch)
            } else if few::takes::<S>(&item.tile.panels) {
                few::compute::<S>(problem, item, scratch)
            } else {
                compute::<S, 1>(problem, item, scratch)
            }
        }
    }
}

/// Computes an item with panels of `W` vectors.
///
/// # Safety
/// The CPU has the instructions of `S`; the problem passed its check; the tile was made for
/// `W * S::N` lanes.
#[inline(always)]
unsafe fn compute<S: Simd, const W: usize>(
    problem: &Problem,
    item: &mut Item,
    scratch: &mut Scratch,
) {
    let tile = item.tile;
    let lanes = W * S::N;
    let (d, dv) = (problem.head_dim, problem.v_head_dim);
    let panels = tile.panels.len();
    scratch.queries.reserve(panels * d * lanes);
    scratch.output.reserve(panels * dv * lanes);
    scratch.logits.reserve(KEYS * lanes);
    scratch.maximum.reserve(panels * lanes);
    scratch.sum.reserve(panels * lanes);
    scratch.rows.reserve(transpose::ROWS * d.max(dv));
    scratch.ranges.reserve(tile.bands.len() * 2 * lanes);
    pack_queries(problem, item, lanes, scratch);
    scratch.output[..panels * dv * lanes].fill(0.0);
    scratch.maximum[..panels * lanes].fill(f32::NEG_INFINITY);
    scratch.sum[..panels * lanes].fill(0.0);
    for &keys in &tile.tiles {
        // SAFETY: the caller's promise.
        unsafe { widen_keys::<S>(problem, item.kv_head, keys, scratch) };
        for (index, panel) in tile.panels.iter().enumerate() {
            if let Some(visit) = panel.visit(keys) {
                // SAFETY: the caller's promise; the scratch memory was reserved above, and a visit
                // lies within its tile of keys.
                unsafe { visit_keys::<S, W>(problem, item, index, panel, keys, visit, scratch) };
            }
        }
    }
    unpack_output(problem, item, lanes, scratch);
}

/// Writes a tile of keys and values in f32, if they are stored in 16 bits.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn widen_keys<S: Simd>(
    problem: &Problem,
    kv_head: usize,
    tile: Keys,
    scratch: &mut Scratch,
) {
    let first = problem.first_key(kv_head);
    let (start, end) = (first + tile.0 as usize, first + tile.1 as usize);
    let own = match problem.v {
        Values::Own(v) => Some((v, problem.v_head_dim, &mut scratch.values)),
        Values::InKeys { .. } => None,
    };
    let keys = (problem.k, problem.head_dim, &mut scratch.keys);
    for (elements, len, to) in [Some(keys), own].into_iter().flatten() {
        if !matches!(elements, Elements::F32(_)) {
            to.reserve(KEYS * len);
            // SAFETY: the caller's promise.
            unsafe { elements.widen::<S>(start * len..end * len, to) };
        }
    }
}

/// Adds the keys of one visit to the running output, maximum and sum of a panel.
///
/// # Safety
/// As for [`compute`]; the scratch memory is reserved, and the visit lies within `0..kv_len`.
#[inline(always)]
unsafe fn visit_keys<S: Simd, const W: usize>(
    problem: &Problem,
    item: &Item,
    index: usize,
    panel: &Panel,
    tile: Keys,
    visit: Visit,
    scratch: &mut Scratch,
) {
    let lanes = W * S::N;
    let (d, dv) = (problem.head_dim, problem.v_head_dim);
    let widened = [&*scratch.keys, &*scratch.values];
    let [k, v] = keys_of(problem, item.kv_head, tile, visit, widened);
    let keys = k.len() / d;
    let queries = &scratch.queries[index * d * lanes..][..d * lanes];
    let output = &mut scratch.output[index * dv * lanes..][..dv * lanes];
    let maximum = &mut scratch.maximum[index * lanes..][..lanes];
    let sum = &mut scratch.sum[index * lanes..][..lanes];
    let logits = &mut scratch.logits[..keys * lanes];
    let rows_of_k = Left {
        start: k.as_ptr(),
        row_stride: d,
        step_stride: 1,
        rows: keys,
        steps: d,
    };
    let columns_of_v = Left {
        start: v.as_ptr(),
        row_stride: 1,
        step_stride: problem.v_step(),
        rows: dv,
        steps: keys,
    };
    let logits = logits.as_mut_ptr();
    // SAFETY: the caller promises the instructions. Every slice above has the length that is read
    // or written below, and those of vectors start at a multiple of a vector in aligned memory.
    unsafe {
        let scale = [S::splat(problem.scale); W];
        product::<S, W, false>(rows_of_k, queries.as_ptr(), scale, logits);
        let running = [maximum.as_mut_ptr(), sum.as_mut_ptr()];
        let ranges = &mut scratch.ranges;
        let factor = weigh::<S, W>(problem, item.tile, panel, visit, logits, running, ranges);
        product::<S, W, true>(columns_of_v, logits, factor, output.as_mut_ptr());
    }
}

/// The keys and values of a visit, [keys, D] and rows of [`Problem::v_step`] elements that begin with
/// the values: in place or, of 16 bits, in what [`widen_keys`] wrote.
#[inline(always)]
pub(crate) fn keys_of<'a>(
    problem: &Problem<'a>,
    kv_head: usize,
    tile: Keys,
    visit: Visit,
    widened: [&'a [f32]; 2],
) -> [&'a [f32]; 2] {
    let first = problem.first_key(kv_head) + visit.start as usize;
    let in_tile = (visit.start - tile.0) as usize;
    let keys = (visit.end - visit.start) as usize;
    let part = |elements, len: usize, widened: &'a [f32]| match elements {
        Elements::F32(all) => &all[first * len..][..keys * len],
        Elements::F16(_) | Elements::Bf16(_) => &widened[in_tile * len..][..keys * len],
    };
    let k = part(problem.k, problem.head_dim, widened[0]);
    let v = match problem.v {
        Values::Own(v) => part(v, problem.v_head_dim, widened[1]),
        Values::InKeys { .. } => k,
    };
    [k, v]
}

/// Turns the logits of a visit into weights, and updates the running maximum and sum of a panel.
/// Returns the factor by which earlier output has to be rescaled.
///
/// # Safety
/// As for [`compute`]; `logits` has `W` vectors for each key of the visit, maximum and sum have as many
/// for the panel, all aligned to the size of a vector; the ranges are reserved.
#[inline(always)]
pub(crate) unsafe fn weigh<S: Simd, const W: usize>(
    problem: &Problem,
    tile: &QueryTile,
    panel: &Panel,
    visit: Visit,
    logits: *mut f32,
    [maximum, sum]: [*mut f32; 2],
    ranges: &mut [f32],
) -> [S::Vector; W] {
    let lanes = W * S::N;
    let keys = (visit.end - visit.start) as usize;
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(cap) = problem.score.softcap {
            for logit in std::slice::from_raw_parts_mut(logits, keys * lanes) {
                *logit = cap * (*logit / cap).tanh();
            }
        }
        if visit.masked {
            let used = ranges_of_lanes(problem, tile, panel, visit, lanes, ranges);
            softmax::mask::<S, W>(logits, keys, &ranges[..used]);
        }
        softmax::weigh::<S, W>(logits, keys, maximum, sum)
    }
}

/// Writes the range of keys that each lane sees in the visit, band by band, in the form that
/// [`softmax::mask`] reads. Returns the count of numbers written.
fn ranges_of_lanes(
    problem: &Problem,
    tile: &QueryTile,
    panel: &Panel,
    visit: Visit,
    lanes: usize,
    ranges: &mut [f32],
) -> usize {
    let last = visit.end - visit.start;
    let q0 = (problem.q_offset + tile.first) as i32;
    let mut used = 0;
    for band in &tile.bands {
        let (start, end) = band.seen_by_any(q0, q0 + tile.len as i32 - 1);
        if start.max(visit.start) >= end.min(visit.end) {
            continue;
        }
        let (starts, ends) = ranges[used..used + 2 * lanes].split_at_mut(lanes);
        for lane in 0..panel.rows {
            let q = q0 + ((panel.first_row + lane) % tile.len) as i32;
            let (start, end) = band.of_query(q);
            starts[lane] = (start - visit.start).clamp(0, last) as f32;
            ends[lane] = (end - visit.start).clamp(0, last) as f32;
        }
        starts[panel.rows..].fill(0.0);
        ends[panel.rows..].fill(0.0);
        used += 2 * lanes;
    }
    used
}

/// Transposes the queries of the group into panels. Unused lanes repeat the last row; this is
/// harmless, since no lane affects another and results of unused lanes are not read.
fn pack_queries(problem: &Problem, item: &Item, lanes: usize, scratch: &mut Scratch) {
    let (d, tile) = (problem.head_dim, item.tile);
    let rows = &mut scratch.rows[..transpose::ROWS * d];
    let panels = scratch.queries.chunks_exact_mut(d * lanes);
    for (panel, to) in tile.panels.iter().zip(panels) {
        for lane in (0..lanes).step_by(transpose::ROWS) {
            // The rows are copied first because the CPU prefetches one long stream from memory,
            // but not four short ones side by side.
            for (i, copy) in rows.chunks_exact_mut(d).enumerate() {
                let row = panel.first_row + (lane + i).min(panel.rows - 1);
                let head = item.kv_head * problem.group() + row / tile.len;
                let query = head * problem.q_len + tile.first + row % tile.len;
                copy.copy_from_slice(&problem.q[query * d..][..d]);
            }
            transpose::to_lanes(rows, to, lanes, lane);
        }
    }
}

/// Divides by the sum of weights, and writes o and LSE in the caller's layout.
fn unpack_output(problem: &Problem, item: &mut Item, lanes: usize, scratch: &mut Scratch) {
    let (dv, tile) = (problem.v_head_dim, item.tile);
    let rows = &mut scratch.rows[..transpose::ROWS * dv];
    let panels = scratch.output.chunks_exact(dv * lanes);
    for (index, (panel, from)) in tile.panels.iter().zip(panels).enumerate() {
        for lane in 0..panel.rows {
            let part = lane % transpose::ROWS;
            if part == 0 {
                transpose::from_lanes(from, lanes, lane, rows, dv);
            }
            let at = index * lanes + lane;
            let running = [scratch.maximum[at], scratch.sum[at]];
            finish_row(
                problem,
                item,
                panel.first_row + lane,
                running,
                &rows[part * dv..],
            );
        }
    }
}

/// Writes o and LSE of a query row of an item, from its running maximum and sum and its sums of
/// weighted values, which are the first Dv of `sums`.
pub(crate) fn finish_row(
    problem: &Problem,
    item: &mut Item,
    row: usize,
    [maximum, sum]: [f32; 2],
    sums: &[f32],
) {
    let dv = problem.v_head_dim;
    let (head, query) = (row / item.tile.len, row % item.tile.len);
    let q_head = item.kv_head % problem.kv_heads * problem.group() + head;
    let sink = problem.score.sinks.map(|sinks| sinks[q_head]);
    let (factor, lse) = softmax::finish(maximum, sum, sink);
    let to = &mut item.o[head][query * dv..][..dv];
    for (to, x) in to.iter_mut().zip(sums) {
        *to = x * factor;
    }
    item.lse[head][query] = lse;
}
