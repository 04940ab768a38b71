//! The scores of a part of the blocks before a single query.

use super::logits::{OPERAND, logits};
use super::row::{has_choice, part_of, row_of};
use super::weigh::LEAST;
use super::{Extent, SIDE, Shape, TILE};
use cubecl::prelude::*;

/// A workgroup computes a part of `scores` [lists, stride]; `sums` is what `weigh` leaves of parts.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn score<F: Float>(
    q: &Array<F>,
    means: &Array<f32>,
    wanted: &Array<u32>,
    fixed_offsets: &Array<u32>,
    fixed_bands: &Array<u32>,
    sums: &Array<f32>,
    scores: &mut Array<f32>,
    stride: u32,
    extent: &Extent,
    #[comptime] shape: Shape,
) {
    let rows = comptime!(shape.rows());
    let parts = comptime!(shape.parts);
    let per_block = comptime!(shape.means());
    let mut shared = SharedMemory::<f32>::new(comptime!((2 * OPERAND) as usize));
    let mut logs = SharedMemory::<f32>::new(comptime!(TILE as usize));
    let mut counts = SharedMemory::<u32>::new(comptime!((SIDE * SIDE) as usize));
    let row = row_of(CUBE_POS_X, CUBE_POS_Z, fixed_offsets, extent, shape);
    let blocks = wanted[row.kv_head as usize];
    if !has_choice(&row, fixed_bands, blocks, &mut counts, shape) {
        terminate!();
    }
    if UNIT_POS < rows {
        let first = (row.entry * rows + UNIT_POS) * parts * 2u32;
        let mut most = LEAST.runtime();
        for i in 0..parts {
            most = max(most, sums[(first + 2u32 * i) as usize]);
        }
        let mut total = 0.0f32;
        for i in 0..parts {
            let at = (first + 2u32 * i) as usize;
            total += sums[at + 1] * (sums[at] - most).exp();
        }
        logs[UNIT_POS as usize] = most + total.ln();
    }
    let (start, end) = part_of(&row, CUBE_POS_Y, shape);
    let mut s = Array::<f32>::new(16usize);
    let mut sum = 0.0f32;
    let mut mean = start;
    while mean < end {
        // Waits for `logs` too.
        logits(
            q,
            means,
            &mut shared,
            &mut s,
            &row,
            0u32,
            mean,
            end,
            extent,
            shape,
        );
        sync_cube();
        #[unroll]
        for j in 0..4u32 {
            let mut column = 0.0f32;
            #[unroll]
            for i in 0..4u32 {
                let r = 4u32 * UNIT_POS_Y + i;
                if r < rows {
                    let at = comptime!((4 * i + j) as usize);
                    column += (s[at] * extent.scale - logs[r as usize]).exp();
                }
            }
            shared[((4u32 * UNIT_POS_X + j) * SIDE + UNIT_POS_Y) as usize] = column;
        }
        sync_cube();
        if UNIT_POS < TILE {
            let mut total = 0.0f32;
            for i in 0..SIDE {
                total += shared[(UNIT_POS * SIDE + i) as usize];
            }
            shared[(OPERAND + UNIT_POS) as usize] = total;
        }
        sync_cube();
        if UNIT_POS == 0u32 {
            for at in 0..min(TILE, end - mean) {
                sum += shared[(OPERAND + at) as usize];
                let next = mean + at + 1u32;
                if next % per_block == 0u32 {
                    scores[(row.entry * stride + next / per_block - 1u32) as usize] = sum;
                    sum = 0.0f32;
                }
            }
        }
        mean += TILE;
    }
}
