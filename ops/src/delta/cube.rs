//! The gated delta rule on devices: in chunks where `hopper.rs` takes it, a single token on NVIDIA devices in one kernel
//! where `single.rs` takes it, else in three kernels: convolve and normalise all tokens (`mix`), walk the tokens in order
//! with the state in registers (`walk.rs`), then norm and gate all tokens (`finish`).

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::layout::Layout;
use super::single;
use super::token::{convolved, gated, keep, normalised, squared};
use super::walk::{LANES, Shape, shared_bytes, walk};
use crate::cube::launch::{array, dense_rows, empty, plane};
use crate::cube::unit::sum_of_units;
use crate::{Delta, OperationError};
use ::cubecl::ir::HardwareProperties;
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::{Device, Launches};

/// Columns of the state that a workgroup owns.
const COLUMNS: u32 = 32;
/// Units that share columns of the state, on devices with plane shuffles.
const PARTS: u32 = 8;
/// Columns that these units share: each element of q and k that is read from shared memory is used
/// for all of them.
const EACH: u32 = 2;

/// Checks that the kernels for any number of tokens can be made for such heads on a device; else says why not.
pub(crate) fn takes(op: &Delta, hardware: &HardwareProperties) -> Result<(), String> {
    let lanes = LANES as usize;
    if !op.k_dim.is_multiple_of(lanes) || !op.channels().is_multiple_of(lanes) {
        return Err(format!(
            "heads of k of {} elements and {} channels are no multiples of {lanes}",
            op.k_dim,
            op.channels()
        ));
    }
    let units = op.k_dim.max(op.v_dim) as u64;
    let most = u64::from(hardware.max_cube_dim.0.min(hardware.max_units_per_cube));
    if units > most {
        return Err(format!(
            "heads of {units} elements, but this device takes at most {most}"
        ));
    }
    let bytes = shared_bytes(op.k_dim, COLUMNS as usize);
    let most = hardware.max_shared_memory_size;
    match bytes <= most {
        true => Ok(()),
        false => Err(format!(
            "heads of k of {} elements take {bytes} bytes of shared memory, this device has {most}",
            op.k_dim
        )),
    }
}

/// Computes the outputs, in the form that the device and the inputs have.
///
/// # Errors
/// If a generated kernel cannot be made or launched.
pub(crate) fn delta<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Delta,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let rows = dense_rows(next());
    let rest: [_; 6] = std::array::from_fn(|_| into_contiguous(next()));
    let [convolution, decay, bias, norm, last, state] = rest;
    let (batch, tokens) = (rows.shape()[0], rows.shape()[1]);
    if batch * tokens == 0 {
        let out = empty(&rows, [batch, tokens, op.v_heads * op.v_dim], F::dtype());
        return Ok(vec![out, last, state]);
    }
    let inputs = [rows, convolution, decay, bias, norm, last, state];
    if let Some(outputs) = super::hopper::delta::<R, F>(op, &inputs)? {
        return Ok(outputs);
    }
    let client = inputs[0].client.clone();
    let plane = plane(&client);
    let dim = op.k_dim as u32;
    let shared = plane >= PARTS && dim.is_multiple_of(LANES * PARTS);
    let shape = Shape {
        k_heads: op.k_heads as u32,
        v_heads: op.v_heads as u32,
        k_dim: dim,
        v_dim: op.v_dim as u32,
        taps: op.taps as u32,
        tiled: op.tiled,
        parts: if shared { PARTS } else { 1 },
        each: if shared { EACH } else { 1 },
        columns: COLUMNS,
        plane,
    };
    // On other devices its sums have other bits than those of the three kernels, for some sizes of heads.
    if tokens == 1
        && R::device(&client) == Device::Cuda
        && let Some(layout) = Layout::of(shape, &client.properties().hardware)
    {
        return Ok(single::delta::<R, F>(op, &inputs, layout));
    }
    let [rows, convolution, decay, bias, norm, last, state] = inputs;
    let channels = op.channels();
    let values = op.v_heads * op.v_dim;
    let mixed = empty(&rows, [batch, tokens, channels], DType::F32);
    let kept = empty(&rows, [batch, op.taps - 1, channels], F::dtype());
    let read = empty(&rows, [batch, tokens, values], DType::F32);
    let new_state = empty(&rows, state.shape(), DType::F32);
    let out = empty(&rows, [batch, tokens, values], F::dtype());
    let strides = [rows.meta.strides()[0] as u32, rows.meta.strides()[1] as u32];
    let (tokens, batch) = (tokens as u32, batch as u32);
    let heads = 2 * shape.k_heads + shape.v_heads;
    // SAFETY: the shapes were checked; each kernel's grid covers its outputs once.
    unsafe {
        mix::launch_unchecked::<F, R>(
            &client,
            CubeCount::Static(tokens, heads, batch),
            CubeDim::new_1d(shape.k_dim.max(shape.v_dim)),
            array(&rows),
            array(&convolution),
            array(&last),
            array(&mixed),
            array(&kept),
            strides[0],
            strides[1],
            tokens,
            shape,
        );
        walk::launch_unchecked::<F, R>(
            &client,
            CubeCount::Static(shape.v_dim.div_ceil(shape.columns), shape.v_heads, batch),
            CubeDim::new_1d(shape.units()),
            LANES as usize,
            array(&rows),
            array(&mixed),
            array(&decay),
            array(&bias),
            array(&state),
            array(&new_state),
            array(&read),
            strides[0],
            strides[1],
            tokens,
            shape,
        );
        finish::launch_unchecked::<F, R>(
            &client,
            CubeCount::Static(tokens, shape.v_heads, batch),
            CubeDim::new_1d(shape.v_dim),
            array(&rows),
            array(&read),
            array(&norm),
            array(&out),
            strides[0],
            strides[1],
            tokens,
            op.epsilon,
            shape,
        );
    }
    Ok(vec![out, kept, new_state])
}

/// Convolution and silu; then q and k are normalised to length 1, and q is multiplied by
/// `1 / sqrt(Dk)`. A workgroup computes one head of one token.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn mix<F: Float>(
    rows: &Array<F>,
    convolution: &Array<f32>,
    last: &Array<F>,
    mixed: &mut Array<f32>,
    kept: &mut Array<F>,
    row_batch: u32,
    row_token: u32,
    tokens: u32,
    #[comptime] shape: Shape,
) {
    let k_dim = comptime!(shape.k_dim);
    let v_dim = comptime!(shape.v_dim);
    let k_heads = comptime!(shape.k_heads);
    let channels = comptime!(shape.channels());
    let mut shared = SharedMemory::<f32>::new(comptime!(shape.k_dim.max(shape.v_dim) as usize));
    let (token, head, sequence) = (CUBE_POS_X, CUBE_POS_Y, CUBE_POS_Z);
    let is_v = head >= 2u32 * k_heads;
    let mut dim = k_dim.runtime();
    let mut start = head * k_dim;
    if is_v {
        dim = v_dim.runtime();
        start = 2u32 * k_heads * k_dim + (head - 2u32 * k_heads) * v_dim;
    }
    let unit = UNIT_POS;
    let channel = start + min(unit, dim - 1u32);
    let mut value = convolved(
        rows,
        convolution,
        last,
        channel,
        token,
        sequence,
        row_batch,
        row_token,
        shape,
    );
    let mut square = squared(value);
    if unit >= dim {
        square = 0.0f32;
    }
    let square = sum_of_units(
        square,
        &mut shared,
        comptime!(shape.k_dim.max(shape.v_dim)),
        comptime!(shape.plane),
    );
    if !is_v {
        value = normalised(value, square, head < k_heads, shape);
    }
    if unit < dim {
        mixed[((sequence * tokens + token) * channels + channel) as usize] = value;
        if token == 0u32 {
            keep(
                rows, last, kept, channel, tokens, sequence, row_batch, row_token, shape,
            );
        }
    }
}

/// The norm of a head, times its gate. A workgroup computes one head of one token.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn finish<F: Float>(
    rows: &Array<F>,
    read: &Array<f32>,
    norm: &Array<f32>,
    out: &mut Array<F>,
    row_batch: u32,
    row_token: u32,
    tokens: u32,
    epsilon: f32,
    #[comptime] shape: Shape,
) {
    let v_dim = comptime!(shape.v_dim);
    let mut shared = SharedMemory::<f32>::new(comptime!(shape.v_dim as usize));
    let (token, head, sequence) = (CUBE_POS_X, CUBE_POS_Y, CUBE_POS_Z);
    let at = ((sequence * tokens + token) * comptime!(shape.v_heads) + head) * v_dim + UNIT_POS;
    let x = read[at as usize];
    let square = sum_of_units(squared(x), &mut shared, v_dim, comptime!(shape.plane));
    let z = sequence * row_batch
        + token * row_token
        + comptime!(shape.channels())
        + head * v_dim
        + UNIT_POS;
    let z = f32::cast_from(rows[z as usize]);
    let weight = norm[UNIT_POS as usize];
    out[at as usize] = F::cast_from(gated(x, square, weight, z, epsilon, shape));
}
