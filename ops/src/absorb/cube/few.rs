//! Products of a few rows with a matrix of each head: kernels that read the weight once, without tensor
//! cores, for NVIDIA devices.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::super::{Absorb, Unabsorb, Up};
use crate::cube::launch::{array, empty};
use crate::cube::unit::turned;
use ::cubecl::prelude::*;
use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::{Device, Launches};

/// Most rows.
const FEW: usize = 8;
/// Elements in a load of [`absorb`], and in one of [`unabsorb`].
const LANES: [usize; 2] = [4, 8];
/// Units of a plane.
const PLANE: u32 = 32;
/// Planes of a workgroup of [`unabsorb`].
const PLANES: u32 = 8;
/// Planes of a workgroup of [`absorb`], and how many rows of the matrix each of them loads at once.
const SHARING: u32 = 16;
const AT_ONCE: u32 = 6;

/// Whether these kernels multiply so many rows with a weight.
pub(super) fn takes<R: CubeRuntime + Launches, F: FloatElement>(
    up: Up,
    rows: usize,
    weight: &CubeTensor<R>,
) -> bool {
    let [_, lanes] = LANES;
    let fits = rows <= FEW && up.rank.is_multiple_of(lanes) && weight.dtype == F::dtype();
    match R::device(&weight.client) {
        Device::Cuda => fits,
        Device::Vulkan | Device::Webgpu => false,
    }
}

/// The compile-time parameters of [`absorb`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    rows: u32,
    tokens: u32,
    heads: u32,
    of_head: u32,
    nope: u32,
    rank: u32,
    row: u32,
    start: u32,
    rest: u32,
    rotated: u32,
    interleaved: bool,
    lanes: u32,
}

/// Contiguous rows [B, T, n] → q [B, heads, T, rank + rest].
pub(super) fn absorb<R: CubeRuntime, F: FloatElement>(
    op: &Absorb,
    [q, weight, rotation]: [&CubeTensor<R>; 3],
) -> CubeTensor<R> {
    let (batch, tokens, row) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    let (up, [lanes, _]) = (op.up, LANES);
    let out = empty(q, [batch, up.heads, tokens, up.rank + op.rest], F::dtype());
    let shape = Shape {
        rows: (batch * tokens) as u32,
        tokens: tokens as u32,
        heads: up.heads as u32,
        of_head: up.of_head() as u32,
        nope: up.nope as u32,
        rank: up.rank as u32,
        row: row as u32,
        start: op.start as u32,
        rest: op.rest as u32,
        rotated: op.rotated as u32,
        interleaved: op.interleaved,
        lanes: lanes as u32,
    };
    let columns = ((up.rank / lanes) as u32).div_ceil(PLANE);
    // SAFETY: the shapes were checked; units beyond the last column of a head write nothing.
    unsafe {
        absorb_kernel::launch_unchecked::<F, R>(
            &q.client,
            CubeCount::Static(columns, up.heads as u32, 1),
            CubeDim::new_2d(PLANE, SHARING),
            lanes,
            array(q),
            array(weight),
            array(rotation),
            array(&out),
            shape,
        );
    }
    out
}

/// A workgroup computes some elements of one head, for all rows; its planes share the rows of the matrix.
#[cube(launch_unchecked)]
fn absorb_kernel<F: Float, N: Size>(
    q: &Array<F>,
    weight: &Array<Vector<F, N>>,
    rotation: &Array<f32>,
    out: &mut Array<F>,
    #[comptime] shape: Shape,
) {
    let head = CUBE_POS_Y;
    let (rows, lanes) = comptime!((shape.rows, shape.lanes));
    let vectors = comptime!(shape.rank / shape.lanes);
    let width = comptime!(shape.rank + shape.rest);
    let of_q = comptime!(shape.start).runtime() + head * comptime!(shape.nope + shape.rest);
    let column = CUBE_POS_X * PLANE + UNIT_POS_X;
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(rows as usize));
    #[unroll]
    for row in 0..rows {
        sums[row as usize] = Vector::<f32, N>::new(0.0f32);
    }
    if column < vectors {
        let nope = comptime!(shape.nope);
        let mut n = UNIT_POS_Y;
        let first = head * comptime!(shape.of_head);
        let mut loaded = Array::<Vector<F, N>>::new(comptime!(AT_ONCE as usize));
        while n < nope {
            // Beyond the last row the last one is loaded, and not multiplied.
            #[unroll]
            for i in 0..AT_ONCE {
                let n = min(n + comptime!(i * SHARING), comptime!(nope - 1).runtime());
                loaded[i as usize] = weight[((first + n) * vectors + column) as usize];
            }
            #[unroll]
            for i in 0..AT_ONCE {
                let n = n + comptime!(i * SHARING);
                if n < nope {
                    let w = Vector::<f32, N>::cast_from(loaded[i as usize]);
                    #[unroll]
                    for row in 0..rows {
                        let x = f32::cast_from(q[(comptime!(row * shape.row) + of_q + n) as usize]);
                        sums[row as usize] += w * Vector::<f32, N>::new(x);
                    }
                }
            }
            n += comptime!(AT_ONCE * SHARING);
        }
    }
    let mut shared = SharedMemory::<f32>::new(comptime!((SHARING * PLANE * shape.lanes) as usize));
    #[unroll]
    for row in 0..rows {
        let token = comptime!(row % shape.tokens).runtime();
        let sum_of_plane = sums[row as usize];
        let vector = (comptime!(row / shape.tokens * shape.heads).runtime() + head)
            * comptime!(shape.tokens)
            + token;
        let own = (UNIT_POS_Y * PLANE + UNIT_POS_X) * lanes;
        #[unroll]
        for lane in 0..lanes {
            shared[(own + lane) as usize] = sum_of_plane[lane as usize];
        }
        sync_cube();
        if UNIT_POS_Y == 0u32 && column < vectors {
            #[unroll]
            for lane in 0..lanes {
                let mut sum = 0.0f32;
                #[unroll]
                for plane in 0..SHARING {
                    sum += shared[((plane * PLANE + UNIT_POS_X) * lanes + lane) as usize];
                }
                out[(vector * width + column * lanes + lane) as usize] = F::cast_from(sum);
            }
        }
        sync_cube();
        // What is only rotated.
        if CUBE_POS_X == 0u32 {
            let rest = comptime!(shape.rest);
            let mut at = UNIT_POS_Y * PLANE + UNIT_POS_X;
            while at < rest {
                let x = turned(
                    q,
                    rotation,
                    comptime!(row * shape.row + shape.nope).runtime() + of_q,
                    at,
                    token,
                    comptime!(shape.rotated),
                    comptime!(shape.interleaved),
                );
                out[(vector * width + comptime!(shape.rank) + at) as usize] = F::cast_from(x);
                at += comptime!(PLANE * SHARING);
            }
        }
    }
}

/// Contiguous o [B, T, heads, rank] → [B, T, heads * v].
pub(super) fn unabsorb<R: CubeRuntime, F: FloatElement>(
    op: &Unabsorb,
    o: &CubeTensor<R>,
    weight: &CubeTensor<R>,
) -> CubeTensor<R> {
    let (batch, tokens) = (o.shape()[0], o.shape()[1]);
    let (up, [_, lanes]) = (op.up, LANES);
    let y = empty(o, [batch, tokens, up.heads * up.v], F::dtype());
    // SAFETY: each plane writes one element of all rows; those beyond the last do nothing.
    unsafe {
        unabsorb_kernel::launch_unchecked::<F, R>(
            &o.client,
            CubeCount::Static((up.v as u32).div_ceil(PLANES), up.heads as u32, 1),
            CubeDim::new_2d(PLANE, PLANES),
            lanes,
            array(o),
            array(weight),
            array(&y),
            (batch * tokens) as u32,
            up.heads as u32,
            up.nope as u32,
            up.v as u32,
            (up.rank / lanes) as u32,
            lanes as u32,
        );
    }
    y
}

/// Each plane multiplies one row of a head's matrix by all rows of o.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // Kernels have no methods.
fn unabsorb_kernel<F: Float, N: Size>(
    o: &Array<Vector<F, N>>,
    weight: &Array<Vector<F, N>>,
    y: &mut Array<F>,
    #[comptime] rows: u32,
    #[comptime] heads: u32,
    #[comptime] nope: u32,
    #[comptime] v: u32,
    #[comptime] vectors: u32,
    #[comptime] lanes: u32,
) {
    let head = CUBE_POS_Y;
    let element = CUBE_POS_X * PLANES + UNIT_POS_Y;
    // The same for all units of a plane.
    if element < v {
        let start = (head * comptime!(nope + v) + nope + element) * vectors;
        let mut sums = Array::<f32>::new(comptime!(rows as usize));
        #[unroll]
        for row in 0..rows {
            sums[row as usize] = 0.0f32;
        }
        let mut at = UNIT_POS_X;
        while at < vectors {
            let w = Vector::<f32, N>::cast_from(weight[(start + at) as usize]);
            #[unroll]
            for row in 0..rows {
                let of_row = comptime!(row * heads).runtime() + head;
                let x = o[(of_row * vectors + at) as usize];
                let products = w * Vector::<f32, N>::cast_from(x);
                #[unroll]
                for lane in 0..lanes {
                    sums[row as usize] += products[lane as usize];
                }
            }
            at += PLANE;
        }
        #[unroll]
        for row in 0..rows {
            let sum = plane_sum(sums[row as usize]);
            if UNIT_POS_X == 0u32 {
                let of_row = comptime!(row * heads).runtime() + head;
                y[(of_row * v + element) as usize] = F::cast_from(sum);
            }
        }
    }
}
