//! A few rows times a dense weight, which is read once, without matrix units; also where half of its rows are gates.

use super::FEW;
use crate::cube::launch::{array, empty, grid};
use crate::linear::counts;
use ::cubecl::prelude::*;
use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Elements in a load: 16 bytes.
const LANES: usize = 8;
/// Planes of a workgroup.
const PLANES: u32 = 8;
/// Units of a plane.
const PLANE: u32 = 32;

/// Whether the kernel takes rows [m, K] times a weight [N, K]; it indexes the vectors of the weight and the result with
/// 32 bits.
pub(super) fn takes([m, k, n]: [usize; 3]) -> bool {
    m <= FEW && k.is_multiple_of(LANES) && counts(n, k / LANES) && counts(FEW, n)
}

/// The product of rows x [m, K] with a weight [N, K] → [m, N], all contiguous, of sizes that the kernel takes.
pub(super) fn multiply<R: CubeRuntime, F: FloatElement, W: FloatElement, Y: FloatElement>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
) -> CubeTensor<R> {
    launch::<R, F, W, Y>(x, weight, false)
}

/// As [`multiply`], with a weight [2 N, K]: silu of the first half's products times the second half's → [m, N].
pub(super) fn multiply_gated<R: CubeRuntime, F: FloatElement>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
) -> CubeTensor<R> {
    launch::<R, F, F, F>(x, weight, true)
}

fn launch<R: CubeRuntime, F: FloatElement, W: FloatElement, Y: FloatElement>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    gated: bool,
) -> CubeTensor<R> {
    let (m, k) = (x.shape()[0], x.shape()[1]);
    let parts = if gated { 2 } else { 1 };
    let n = weight.shape()[0] / parts;
    let y = empty(x, [m, n], Y::dtype());
    let vectors = (k / LANES) as u32;
    let at_once = match vectors.is_multiple_of(4 * PLANE) {
        true => 4,
        false => 1,
    };
    // SAFETY: each plane writes its own column of all rows; rows hold `vectors` vectors, and the weight has `parts * n`.
    unsafe {
        few_kernel::launch_unchecked::<F, W, Y, R>(
            &x.client,
            grid((n as u32).div_ceil(PLANES)),
            CubeDim::new_2d(PLANE, PLANES),
            LANES,
            array(x),
            array(weight),
            array(&y),
            n as u32,
            m as u32,
            vectors,
            LANES as u32,
            at_once,
            parts as u32,
        );
    }
    y
}

/// Each plane multiplies all rows of x by one row of the weight or, of two parts, by one of each: a gate, and what it
/// gates.
#[cube(launch_unchecked)]
fn few_kernel<F: Float, W: Float, Y: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<W, N>>,
    y: &mut Array<Y>,
    columns: u32,
    #[comptime] m: u32,
    #[comptime] vectors: u32,
    #[comptime] lanes: u32,
    #[comptime] at_once: u32,
    #[comptime] parts: u32,
) {
    let column = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * PLANES + UNIT_POS_Y;
    // The same for all units of a plane.
    if column < columns {
        // Those of all rows with the first part, then those with the second.
        let mut sums = Array::<f32>::new(comptime!((parts * m) as usize));
        #[unroll]
        for i in 0..comptime!(parts * m) {
            sums[i as usize] = 0.0f32;
        }
        let mut loaded = Array::<Vector<W, N>>::new(comptime!((parts * at_once) as usize));
        let mut at = UNIT_POS_X;
        while at < vectors {
            #[unroll]
            for part in 0..parts {
                let start = (column + part * columns) * vectors + at;
                #[unroll]
                for i in 0..at_once {
                    loaded[comptime!((part * at_once + i) as usize)] =
                        weight[(start + comptime!(i * PLANE)) as usize];
                }
            }
            #[unroll]
            for part in 0..parts {
                #[unroll]
                for i in 0..at_once {
                    let w = loaded[comptime!((part * at_once + i) as usize)];
                    let w = Vector::<f32, N>::cast_from(w);
                    #[unroll]
                    for row in 0..m {
                        let x = x[(comptime!(row * vectors) + at + comptime!(i * PLANE)) as usize];
                        let products = w * Vector::<f32, N>::cast_from(x);
                        #[unroll]
                        for lane in 0..lanes {
                            sums[comptime!((part * m + row) as usize)] += products[lane as usize];
                        }
                    }
                }
            }
            at += comptime!(at_once * PLANE);
        }
        #[unroll]
        for row in 0..m {
            let mut sum = plane_sum(sums[row as usize]);
            if comptime!(parts == 2) {
                let gated = plane_sum(sums[comptime!((m + row) as usize)]);
                sum = sum / (1.0f32 + f32::exp(-sum)) * gated;
            }
            if UNIT_POS_X == 0u32 {
                y[(row * columns + column) as usize] = Y::cast_from(sum);
            }
        }
    }
}
