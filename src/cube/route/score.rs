//! The scores of the blocks before a row.

use super::logits::{OPERAND, logits};
use super::row::{has_choice, row_of};
use super::{Extent, SIDE, Shape, TILE};
use cubecl::prelude::*;

/// A workgroup computes `scores` [lists, rows, stride] for one row; `sums` is what `weigh` leaves.
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
    let per_block = comptime!(shape.means());
    let mut shared = SharedMemory::<f32>::new(comptime!((2 * OPERAND) as usize));
    let mut counts = SharedMemory::<u32>::new(comptime!((SIDE * SIDE) as usize));
    let row = row_of(CUBE_POS_X, CUBE_POS_Z, fixed_offsets, extent, shape);
    let blocks = wanted[row.kv_head as usize];
    if !has_choice(&row, fixed_bands, blocks, &mut counts, shape) {
        terminate!();
    }
    let end = row.block * per_block;
    let mut s = Array::<f32>::new(16usize);
    // The score of the block that the walk over means has reached.
    let mut sum = 0.0f32;
    let mut mean = 0u32;
    while mean < end {
        let mut column = Array::<f32>::new(4usize);
        #[unroll]
        for j in 0..4usize {
            column[j] = 0.0f32;
        }
        for tile in 0..comptime!(rows.div_ceil(TILE)) {
            let first = tile * TILE;
            logits(
                q,
                means,
                &mut shared,
                &mut s,
                &row,
                first,
                mean,
                end,
                extent,
                shape,
            );
            #[unroll]
            for i in 0..4u32 {
                let r = first + 4u32 * UNIT_POS_Y + i;
                if r < rows {
                    let log = sums[(row.entry * rows + r) as usize];
                    #[unroll]
                    for j in 0..4u32 {
                        let at = comptime!((4 * i + j) as usize);
                        column[comptime!(j as usize)] += (s[at] * extent.scale - log).exp();
                    }
                }
            }
        }
        sync_cube();
        #[unroll]
        for j in 0..4u32 {
            let at = (4u32 * UNIT_POS_X + j) * SIDE + UNIT_POS_Y;
            shared[at as usize] = column[comptime!(j as usize)];
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
