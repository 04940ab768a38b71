//! Norms of a few rows times a dense weight with few rows, such as a router, in f32: every workgroup makes the norms for
//! itself, which costs less than the launch of a kernel that makes them once.

use crate::cube::launch::{array, empty, grid};
use crate::linear::counts;
use crate::normed::cube::{Given, Kept};
use crate::normed::row::{RowShape, norm_of_row};
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Elements in a load: 16 bytes of 16-bit floats.
const LANES: usize = 8;
/// Planes of a workgroup, each of which multiplies one row of the weight.
const PLANES: u32 = 8;
/// Units of a plane.
const PLANE: u32 = 32;
const UNITS: u32 = PLANE * PLANES;
/// Most bytes of norms in shared memory.
const MOST_BYTES: usize = 32 << 10;
/// Most rows of the weight.
const MOST_ROWS: usize = 1024;

/// What the kernel knows when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows of x.
    m: u32,
    row: RowShape,
    /// Vectors that a unit loads at once.
    at_once: u32,
}

/// Whether the kernel takes norms of rows [m, K] times a weight [N, K].
pub(crate) fn takes([m, k, n]: [usize; 3]) -> bool {
    k.is_multiple_of(LANES) && m * k * 2 <= MOST_BYTES && n <= MOST_ROWS && counts(n, k / LANES)
}

/// Norms times a weight [N, K] of type W → [m, N] in f32, of sizes that the kernel takes; writes what is wanted of sums
/// and norms too.
pub(crate) fn multiply<R: CubeRuntime, F: FloatElement, W: FloatElement>(
    given: &Given<R>,
    weight: &CubeTensor<R>,
    kept: &Kept<R>,
) -> CubeTensor<R> {
    let (m, k, n) = (given.rows(), given.columns(), weight.shape()[0]);
    let x = &given.x;
    let y = empty(x, [m, n], DType::F32);
    let vectors = (k / LANES) as u32;
    let shape = Shape {
        m: m as u32,
        row: RowShape::of(given, kept, LANES, UNITS),
        at_once: if vectors.is_multiple_of(4 * PLANE) {
            4
        } else {
            1
        },
    };
    // SAFETY: each plane writes its own column of all rows; rows hold `vectors` vectors, of which the weight has N rows. Any
    // buffers stand for terms and factors that are not there, and for sums and norms that are not wanted.
    unsafe {
        normed_kernel::launch_unchecked::<F, W, R>(
            &x.client,
            grid((n as u32).div_ceil(PLANES)),
            CubeDim::new_2d(PLANE, PLANES),
            LANES,
            array(x),
            array(given.added.as_ref().unwrap_or(weight)),
            array(given.factors.as_ref().unwrap_or(x)),
            array(&given.norm),
            array(weight),
            array(kept.sums.as_ref().unwrap_or(&y)),
            array(kept.norms.as_ref().unwrap_or(&y)),
            array(&y),
            n as u32,
            given.epsilon,
            shape,
        );
    }
    y
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn normed_kernel<F: Float, W: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    added: &Array<Vector<F, N>>,
    factors: &Array<f32>,
    norm: &Array<Vector<f32, N>>,
    weight: &Array<Vector<W, N>>,
    sums: &mut Array<Vector<f32, N>>,
    norms: &mut Array<Vector<F, N>>,
    y: &mut Array<f32>,
    columns: u32,
    epsilon: f32,
    #[comptime] shape: Shape,
) {
    let vectors = comptime!(shape.row.vectors);
    let mut rows =
        SharedMemory::<Vector<F, N>>::new(comptime!((shape.m * shape.row.vectors) as usize));
    let mut squares = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let workgroup = CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    #[unroll]
    for row in 0..comptime!(shape.m) {
        norm_of_row(
            x,
            added,
            factors,
            norm,
            sums,
            norms,
            &mut rows,
            &mut squares,
            comptime!(row).runtime(),
            comptime!(row * vectors).runtime(),
            workgroup == 0u32,
            epsilon,
            comptime!(shape.row),
        );
    }
    sync_cube();
    let column = workgroup * PLANES + UNIT_POS_Y;
    // The same for all units of a plane.
    if column < columns {
        let m = comptime!(shape.m);
        let at_once = comptime!(shape.at_once);
        let mut products = Array::<f32>::new(comptime!(m as usize));
        #[unroll]
        for row in 0..m {
            products[row as usize] = 0.0f32;
        }
        let mut loaded = Array::<Vector<W, N>>::new(comptime!(at_once as usize));
        let mut at = UNIT_POS_X;
        while at < vectors {
            #[unroll]
            for i in 0..at_once {
                let place = column * vectors + at + comptime!(i * PLANE);
                loaded[i as usize] = weight[place as usize];
            }
            #[unroll]
            for i in 0..at_once {
                let w = Vector::<f32, N>::cast_from(loaded[i as usize]);
                #[unroll]
                for row in 0..m {
                    let place = comptime!(row * vectors) + at + comptime!(i * PLANE);
                    let terms = w * Vector::<f32, N>::cast_from(rows[place as usize]);
                    #[unroll]
                    for lane in 0..comptime!(LANES as u32) {
                        products[row as usize] += terms[lane as usize];
                    }
                }
            }
            at += comptime!(at_once * PLANE);
        }
        #[unroll]
        for row in 0..m {
            let sum = plane_sum(products[row as usize]);
            if UNIT_POS_X == 0u32 {
                y[(comptime!(row) * columns + column) as usize] = sum;
            }
        }
    }
}
