//! Tiles without matrix units: each unit has 4 by 4 products, sums in f32.

use super::{SIDE, Tile, UNITS};
use crate::cube::square::multiply_square;
use crate::linear::packed::cube::{Format, TOGETHER, eight};
use ::cubecl::prelude::*;

/// Pairs of a tile, and rows of the weight that a workgroup multiplies them with.
pub(super) const TILE: u32 = 4 * SIDE;
/// Elements of rows that are in shared memory at a time.
const STEP: u32 = 16;
/// Numbers in shared memory for either operand.
const OPERAND: u32 = STEP * TILE;

/// Multiplies the pairs of a tile with its rows of the weight.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn multiply<F: Float>(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    x: &Array<F>,
    pairs: &SharedMemory<u32>,
    y: &mut Array<F>,
    tile: &Tile,
    #[comptime] format: Format,
) {
    let columns = comptime!(format.columns);
    let mut shared = SharedMemory::<f32>::new(comptime!((2 * OPERAND) as usize));
    let mut s = Array::<f32>::new(16usize);
    #[unroll]
    for i in 0..16usize {
        s[i] = 0.0f32;
    }
    let mut numbers = Array::<f32>::new(comptime!(TOGETHER as usize));
    for step in 0..comptime!(columns.div_ceil(STEP)) {
        sync_cube();
        #[unroll]
        for i in 0..comptime!(OPERAND / UNITS) {
            let at = comptime!(i * UNITS) + UNIT_POS;
            let element = at % STEP;
            let place = at / STEP;
            let from = step * STEP + element;
            let mut left = 0.0f32;
            if place < tile.count && from < columns {
                let row = pairs[place as usize] / tile.share;
                left = f32::cast_from(x[(row * columns + from) as usize]);
            }
            shared[(element * TILE + place) as usize] = left;
        }
        if UNIT_POS < comptime!(OPERAND / TOGETHER) {
            let group = UNIT_POS % comptime!(STEP / TOGETHER);
            let place = UNIT_POS / comptime!(STEP / TOGETHER);
            let from = step * comptime!(STEP / TOGETHER) + group;
            let row = tile.first_row + place;
            let exists = row < tile.rows && from < comptime!(columns / TOGETHER);
            if exists {
                let row = tile.expert * tile.rows + row;
                eight(weight, scales, biases, row, from, &mut numbers, format);
            }
            #[unroll]
            for lane in 0..TOGETHER {
                let at = OPERAND + (group * TOGETHER + lane) * TILE + place;
                shared[at as usize] = select(exists, numbers[lane as usize], 0.0f32.runtime());
            }
        }
        sync_cube();
        multiply_square(&shared, &mut s, STEP, TILE);
    }
    #[unroll]
    for i in 0..4u32 {
        let place = 4u32 * UNIT_POS_Y + i;
        if place < tile.count {
            let to = pairs[place as usize] * tile.width + tile.column;
            #[unroll]
            for j in 0..4u32 {
                let row = tile.first_row + 4u32 * UNIT_POS_X + j;
                if row < tile.rows {
                    let at = comptime!((4 * i + j) as usize);
                    y[(to + row) as usize] = F::cast_from(s[at]);
                }
            }
        }
    }
}
