//! A few rows times a dense weight, which is read once, without matrix units.

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
    let (m, k, n) = (x.shape()[0], x.shape()[1], weight.shape()[0]);
    let y = empty(x, [m, n], Y::dtype());
    let vectors = (k / LANES) as u32;
    let at_once = match vectors.is_multiple_of(4 * PLANE) {
        true => 4,
        false => 1,
    };
    // SAFETY: each plane writes its own column of all rows; rows hold `vectors` vectors.
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
        );
    }
    y
}

/// Each plane multiplies one row of the weight by all rows of x.
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
) {
    let column = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * PLANES + UNIT_POS_Y;
    // The same for all units of a plane.
    if column < columns {
        let start = column * vectors;
        let mut sums = Array::<f32>::new(comptime!(m as usize));
        #[unroll]
        for row in 0..m {
            sums[row as usize] = 0.0f32;
        }
        let mut loaded = Array::<Vector<W, N>>::new(comptime!(at_once as usize));
        let mut at = UNIT_POS_X;
        while at < vectors {
            #[unroll]
            for i in 0..at_once {
                loaded[i as usize] = weight[(start + at + comptime!(i * PLANE)) as usize];
            }
            #[unroll]
            for i in 0..at_once {
                let w = Vector::<f32, N>::cast_from(loaded[i as usize]);
                #[unroll]
                for row in 0..m {
                    let x = x[(comptime!(row * vectors) + at + comptime!(i * PLANE)) as usize];
                    let products = w * Vector::<f32, N>::cast_from(x);
                    #[unroll]
                    for lane in 0..lanes {
                        sums[row as usize] += products[lane as usize];
                    }
                }
            }
            at += comptime!(at_once * PLANE);
        }
        #[unroll]
        for row in 0..m {
            let sum = plane_sum(sums[row as usize]);
            if UNIT_POS_X == 0u32 {
                y[(row * columns + column) as usize] = Y::cast_from(sum);
            }
        }
    }
}
