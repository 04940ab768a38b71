//! The scores of the blocks before a row: the softmax weights that its queries would give to means of
//! keys, summed.
//!
//! As in attention (`tile.rs`), each lane of a vector holds one query row, so that the softmax over
//! means needs no reduction across lanes.

use super::Route;
use crate::isa::Compiled;
use crate::product::{Left, product};
use crate::scratch::Aligned;
use crate::simd::Simd;
use crate::{softmax, transpose};
use std::ops::Range;

/// The scores of one row.
pub(super) struct RowScores<'a, 'b> {
    pub(super) route: &'a Route<'b>,
    /// Sequence and kv head as one number.
    pub(super) list: usize,
    /// Absolute positions of the queries that score.
    pub(super) queries: &'a [usize],
    /// The blocks before the row.
    pub(super) blocks: usize,
}

/// Memory of one thread, reused for all its rows.
#[derive(Default)]
pub(super) struct Memory {
    /// The score of each earlier block.
    pub(super) scores: Vec<f32>,
    /// Queries of a panel, `[D, lanes]`.
    queries: Aligned,
    /// Logits, then weights of a panel, `[means, lanes]`.
    logits: Aligned,
    /// Running maximum, then sum of weights, `[2, lanes]`.
    running: Aligned,
    /// Rows that are being transposed, `[4, D]`.
    rows: Aligned,
}

pub(super) struct Work<'a, 'b, 'm> {
    row: RowScores<'a, 'b>,
    memory: &'m mut Memory,
}

impl<'a, 'b> RowScores<'a, 'b> {
    pub(super) fn into<'m>(self, memory: &'m mut Memory) -> Work<'a, 'b, 'm> {
        Work { row: self, memory }
    }
}

impl Compiled for Work<'_, '_, '_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { score::<S>(&self.row, self.memory) }
    }
}

/// Vectors of a panel.
const W: usize = 2;

/// # Safety
/// The CPU has the instructions of `S`, and the arguments of the route were checked.
#[inline(always)]
unsafe fn score<S: Simd>(row: &RowScores<'_, '_>, memory: &mut Memory) {
    let RowScores { route, blocks, .. } = row;
    let lanes = W * S::N;
    let (d, per_block) = (route.head_dim, route.block / route.pool);
    let count = blocks * per_block;
    let means = &route.means[row.list * route.room * d..][..count * d];
    let rows = row.queries.len() * (route.q_heads / route.kv_heads);
    memory.scores.clear();
    memory.scores.resize(*blocks, 0.0);
    memory.queries.reserve(d * lanes);
    memory.logits.reserve(count * lanes);
    memory.running.reserve(2 * lanes);
    memory.rows.reserve(transpose::ROWS * d);
    for first in (0..rows).step_by(lanes) {
        let used = lanes.min(rows - first);
        pack(row, first..first + used, lanes, memory);
        let (maximum, sum) = memory.running.split_at_mut(lanes);
        maximum.fill(f32::NEG_INFINITY);
        sum[..lanes].fill(0.0);
        let logits = memory.logits.as_mut_ptr();
        let left = Left {
            start: means.as_ptr(),
            row_stride: d,
            step_stride: 1,
            rows: count,
            steps: d,
        };
        // SAFETY: the caller's promise; the panels were reserved above, and start at cache lines.
        unsafe {
            let scale = [S::splat(route.scale); W];
            product::<S, W, false>(left, memory.queries.as_ptr(), scale, logits);
            softmax::weigh::<S, W>(logits, count, maximum.as_mut_ptr(), sum.as_mut_ptr());
        }
        // What a weight counts; lanes without a query count nothing.
        let share = maximum;
        for (lane, share) in share.iter_mut().enumerate() {
            *share = if lane < used { 1.0 / sum[lane] } else { 0.0 };
        }
        for (block, score) in memory.scores.iter_mut().enumerate() {
            // SAFETY: the caller's promise; the block's weights lie within the panel.
            *score += unsafe {
                let mut total = S::splat(0.0);
                for mean in block * per_block..(block + 1) * per_block {
                    for w in 0..W {
                        let weight = S::load(logits.add((mean * W + w) * S::N));
                        let share = S::load(share.as_ptr().add(w * S::N));
                        total = S::mul_add(weight, share, total);
                    }
                }
                S::sum(total)
            };
        }
    }
}

/// Transposes query rows into the panel. Row `r` is scoring query `r % len` of q head `r / len` of the
/// group.
/// Lanes that are left repeat the last row.
fn pack(row: &RowScores<'_, '_>, of: Range<usize>, lanes: usize, memory: &mut Memory) {
    let route = row.route;
    let (d, len) = (route.head_dim, row.queries.len());
    let group = route.q_heads / route.kv_heads;
    let rows = &mut memory.rows[..transpose::ROWS * d];
    for lane in (0..lanes).step_by(transpose::ROWS) {
        for (i, copy) in rows.chunks_exact_mut(d).enumerate() {
            let r = (of.start + lane + i).min(of.end - 1);
            let head = row.list * group + r / len;
            let query = row.queries[r % len] - route.q_offset;
            copy.copy_from_slice(&route.q[(head * route.q_len + query) * d..][..d]);
        }
        transpose::to_lanes(rows, &mut memory.queries[..d * lanes], lanes, lane);
    }
}
