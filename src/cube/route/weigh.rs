//! The logarithm of each scoring query's sum of weights over all means.

use super::logits::{OPERAND, logits};
use super::row::{has_choice, row_of, scoring};
use super::{Extent, SIDE, Shape, TILE};
use cubecl::prelude::*;

/// The sum of a query that does not score: so large that every weight relative to it is 0.
pub(super) const SILENT: f32 = 3.0e38;
/// Below every logit, and finite, since WGSL has no infinity.
pub(super) const LEAST: f32 = -3.0e38;

/// A workgroup computes [`TILE`] rows of a row of blocks: `sums` [lists, rows, group * slots].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn weigh<F: Float>(
    q: &Array<F>,
    means: &Array<f32>,
    wanted: &Array<u32>,
    fixed_offsets: &Array<u32>,
    fixed_bands: &Array<u32>,
    sums: &mut Array<f32>,
    extent: &Extent,
    #[comptime] shape: Shape,
) {
    let rows = comptime!(shape.rows());
    let mut shared = SharedMemory::<f32>::new(comptime!((2 * OPERAND) as usize));
    let mut counts = SharedMemory::<u32>::new(comptime!((SIDE * SIDE) as usize));
    let row = row_of(CUBE_POS_X, CUBE_POS_Z, fixed_offsets, extent, shape);
    let blocks = wanted[row.kv_head as usize];
    if !has_choice(&row, fixed_bands, blocks, &mut counts, shape) {
        terminate!();
    }
    let first = CUBE_POS_Y * TILE;
    let count = row.block * comptime!(shape.means());
    let mut s = Array::<f32>::new(16usize);
    let mut top = Array::<f32>::new(4usize);
    let mut sum = Array::<f32>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        top[i] = LEAST.runtime();
        sum[i] = 0.0f32;
    }
    let mut mean = 0u32;
    while mean < count {
        logits(
            q,
            means,
            &mut shared,
            &mut s,
            &row,
            first,
            mean,
            count,
            extent,
            shape,
        );
        #[unroll]
        for i in 0..4u32 {
            let i_at = comptime!(i as usize);
            let mut new = top[i_at];
            #[unroll]
            for j in 0..4u32 {
                let at = comptime!((4 * i + j) as usize);
                let exists = mean + 4u32 * UNIT_POS_X + j < count;
                s[at] = select(exists, s[at] * extent.scale, LEAST.runtime());
                new = max(new, s[at]);
            }
            let mut total = sum[i_at] * (top[i_at] - new).exp();
            #[unroll]
            for j in 0..4u32 {
                let at = comptime!((4 * i + j) as usize);
                let exists = mean + 4u32 * UNIT_POS_X + j < count;
                total += select(exists, (s[at] - new).exp(), 0.0f32.runtime());
            }
            top[i_at] = new;
            sum[i_at] = total;
        }
        mean += TILE;
    }
    sync_cube();
    #[unroll]
    for i in 0..4u32 {
        let at = (4u32 * UNIT_POS_Y + i) * SIDE + UNIT_POS_X;
        shared[at as usize] = top[comptime!(i as usize)];
        shared[(OPERAND + at) as usize] = sum[comptime!(i as usize)];
    }
    sync_cube();
    let r = first + UNIT_POS;
    if UNIT_POS < TILE && r < rows {
        let mut most = LEAST.runtime();
        for i in 0..SIDE {
            most = max(most, shared[(UNIT_POS * SIDE + i) as usize]);
        }
        let mut total = 0.0f32;
        for i in 0..SIDE {
            let at = UNIT_POS * SIDE + i;
            total += shared[(OPERAND + at) as usize] * (shared[at as usize] - most).exp();
        }
        let silent = scoring(&row, r % comptime!(shape.slots()), shape) == u32::MAX;
        sums[(row.entry * rows + r) as usize] = select(silent, SILENT.runtime(), most + total.ln());
    }
}
