//! Logits of scoring queries against means of keys, a square of them at a time.

use super::row::{Row, scoring};
use super::{Extent, SIDE, Shape, TILE};
use butterfly_ops::cube::multiply_square;
use cubecl::prelude::*;

/// Elements of rows and means that are in shared memory at a time.
pub(super) const STEP: u32 = 16;
/// Numbers in shared memory for either operand.
pub(super) const OPERAND: u32 = STEP * TILE;

/// Computes the logits of rows `first_row..` of the group against means `first_mean..`: those of the unit
/// are rows `4 * UNIT_POS_Y + i` and means `4 * UNIT_POS_X + j` of the square, at `4 * i + j`. Rows and
/// means that do not exist give 0.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn logits<F: Float>(
    q: &Array<F>,
    means: &Array<f32>,
    shared: &mut SharedMemory<f32>,
    s: &mut Array<f32>,
    row: &Row,
    first_row: u32,
    first_mean: u32,
    count: u32,
    extent: &Extent,
    #[comptime] shape: Shape,
) {
    let d = comptime!(shape.head_dim);
    let slots = comptime!(shape.slots());
    #[unroll]
    for i in 0..16usize {
        s[i] = 0.0f32;
    }
    let mean_base = (row.list * extent.room) as usize * d as usize;
    for step in 0..comptime!(d.div_ceil(STEP)) {
        sync_cube();
        #[unroll]
        for i in 0..comptime!(OPERAND / (SIDE * SIDE)) {
            let at = comptime!(i * SIDE * SIDE) + UNIT_POS;
            let element = at % STEP;
            let place = at / STEP;
            let from = step * STEP + element;
            let r = first_row + place;
            let mut left = 0.0f32;
            if r < comptime!(shape.rows()) && from < d {
                let query = scoring(row, r % slots, shape);
                if query != u32::MAX {
                    let head = row.kv_head * comptime!(shape.group) + r / slots;
                    let start = row.sequence as usize * extent.q_batch as usize
                        + head as usize * extent.q_head as usize
                        + (query - extent.q_offset) as usize * extent.q_token as usize;
                    left = f32::cast_from(q[start + from as usize]);
                }
            }
            shared[(element * TILE + place) as usize] = left;
            let mean = first_mean + place;
            let mut right = 0.0f32;
            if mean < count && from < d {
                right = means[mean_base + mean as usize * d as usize + from as usize];
            }
            shared[(OPERAND + element * TILE + place) as usize] = right;
        }
        sync_cube();
        multiply_square(shared, s, STEP, TILE);
    }
}
