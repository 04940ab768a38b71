//! Norms of rows.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use crate::cube::launch::{array, empty, grid, plane};
use crate::cube::unit::sum_of_units;
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units that share a row.
pub(crate) const UNITS: u32 = 256;
/// Elements that a unit loads at once, if rows divide into that many.
const LANES: usize = 4;

pub(crate) fn norm<R: CubeRuntime, F: FloatElement>(
    inputs: Vec<CubeTensor<R>>,
    epsilon: f32,
) -> Vec<CubeTensor<R>> {
    let [x, weight] = take(inputs);
    let out = empty(&x, x.shape(), F::dtype());
    // Without an addition y and the sum are not accessed: any tensors will do.
    launch_norm::<R, F>([&x, &out, &weight, &x, &out], epsilon, false);
    vec![out]
}

pub(crate) fn add_norm<R: CubeRuntime, F: FloatElement>(
    inputs: Vec<CubeTensor<R>>,
    epsilon: f32,
) -> Vec<CubeTensor<R>> {
    let [x, y, weight] = take(inputs);
    let sum = empty(&x, x.shape(), DType::F32);
    let out = empty(&x, x.shape(), F::dtype());
    launch_norm::<R, F>([&x, &y, &weight, &sum, &out], epsilon, true);
    vec![sum, out]
}

/// The first `N` inputs, made contiguous.
pub(crate) fn take<R: CubeRuntime, const N: usize>(
    inputs: Vec<CubeTensor<R>>,
) -> [CubeTensor<R>; N] {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    std::array::from_fn(|_| inputs.next().expect("the inputs were counted"))
}

/// How many elements a unit loads at once from rows of `n` elements.
pub(crate) fn lanes(n: usize) -> usize {
    match n.is_multiple_of(LANES) {
        true => LANES,
        false => 1,
    }
}

fn launch_norm<R: CubeRuntime, F: FloatElement>(
    [x, y, weight, sum, out]: [&CubeTensor<R>; 5],
    epsilon: f32,
    add: bool,
) {
    let n = weight.meta.num_elements();
    let rows = x.meta.num_elements() / n;
    if rows == 0 {
        return;
    }
    // SAFETY: all tensors but the weight have `rows` rows of `n`, which the grid walks.
    unsafe {
        norm_kernel::launch_unchecked::<F, R>(
            &x.client,
            grid(rows as u32),
            CubeDim::new_1d(UNITS),
            lanes(n),
            array(x),
            array(y),
            array(weight),
            array(sum),
            array(out),
            rows as u32,
            epsilon,
            n as u32,
            lanes(n) as u32,
            plane(&x.client),
            add,
        );
    }
}

/// A workgroup computes one row.
#[cube(launch_unchecked)]
fn norm_kernel<F: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    y: &Array<Vector<F, N>>,
    weight: &Array<Vector<f32, N>>,
    sum: &mut Array<Vector<f32, N>>,
    out: &mut Array<Vector<F, N>>,
    rows: u32,
    epsilon: f32,
    #[comptime] n: u32,
    #[comptime] lanes: u32,
    #[comptime] plane: u32,
    #[comptime] add: bool,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let row = CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    // The whole workgroup ends, so that no unit waits at a barrier for another.
    if row >= rows {
        terminate!();
    }
    let vectors = comptime!(n / lanes);
    let start = row * vectors;
    // Each unit keeps its elements in registers, so that rows are read once; and it reads all of them before it writes
    // any, so that its reads are under way together.
    let own = comptime!(vectors.div_ceil(UNITS));
    let mut values = Array::<Vector<f32, N>>::new(comptime!(own as usize));
    let mut added = Array::<Vector<F, N>>::new(comptime!(own as usize));
    #[unroll]
    for i in 0..own {
        let at = comptime!(i * UNITS) + UNIT_POS;
        if comptime!((i + 1) * UNITS <= vectors) || at < vectors {
            values[i as usize] = x[(start + at) as usize];
            if add {
                added[i as usize] = y[(start + at) as usize];
            }
        }
    }
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..own {
        let at = comptime!(i * UNITS) + UNIT_POS;
        if comptime!((i + 1) * UNITS <= vectors) || at < vectors {
            let mut value = values[i as usize];
            if add {
                value += Vector::<f32, N>::cast_from(added[i as usize]);
                sum[(start + at) as usize] = value;
                values[i as usize] = value;
            }
            squares += value * value;
        }
    }
    let mut square = 0.0f32;
    #[unroll]
    for lane in 0..lanes {
        square += squares[lane as usize];
    }
    let square = sum_of_units(square, &mut shared, UNITS, plane);
    let factor = (square / comptime!(n as f32).runtime() + epsilon).inverse_sqrt();
    let factor = Vector::<f32, N>::new(factor);
    #[unroll]
    for i in 0..own {
        let at = comptime!(i * UNITS) + UNIT_POS;
        if comptime!((i + 1) * UNITS <= vectors) || at < vectors {
            let value = values[i as usize] * factor * weight[at as usize];
            out[(start + at) as usize] = Vector::<F, N>::cast_from(value);
        }
    }
}
