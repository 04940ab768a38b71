//! The largest element of rows.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::{ArgMax, NUMBERS};
use crate::cube::launch::{array, empty};
use crate::norm::cube::lanes;
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units that share a part.
const UNITS: u32 = 256;
/// The exponent of numbers that are not finite.
const EXPONENT: u32 = 0x7f80_0000;
/// The index of no element.
const NONE: u32 = u32::MAX;

pub(crate) fn argmax<R: CubeRuntime, F: FloatElement>(
    op: ArgMax,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let x = inputs.next().expect("the inputs were counted");
    let mut shape = x.shape().to_vec();
    let row = shape.pop().unwrap_or(1);
    let parts = op.parts(row);
    let rows: usize = shape.iter().product();
    shape.extend([parts, NUMBERS]);
    let found = empty(&x, shape, DType::I32);
    // Parts begin at whole vectors, and rows consist of them.
    let lanes = lanes(row).min(lanes(op.part));
    if rows > 0 {
        // SAFETY: the grid is the parts of every row, and reads stop at the end of a row.
        unsafe {
            argmax_kernel::launch_unchecked::<F, R>(
                &x.client,
                CubeCount::Static(parts as u32, rows as u32, 1),
                CubeDim::new_1d(UNITS),
                lanes,
                array(&x),
                array(&found),
                (row / lanes) as u32,
                (op.part / lanes) as u32,
                lanes as u32,
            );
        }
    }
    vec![found]
}

/// `row` and `part` count vectors.
#[cube(launch_unchecked)]
fn argmax_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    found: &mut Array<i32>,
    row: u32,
    part: u32,
    #[comptime] lanes: u32,
) {
    let mut values = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut indices = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let mut counts = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let start = CUBE_POS_Y * row;
    let end = min((CUBE_POS_X + 1u32) * part, row);
    let mut value = 0.0f32;
    let mut index = NONE.runtime();
    let mut bad = 0u32;
    let mut at = CUBE_POS_X * part + UNIT_POS;
    while at < end {
        let vector = Vector::<f32, N>::cast_from(x[(start + at) as usize]);
        #[unroll]
        for lane in 0..lanes {
            let element = vector[lane as usize];
            // By bits: compilers may take it that nothing is NaN.
            if (u32::reinterpret(element) & EXPONENT) == EXPONENT {
                bad += 1u32;
            }
            if index == NONE || element > value {
                value = element;
                index = at * lanes + lane;
            }
        }
        at += UNITS;
    }
    values[UNIT_POS as usize] = value;
    indices[UNIT_POS as usize] = index;
    counts[UNIT_POS as usize] = bad;
    sync_cube();
    let mut reach = comptime!(UNITS / 2).runtime();
    while reach > 0u32 {
        if UNIT_POS < reach {
            let other = (UNIT_POS + reach) as usize;
            let their = indices[other];
            let theirs = values[other];
            let own = values[UNIT_POS as usize];
            let own_index = indices[UNIT_POS as usize];
            let mut better = theirs > own;
            // Of equal elements the first counts; no element comes after all others.
            if theirs == own {
                better = their < own_index;
            }
            if their != NONE && (own_index == NONE || better) {
                values[UNIT_POS as usize] = theirs;
                indices[UNIT_POS as usize] = their;
            }
            counts[UNIT_POS as usize] += counts[other];
        }
        sync_cube();
        reach /= 2u32;
    }
    if UNIT_POS == 0u32 {
        let to = ((CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * 3u32) as usize;
        found[to] = i32::cast_from(indices[0]);
        found[to + 1] = i32::reinterpret(values[0]);
        found[to + 2] = i32::cast_from(counts[0]);
    }
}
