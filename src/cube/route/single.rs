//! Scores of blocks for a single query, as in decode: its logits are computed once.

use super::row::{Row, has_choice, row_of};
use super::weigh::LEAST;
use super::{Extent, SIDE, Shape};
use cubecl::prelude::*;

/// q heads whose logits a unit computes at a time.
const HEADS: u32 = 4;
/// Elements of a mean that a unit loads at once: kernels take head sizes that are multiples of 8.
pub(super) const LANES: u32 = 4;
/// Units of a workgroup.
const UNITS: u32 = SIDE * SIDE;

/// Units that share the means of a block.
fn units_of_block(shape: &Shape) -> u32 {
    shape.means().min(UNITS)
}

/// Blocks of a workgroup of `weigh_blocks`.
pub(super) fn blocks_at_once(shape: &Shape) -> u32 {
    UNITS / units_of_block(shape)
}

/// Computes `weights` [lists, stride, group, 2]: for each block before the row and each q head the largest logit
/// of the block's means, and the sum of their weights relative to it.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn weigh_blocks<F: Float, N: Size>(
    q: &Array<F>,
    means: &Array<Vector<f32, N>>,
    wanted: &Array<u32>,
    fixed_offsets: &Array<u32>,
    fixed_bands: &Array<u32>,
    weights: &mut Array<f32>,
    stride: u32,
    extent: &Extent,
    #[comptime] shape: Shape,
) {
    let (d, group, of_block) = comptime!((shape.head_dim, shape.group, shape.means()));
    let sharing = comptime!(units_of_block(&shape));
    let mut queries = SharedMemory::<f32>::new(comptime!((HEADS * d) as usize));
    let mut tops = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut totals = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut counts = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let row = row_of(0u32, CUBE_POS_Y, fixed_offsets, extent, shape);
    let blocks = wanted[row.kv_head as usize];
    if !has_choice(&row, fixed_bands, blocks, &mut counts, shape) {
        terminate!();
    }
    let own = UNIT_POS / sharing;
    let block = CUBE_POS_X * comptime!(blocks_at_once(&shape)) + own;
    let first = UNIT_POS % sharing;
    let works = own < comptime!(blocks_at_once(&shape)) && block < row.block;
    let vectors = comptime!(d / LANES);
    let base = (row.list * extent.room) as usize * vectors as usize;
    for chunk in 0..comptime!(group.div_ceil(HEADS)) {
        let head = chunk * HEADS;
        sync_cube();
        let mut at = UNIT_POS;
        while at < comptime!(HEADS * d) {
            let h = head + at / d;
            let mut value = 0.0f32;
            if h < group {
                let start = row.sequence as usize * extent.q_batch as usize
                    + (row.kv_head * group + h) as usize * extent.q_head as usize;
                value = f32::cast_from(q[start + (at % d) as usize]);
            }
            queries[at as usize] = value;
            at += CUBE_DIM;
        }
        sync_cube();
        let mut top = Array::<f32>::new(comptime!(HEADS as usize));
        let mut total = Array::<f32>::new(comptime!(HEADS as usize));
        #[unroll]
        for h in 0..comptime!(HEADS as usize) {
            top[h] = LEAST.runtime();
            total[h] = 0.0f32;
        }
        if works {
            let mut mean = first;
            while mean < of_block {
                let mut s = Array::<f32>::new(comptime!(HEADS as usize));
                #[unroll]
                for h in 0..comptime!(HEADS as usize) {
                    s[h] = 0.0f32;
                }
                let start = base + (block * of_block + mean) as usize * vectors as usize;
                for i in 0..vectors {
                    let x = means[start + i as usize];
                    #[unroll]
                    for h in 0..HEADS {
                        #[unroll]
                        for lane in 0..LANES {
                            s[comptime!(h as usize)] += x[lane as usize]
                                * queries[(comptime!(h * d + lane) + i * LANES) as usize];
                        }
                    }
                }
                #[unroll]
                for h in 0..comptime!(HEADS as usize) {
                    let (most, sum) = merged(top[h], total[h], s[h] * extent.scale, 1.0f32);
                    top[h] = most;
                    total[h] = sum;
                }
                mean += sharing;
            }
        }
        #[unroll]
        for h in 0..HEADS {
            sync_cube();
            tops[UNIT_POS as usize] = top[comptime!(h as usize)];
            totals[UNIT_POS as usize] = total[comptime!(h as usize)];
            sync_cube();
            if works && first == 0u32 && head + h < group {
                let mut most = LEAST.runtime();
                for i in 0..sharing {
                    most = max(most, tops[(UNIT_POS + i) as usize]);
                }
                let mut sum = 0.0f32;
                for i in 0..sharing {
                    let at = (UNIT_POS + i) as usize;
                    sum += totals[at] * (tops[at] - most).exp();
                }
                let at = place_of(&row, block, head + h, stride, shape);
                weights[at] = most;
                weights[at + 1] = sum;
            }
        }
    }
}

/// The place of a block's largest logit in its weights, for q head `h` of the group; the sum follows.
#[cube]
fn place_of(row: &Row, c: u32, h: u32, stride: u32, #[comptime] shape: Shape) -> usize {
    (((row.list * stride + c) * comptime!(shape.group) + h) * 2u32) as usize
}

/// The largest of all logits of two sets, and the sum of all weights relative to it, from those of each.
#[cube]
fn merged(top: f32, total: f32, other_top: f32, other_total: f32) -> (f32, f32) {
    let most = max(top, other_top);
    let sum = total * (top - most).exp() + other_total * (other_top - most).exp();
    (most, sum)
}

/// The logarithm of each q head's sum of weights over all blocks before the row. All units of the workgroup
/// call this.
#[cube]
pub(super) fn sum_blocks(
    weights: &Array<f32>,
    logs: &mut SharedMemory<f32>,
    tops: &mut SharedMemory<f32>,
    row: &Row,
    stride: u32,
    #[comptime] shape: Shape,
) {
    let group = comptime!(shape.group);
    let mut totals = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    for h in 0..group {
        let mut top = LEAST.runtime();
        let mut total = 0.0f32;
        let mut c = UNIT_POS;
        while c < row.block {
            let at = place_of(row, c, h, stride, shape);
            let (most, sum) = merged(top, total, weights[at], weights[at + 1]);
            top = most;
            total = sum;
            c += CUBE_DIM;
        }
        tops[UNIT_POS as usize] = top;
        totals[UNIT_POS as usize] = total;
        let mut step = comptime!(UNITS / 2).runtime();
        while step > 0u32 {
            sync_cube();
            if UNIT_POS < step {
                let (own, other) = (UNIT_POS as usize, (UNIT_POS + step) as usize);
                let (most, sum) = merged(tops[own], totals[own], tops[other], totals[other]);
                tops[own] = most;
                totals[own] = sum;
            }
            step /= 2u32;
        }
        sync_cube();
        if UNIT_POS == 0u32 {
            logs[h as usize] = tops[0] + totals[0].ln();
        }
        sync_cube();
    }
}

/// The score of block `c`: the share of the weights of all q heads that it has.
#[cube]
pub(super) fn score_block(
    weights: &Array<f32>,
    logs: &SharedMemory<f32>,
    row: &Row,
    c: u32,
    stride: u32,
    #[comptime] shape: Shape,
) -> f32 {
    let group = comptime!(shape.group);
    let mut score = 0.0f32;
    for h in 0..group {
        let at = place_of(row, c, h, stride, shape);
        score += weights[at + 1] * (weights[at] - logs[h as usize]).exp();
    }
    score
}
