//! Gates over rows.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use crate::Activation;
use crate::cube::launch::{array, empty, grid};
use crate::norm::cube::{UNITS, lanes, take};
use ::cubecl::prelude::*;
use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

pub(crate) fn gated<R: CubeRuntime, F: FloatElement>(
    inputs: Vec<CubeTensor<R>>,
    activation: Activation,
) -> Vec<CubeTensor<R>> {
    let Activation::Silu = activation;
    let [x] = take(inputs);
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    shape[last] /= 2;
    let n = shape[last];
    let out = empty(&x, shape, F::dtype());
    let lanes = lanes(n);
    let vectors = out.meta.num_elements() / lanes;
    if vectors > 0 {
        // SAFETY: each of the output's vectors is written once; its row has both halves.
        unsafe {
            gated_kernel::launch_unchecked::<F, R>(
                &x.client,
                grid((vectors as u32).div_ceil(UNITS)),
                CubeDim::new_1d(UNITS),
                lanes,
                array(&x),
                array(&out),
                vectors as u32,
                (n / lanes) as u32,
            );
        }
    }
    vec![out]
}

#[cube(launch_unchecked)]
fn gated_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    out: &mut Array<Vector<F, N>>,
    count: u32,
    width: u32,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let row = at / width;
        let gate_at = row * width + at;
        let gate = Vector::<f32, N>::cast_from(x[gate_at as usize]);
        let value = Vector::<f32, N>::cast_from(x[(gate_at + width) as usize]);
        let gated = gate * sigmoid_of(gate);
        out[at as usize] = Vector::<F, N>::cast_from(gated * value);
    }
}

pub(crate) fn gate_output<R: CubeRuntime, F: FloatElement>(
    inputs: Vec<CubeTensor<R>>,
    head_dim: usize,
) -> Vec<CubeTensor<R>> {
    let [o, rows] = take(inputs);
    let out = empty(&o, o.shape(), F::dtype());
    let (n, width) = (o.shape()[2], rows.shape()[2]);
    // Vectors are used only if both heads and rows divide into them.
    let lanes = lanes(head_dim).min(lanes(width));
    let count = (out.meta.num_elements() / lanes) as u32;
    let vectors = |elements: usize| (elements / lanes) as u32;
    if count > 0 {
        // SAFETY: each vector is written once; rows hold a gate for each of a row's elements.
        unsafe {
            gate_output_kernel::launch_unchecked::<F, R>(
                &o.client,
                grid(count.div_ceil(UNITS)),
                CubeDim::new_1d(UNITS),
                lanes,
                array(&o),
                array(&rows),
                array(&out),
                count,
                vectors(n),
                vectors(width),
                vectors(head_dim),
            );
        }
    }
    vec![out]
}

/// `count`, `own`, `width` and `head_dim` are in vectors.
#[cube(launch_unchecked)]
fn gate_output_kernel<F: Float, N: Size>(
    o: &Array<Vector<F, N>>,
    rows: &Array<Vector<F, N>>,
    out: &mut Array<Vector<F, N>>,
    count: u32,
    own: u32,
    width: u32,
    #[comptime] head_dim: u32,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let (row, within) = (at / own, at % own);
        let head = within / head_dim;
        let gate = row * width + head * comptime!(2 * head_dim) + head_dim + within % head_dim;
        let gate = sigmoid_of(Vector::<f32, N>::cast_from(rows[gate as usize]));
        let gated = Vector::<f32, N>::cast_from(o[at as usize]) * gate;
        out[at as usize] = Vector::<F, N>::cast_from(gated);
    }
}

#[cube]
fn sigmoid_of<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    // CubeCL cannot emit the negation of a vector for CUDA.
    let negative = Vector::<f32, N>::new(0.0f32) - x;
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + negative.exp())
}
