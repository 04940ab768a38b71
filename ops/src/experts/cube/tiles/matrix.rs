//! Tiles on matrix units: products of size m16n8k16 (16 pairs, 8 rows of the weight, 16 terms) of 16-bit floats, sums
//! in f32.
//!
//! A workgroup multiplies a tile of pairs of one expert with as many rows of its weight, a step of elements at a time.
//! While a step is multiplied, the next one is read, and unpacked, into registers; it goes to the other half of shared
//! memory, so a step costs one barrier.

use super::{Tile, UNITS};
use crate::linear::packed::cube::{Format, TOGETHER, eight};
use ::cubecl::features::MmaConfig;
use ::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Pairs of a tile, and rows of the weight that a workgroup multiplies them with.
pub(super) const TILE: u32 = 128;
/// Elements of rows that are in shared memory at a time.
const STEP: u32 = 32;
/// Elements between rows in shared memory: eight rows start at different banks.
const PITCH: u32 = STEP + 8;
/// Chunks of eight elements in a step.
const CHUNKS: u32 = STEP / TOGETHER;
/// Chunks of either operand that a unit reads of a step.
const OWN: usize = (TILE * CHUNKS / UNITS) as usize;
/// Elements in shared memory for either operand.
const OPERAND: u32 = TILE * PITCH;

/// Whether the device has matrix units for this element type, and what is needed to feed them.
pub(super) fn has_units<R: CubeRuntime, F: FloatElement>(x: &CubeTensor<R>) -> bool {
    let features = &x.client.properties().features.matmul;
    let element = F::as_type_native_unchecked().storage_type();
    let wanted = MmaConfig {
        a_type: element,
        b_type: element,
        cd_type: f32::as_type_native_unchecked().storage_type(),
        m: 16,
        n: 8,
        k: 16,
    };
    features.mma.contains(&wanted) && features.ldmatrix.contains(&element)
}

/// Multiplies the pairs of a tile with its rows of the weight. Each of the workgroup's eight subgroups has 64 pairs and
/// 32 rows.
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
    let size!(Chunk) = comptime!(TOGETHER as usize);
    let size!(Pair) = 2usize;
    let mut shared = SharedMemory::<F>::new_aligned(comptime!((4 * OPERAND) as usize), 32usize);
    let lane = UNIT_POS % 32u32;
    let warp = UNIT_POS / 32u32;
    let own_pair = warp / 4u32 * 64u32;
    let own_row = warp % 4u32 * 32u32;
    // A load takes four matrices of 8 by 8; lane `8 i + j` gives the address of row `j` of matrix `i`. For the left
    // factor matrices 0 and 1 lie below each other, for the right one side by side.
    let left_at = (own_pair + lane % 16u32) * PITCH + lane / 16u32 * 8u32;
    let right_at =
        OPERAND + (own_row + lane / 16u32 * 8u32 + lane % 8u32) * PITCH + lane / 8u32 % 2u32 * 8u32;

    let mma = cmma::MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let mut sums = Sequence::<Array<Vector<f32, Pair>>>::new();
    #[unroll]
    for _ in 0..16usize {
        let mut zeros = Array::<Vector<f32, Pair>>::new(2usize);
        zeros[0] = Vector::new(0.0f32);
        zeros[1] = Vector::new(0.0f32);
        sums.push(zeros);
    }

    let mut lefts = Array::<Vector<F, Chunk>>::new(OWN);
    let mut rights = Array::<Vector<F, Chunk>>::new(OWN);
    let steps = comptime!(format.columns.div_ceil(STEP));
    for step in 0..steps + 1u32 {
        if step < steps {
            read_pairs::<F, Chunk>(x, pairs, &mut lefts, step, tile, format);
            read_rows::<F, Chunk>(weight, scales, biases, &mut rights, step, tile, format);
        }
        if step > 0u32 {
            let stage = (step - 1u32) % 2u32 * comptime!(2 * OPERAND);
            #[unroll]
            for d in 0..comptime!(STEP / 16) {
                let mut pair_tiles = Sequence::<Array<Vector<F, Pair>>>::new();
                #[unroll]
                for i in 0..4u32 {
                    let at = stage + left_at + comptime!(i * 16 * PITCH + d * 16);
                    pair_tiles.push(mma.load_matrix::<F, Pair>(
                        &shared.slice(at as usize, (at + 8u32) as usize),
                        cmma::MatrixIdent::A,
                        4usize,
                        false,
                    ));
                }
                #[unroll]
                for c in 0..2u32 {
                    let at = stage + right_at + comptime!(c * 16 * PITCH + d * 16);
                    let row_tiles = mma.load_matrix::<F, Pair>(
                        &shared.slice(at as usize, (at + 8u32) as usize),
                        cmma::MatrixIdent::B,
                        4usize,
                        false,
                    );
                    #[unroll]
                    for i in 0..4usize {
                        let left = pair_tiles.index(i);
                        #[unroll]
                        for h in 0..2usize {
                            let mut right = Array::<Vector<F, Pair>>::new(2usize);
                            right[0] = row_tiles[comptime!(2 * h)];
                            right[1] = row_tiles[comptime!(2 * h + 1)];
                            mma.execute_inplace::<Pair, Pair, Pair>(
                                left,
                                &right,
                                sums.index_mut(comptime!(i * 4 + c as usize * 2 + h)),
                            );
                        }
                    }
                }
            }
        }
        if step < steps {
            let stage = step % 2u32 * comptime!(2 * OPERAND);
            keep::<F, Chunk>(&lefts, &mut shared, stage);
            keep::<F, Chunk>(&rights, &mut shared, stage + OPERAND);
        }
        sync_cube();
    }

    #[unroll]
    for i in 0..4usize {
        #[unroll]
        for h in 0..2usize {
            let place = own_pair + comptime!(16 * i as u32 + 8 * h as u32) + lane / 4u32;
            if place < tile.count {
                let to = pairs[place as usize] * tile.width + tile.column;
                #[unroll]
                for j in 0..4usize {
                    let row =
                        tile.first_row + own_row + comptime!(8 * j as u32) + lane % 4u32 * 2u32;
                    let two = sums.index(comptime!(4 * i + j))[h];
                    #[unroll]
                    for e in 0..2usize {
                        let row = row + comptime!(e as u32);
                        if row < tile.rows {
                            y[(to + row) as usize] = F::cast_from(two[e]);
                        }
                    }
                }
            }
        }
    }
}

/// The unit's chunks of the rows of x of a tile's pairs; zeros beyond the last pair and element.
#[cube]
fn read_pairs<F: Float, N: Size>(
    x: &Array<F>,
    pairs: &SharedMemory<u32>,
    to: &mut Array<Vector<F, N>>,
    step: u32,
    tile: &Tile,
    #[comptime] format: Format,
) {
    let chunks = comptime!(format.columns / TOGETHER);
    let source = x.to_slice().into_vectorized().with_vector_size::<N>();
    #[unroll]
    for i in 0..OWN {
        let at = UNIT_POS + comptime!(i as u32 * UNITS);
        let place = at / CHUNKS;
        let chunk = step * CHUNKS + at % CHUNKS;
        to[i] = Vector::new(F::new(0.0));
        if place < tile.count && chunk < chunks {
            let row = pairs[place as usize] / tile.share;
            to[i] = source[(row * chunks + chunk) as usize];
        }
    }
}

/// The unit's chunks of the tile's rows of the weight; zeros beyond the last row and element.
#[cube]
fn read_rows<F: Float, N: Size>(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    to: &mut Array<Vector<F, N>>,
    step: u32,
    tile: &Tile,
    #[comptime] format: Format,
) {
    let mut numbers = Array::<f32>::new(comptime!(TOGETHER as usize));
    #[unroll]
    for i in 0..OWN {
        let at = UNIT_POS + comptime!(i as u32 * UNITS);
        let row = tile.first_row + at / CHUNKS;
        let chunk = step * CHUNKS + at % CHUNKS;
        let mut elements = Vector::<F, N>::new(F::new(0.0));
        if row < tile.rows && chunk < comptime!(format.columns / TOGETHER) {
            let row = tile.expert * tile.rows + row;
            eight(weight, scales, biases, row, chunk, &mut numbers, format);
            #[unroll]
            for lane in 0..comptime!(TOGETHER as usize) {
                elements[lane] = F::cast_from(numbers[lane]);
            }
        }
        to[i] = elements;
    }
}

/// Writes the unit's chunks of an operand to shared memory.
#[cube]
fn keep<F: Float, N: Size>(from: &Array<Vector<F, N>>, to: &mut SharedMemory<F>, operand: u32) {
    let mut sink = to.to_slice_mut().into_vectorized().with_vector_size::<N>();
    #[unroll]
    for i in 0..OWN {
        let at = UNIT_POS + comptime!(i as u32 * UNITS);
        let to = operand + at / CHUNKS * PITCH + at % CHUNKS * TOGETHER;
        sink[(to / TOGETHER) as usize] = from[i];
    }
}
