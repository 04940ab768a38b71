//! Gates over rows.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::ROOT;
use crate::Activation;
use crate::cube::launch::{array, empty, grid};
use crate::cube::unit::expert_of;
use crate::norm::cube::{UNITS, lanes, take};
use ::cubecl::prelude::*;
use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

pub(crate) fn gated<R: CubeRuntime, F: FloatElement>(
    inputs: Vec<CubeTensor<R>>,
    activation: Activation,
) -> Vec<CubeTensor<R>> {
    let [x] = take(inputs);
    if activation != Activation::Silu {
        return vec![activate::<R, F>(&x, activation, None)];
    }
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

/// The gated rows of rows [.., 2 n], to which biases may be added first: `bias` is a number below E for each
/// row, and biases [E, 2 n].
pub(crate) fn activate<R: CubeRuntime, F: FloatElement>(
    x: &CubeTensor<R>,
    activation: Activation,
    bias: Option<(&CubeTensor<R>, &CubeTensor<R>)>,
) -> CubeTensor<R> {
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    shape[last] /= 2;
    let n = shape[last];
    let out = empty(x, shape, F::dtype());
    let (alpha, limit, kind) = match activation {
        Activation::Silu => (0.0, 0.0, Kind::Silu),
        Activation::Gelu => (0.0, 0.0, Kind::Gelu),
        Activation::Clamped {
            alpha,
            limit,
            alternate: false,
        } => (alpha, limit, Kind::Clamped),
        Activation::Clamped {
            alpha,
            limit,
            alternate: true,
        } => (alpha, limit, Kind::Alternate),
    };
    let (ids, biases) = bias.unwrap_or((x, x));
    let lanes = match kind {
        Kind::Alternate => 1,
        Kind::Silu | Kind::Gelu | Kind::Clamped => lanes(n),
    };
    let count = out.meta.num_elements() / lanes;
    if count > 0 {
        // SAFETY: units beyond the last element do nothing; without biases any buffers stand for them and for ids.
        unsafe {
            let words = |x: &CubeTensor<R>| {
                let bytes = x.meta.num_elements() * x.dtype.size();
                ArrayArg::from_raw_parts(x.handle.clone(), bytes / 4)
            };
            activate_kernel::launch_unchecked::<F, R>(
                &x.client,
                grid((count as u32).div_ceil(UNITS)),
                CubeDim::new_1d(UNITS),
                lanes,
                array(x),
                words(ids),
                words(biases),
                array(&out),
                count as u32,
                (n / lanes) as u32,
                alpha,
                limit,
                kind,
                lanes as u32,
                bias.map(|(_, biases)| biases.meta.shape()[0] as u32),
            );
        }
    }
    out
}

/// The activation as the kernel knows it when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Silu,
    Gelu,
    Clamped,
    /// As `Clamped`, with gate and x in turn.
    Alternate,
}

/// Rows of `out` are `width` vectors; `experts` are those that have biases, if they have.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn activate_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    ids: &Array<i32>,
    biases: &Array<Vector<f32, N>>,
    out: &mut Array<Vector<F, N>>,
    count: u32,
    width: u32,
    alpha: f32,
    limit: f32,
    #[comptime] kind: Kind,
    #[comptime] lanes: u32,
    #[comptime] experts: Option<u32>,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let row = at / width;
        let mut gate_at = at % width;
        let mut value_at = gate_at + width;
        if comptime!(kind == Kind::Alternate) {
            gate_at *= 2u32;
            value_at = gate_at + 1u32;
        }
        let mut gates = Vector::<f32, N>::cast_from(x[(2u32 * row * width + gate_at) as usize]);
        let mut values = Vector::<f32, N>::cast_from(x[(2u32 * row * width + value_at) as usize]);
        if comptime!(experts.is_some()) {
            let experts = comptime!(experts.unwrap_or(1)).runtime();
            let start = expert_of(ids, row, experts) * 2u32 * width;
            gates += biases[(start + gate_at) as usize];
            values += biases[(start + value_at) as usize];
        }
        let mut gated = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for lane in 0..lanes {
            let (gate, value) = (gates[lane as usize], values[lane as usize]);
            gated[lane as usize] = activated(gate, value, alpha, limit, kind);
        }
        out[at as usize] = Vector::<F, N>::cast_from(gated);
    }
}

#[cube]
fn activated(gate: f32, value: f32, alpha: f32, limit: f32, #[comptime] kind: Kind) -> f32 {
    if comptime!(kind == Kind::Silu) {
        gate / (1.0f32 + (-gate).exp()) * value
    } else if comptime!(kind == Kind::Gelu) {
        let inner = comptime!(2.0 * ROOT).runtime() * (gate + 0.044715f32 * gate * gate * gate);
        // (1 + tanh(u)) / 2 as a sigmoid, without the cancellation of 1 + tanh(u) for negative numbers.
        gate / (1.0f32 + (-inner).exp()) * value
    } else {
        let gate = min(gate, limit);
        gate / (1.0f32 + (-alpha * gate).exp()) * (clamp(value, -limit, limit) + 1.0f32)
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
