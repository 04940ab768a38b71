//! Many pairs times the weights of their experts, in tiles of pairs of one expert. Each unit has 4 by 4 products, sums
//! in f32.

use super::arrange::Arrangement;
use crate::cube::launch::array;
use crate::cube::square::multiply_square;
use crate::linear::packed::cube::{Format, TOGETHER, Words, eight};
use ::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units of a workgroup, as a square of this side.
const SIDE: u32 = 16;
const UNITS: u32 = SIDE * SIDE;
/// Pairs of a tile, and rows of the weight that a workgroup multiplies them with.
pub(super) const TILE: u32 = 4 * SIDE;
/// Elements of rows that are in shared memory at a time.
const STEP: u32 = 16;
/// Numbers in shared memory for either operand.
const OPERAND: u32 = STEP * TILE;

/// A tile of pairs of one expert, and the rows of its weight that a workgroup multiplies them with.
#[derive(CubeType, Clone, Copy)]
struct Tile {
    expert: u32,
    /// Pairs, up to [`TILE`].
    count: u32,
    /// The first row of the weight.
    first_row: u32,
    /// Rows of the weight of an expert.
    rows: u32,
    /// Consecutive pairs that share a row of x.
    share: u32,
    /// The column of y of the weight's first row, and the columns of y.
    column: u32,
    width: u32,
}

/// The products of rows of x, of which `share` consecutive pairs share each, with the rows of their experts, written to
/// columns from `column` on of y [pairs, n].
pub(super) fn multiply<R: CubeRuntime, F: FloatElement>(
    x: &CubeTensor<R>,
    share: usize,
    weight: &Words<'_, R>,
    arrangement: &Arrangement<R>,
    y: &CubeTensor<R>,
    column: usize,
) {
    let [words, scales, biases] = weight.arrays();
    let rows = weight.rows as u32;
    // SAFETY: tiles that do not exist do nothing; pairs, rows and elements beyond the last are not accessed.
    unsafe {
        tile_kernel::launch_unchecked::<F, R>(
            &x.client,
            CubeCount::Static(rows.div_ceil(TILE), arrangement.count as u32, 1),
            CubeDim::new_2d(SIDE, SIDE),
            words,
            scales,
            biases,
            array(x),
            array(&arrangement.order),
            array(&arrangement.offsets),
            array(&arrangement.tiles),
            array(y),
            rows,
            share as u32,
            column as u32,
            y.meta.shape()[1] as u32,
            weight.format,
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn tile_kernel<F: Float>(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    x: &Array<F>,
    order: &Array<u32>,
    offsets: &Array<u32>,
    tiles: &Array<u32>,
    y: &mut Array<F>,
    rows: u32,
    share: u32,
    column: u32,
    width: u32,
    #[comptime] format: Format,
) {
    let mut pairs = SharedMemory::<u32>::new(comptime!(TILE as usize));
    let expert = tiles[(2u32 * CUBE_POS_Y) as usize];
    if expert == u32::MAX {
        terminate!();
    }
    let start = offsets[expert as usize] + tiles[(2u32 * CUBE_POS_Y + 1u32) as usize] * TILE;
    let count = min(offsets[(expert + 1u32) as usize] - start, TILE.runtime());
    let tile = Tile {
        expert,
        count,
        first_row: CUBE_POS_X * TILE,
        rows,
        share,
        column,
        width,
    };
    if UNIT_POS < count {
        pairs[UNIT_POS as usize] = order[(start + UNIT_POS) as usize];
    }
    sync_cube();
    multiply_tile::<F>(weight, scales, biases, x, &pairs, y, &tile, format);
}

/// Multiplies the pairs of a tile with its rows of the weight.
#[cube]
#[allow(clippy::too_many_arguments)]
fn multiply_tile<F: Float>(
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
