//! The gated delta rule: mix the channels of all tokens, walk the tokens with the state in
//! registers, then norm and gate all tokens.
//!
//! The walk is one token after the other, so that a chunk, a whole prompt and a single token
//! are the same sums. Columns of the state do not know each other: a unit owns one, or
//! `PARTS` neighbours share it and meet by shuffles where the device has them.

use super::{array, empty, sigmoid, sum_of_units};
use crate::Delta;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use cubecl::features::Plane;
use cubecl::prelude::*;

/// Tokens whose q, k and v are in shared memory at once.
const STAGE: u32 = 8;
/// Columns of the state in a workgroup.
const COLUMNS: u32 = 32;
/// Units that share a column, on devices with shuffles.
const PARTS: u32 = 4;
/// Added to the square of the length of q and k.
const EPSILON: f32 = 1e-6;

/// What the kernels are specialised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    k_heads: u32,
    v_heads: u32,
    k_dim: u32,
    v_dim: u32,
    taps: u32,
    parts: u32,
    columns: u32,
}

impl Shape {
    fn channels(&self) -> u32 {
        2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
    }

    /// Units of a workgroup that walks.
    fn units(&self) -> u32 {
        self.columns * self.parts
    }

    /// Numbers of a stage: q and k of each token, v of the columns, two gates.
    fn stage(&self) -> u32 {
        STAGE * (2 * self.k_dim + self.columns + 2)
    }
}

pub(super) fn delta<R: CubeRuntime, F: FloatElement>(
    op: &Delta,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let rows = match next() {
        rows if rows.meta.strides()[2] == 1 => rows,
        rows => into_contiguous(rows),
    };
    let [convolution, decay, bias, norm, last, state] =
        std::array::from_fn(|_| into_contiguous(next()));
    let client = rows.client.clone();
    let (batch, tokens) = (rows.shape()[0], rows.shape()[1]);
    let shuffles = client.properties().features.plane.contains(Plane::Ops);
    let dim = op.k_dim as u32;
    let shape = Shape {
        k_heads: op.k_heads as u32,
        v_heads: op.v_heads as u32,
        k_dim: dim,
        v_dim: op.v_dim as u32,
        taps: op.taps as u32,
        parts: match shuffles && dim.is_multiple_of(4 * PARTS) {
            true => PARTS,
            false => 1,
        },
        columns: COLUMNS.min(op.v_dim as u32),
    };
    let channels = op.channels();
    let values = op.v_heads * op.v_dim;
    let mixed = empty(&rows, [batch, tokens, channels], DType::F32);
    let kept = empty(&rows, [batch, op.taps - 1, channels], F::dtype());
    let read = empty(&rows, [batch, tokens, values], DType::F32);
    let new_state = empty(&rows, state.shape(), DType::F32);
    let out = empty(&rows, [batch, tokens, values], F::dtype());
    if batch * tokens == 0 {
        return vec![out, last, state];
    }
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
    vec![out, kept, new_state]
}

/// Convolution and silu; q and k are brought to length one, q also to the scale of logits.
/// One head of one token in a workgroup.
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
    let taps = comptime!(shape.taps);
    let channels = comptime!(shape.channels());
    let before = comptime!(shape.taps - 1);
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
    let mut sum = 0.0f32;
    #[unroll]
    for tap in 0..taps {
        // Position of the tap, `taps - 1` ahead so that it is not negative.
        let ahead = token + tap;
        let weight = convolution[(tap * channels + channel) as usize];
        if ahead >= before {
            let at = sequence * row_batch + (ahead - before) * row_token + channel;
            sum += weight * f32::cast_from(rows[at as usize]);
        } else {
            let at = (sequence * before + ahead) * channels + channel;
            sum += weight * f32::cast_from(last[at as usize]);
        }
    }
    let mut value = sum * sigmoid(sum);
    let mut square = value * value;
    if unit >= dim {
        square = 0.0f32;
    }
    let square = sum_of_units(square, &mut shared, comptime!(shape.k_dim.max(shape.v_dim)));
    if !is_v {
        value *= (square + EPSILON).inverse_sqrt();
        if head < k_heads {
            value *= comptime!(1.0 / (shape.k_dim as f32).sqrt()).runtime();
        }
    }
    if unit < dim {
        mixed[((sequence * tokens + token) * channels + channel) as usize] = value;
        // The last rows of all, those before included, are what the next call begins with.
        if token == 0u32 {
            #[unroll]
            for row in 0..before {
                let ahead = tokens + row;
                let to = ((sequence * before + row) * channels + channel) as usize;
                if ahead >= before {
                    let at = sequence * row_batch + (ahead - before) * row_token + channel;
                    kept[to] = rows[at as usize];
                } else {
                    kept[to] = last[((sequence * before + ahead) * channels + channel) as usize];
                }
            }
        }
    }
}

/// One number of a stage: token by token q, k, v of the columns, then how much is forgotten
/// and how much is learned.
#[cube]
#[allow(clippy::too_many_arguments)]
fn stage_number<F: Float>(
    rows: &Array<F>,
    mixed: &Array<f32>,
    first: u32,
    number: u32,
    head: u32,
    column: u32,
    row_base: u32,
    row_token: u32,
    mixed_base: u32,
    last_token: u32,
    decay: f32,
    bias: f32,
    #[comptime] shape: Shape,
) -> f32 {
    let k_dim = comptime!(shape.k_dim);
    let v_dim = comptime!(shape.v_dim);
    let columns = comptime!(shape.columns);
    let keys = comptime!(shape.k_heads * shape.k_dim);
    let k_head = head / comptime!(shape.v_heads / shape.k_heads);
    let per_token = comptime!(2 * shape.k_dim + shape.columns + 2);
    let within = number % per_token;
    let token = min(first + number / per_token, last_token);
    let from = mixed_base + token * comptime!(shape.channels());
    let gates = row_base
        + token * row_token
        + comptime!(shape.channels() + shape.v_heads * shape.v_dim)
        + head;
    if within < 2u32 * k_dim + columns {
        let mut at = from + k_head * k_dim + within;
        if within >= 2u32 * k_dim {
            let own = min(column + within - 2u32 * k_dim, v_dim - 1u32);
            at = from + 2u32 * keys + head * v_dim + own;
        } else if within >= k_dim {
            at += keys - k_dim;
        }
        mixed[at as usize]
    } else if within == 2u32 * k_dim + columns {
        let a = f32::cast_from(rows[(gates + comptime!(shape.v_heads)) as usize]) + bias;
        let step = select(a < 20.0f32, (1.0f32 + a.exp()).ln(), a);
        (decay * step).exp()
    } else {
        sigmoid(f32::cast_from(rows[gates as usize]))
    }
}

/// The row of the state that is a unit's `i`th: runs of four, the parts taking turns.
#[cube]
fn row_of(part: u32, #[comptime] i: u32, #[comptime] shape: Shape) -> u32 {
    part * 4u32 + comptime!(i / 4 * 4 * shape.parts + i % 4)
}

/// All tokens of some columns of a head's state in a workgroup.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn walk<F: Float>(
    rows: &Array<F>,
    mixed: &Array<f32>,
    decays: &Array<f32>,
    biases: &Array<f32>,
    state: &Array<f32>,
    new_state: &mut Array<f32>,
    read: &mut Array<f32>,
    row_batch: u32,
    row_token: u32,
    tokens: u32,
    #[comptime] shape: Shape,
) {
    let k_dim = comptime!(shape.k_dim);
    let v_dim = comptime!(shape.v_dim);
    let parts = comptime!(shape.parts);
    let columns = comptime!(shape.columns);
    let numbers = comptime!(shape.stage());
    let per_token = comptime!(2 * shape.k_dim + shape.columns + 2);
    // Rows of the state that a unit owns.
    let owned = comptime!(shape.k_dim / shape.parts);
    let loads = comptime!(shape.stage().div_ceil(shape.units()));

    let (head, sequence) = (CUBE_POS_Y, CUBE_POS_Z);
    let first_column = CUBE_POS_X * columns;
    let unit = UNIT_POS;
    let part = unit % parts;
    let own = unit / parts;
    let column = first_column + own;
    let valid = column < v_dim;
    let at_column = min(column, v_dim - 1u32);
    let state_base =
        (sequence * comptime!(shape.v_heads) + head) * comptime!(shape.k_dim * shape.v_dim);
    let row_base = sequence * row_batch;
    let mixed_base = sequence * tokens * comptime!(shape.channels());
    let decay = decays[head as usize];
    let bias = biases[head as usize];

    let mut memory = Array::<f32>::new(comptime!((shape.k_dim / shape.parts) as usize));
    #[unroll]
    for i in 0..owned {
        let row = row_of(part, i, shape);
        memory[i as usize] = state[(state_base + row * v_dim + at_column) as usize];
    }

    let mut shared = SharedMemory::<f32>::new(comptime!(2 * shape.stage() as usize));
    let mut coming = Array::<f32>::new(comptime!(shape.stage().div_ceil(shape.units()) as usize));
    let stages = (tokens + STAGE - 1u32) / STAGE;
    #[unroll]
    for i in 0..loads {
        let number = min(comptime!(i * shape.units()) + unit, numbers - 1u32);
        let value = stage_number(
            rows,
            mixed,
            0u32,
            number,
            head,
            first_column,
            row_base,
            row_token,
            mixed_base,
            tokens - 1u32,
            decay,
            bias,
            shape,
        );
        shared[number as usize] = value;
    }
    sync_cube();

    for stage in 0..stages {
        let from = (stage % 2u32) * numbers;
        let to = numbers - from;
        let first = stage * STAGE;
        if stage + 1u32 < stages {
            #[unroll]
            for i in 0..loads {
                let number = min(comptime!(i * shape.units()) + unit, numbers - 1u32);
                coming[i as usize] = stage_number(
                    rows,
                    mixed,
                    first + STAGE,
                    number,
                    head,
                    first_column,
                    row_base,
                    row_token,
                    mixed_base,
                    tokens - 1u32,
                    decay,
                    bias,
                    shape,
                );
            }
        }
        for token in 0..min(STAGE, tokens - first) {
            let q_at = from + token * per_token;
            let k_at = q_at + k_dim;
            let v_at = k_at + k_dim;
            let forget = shared[(v_at + columns) as usize];
            let learn = shared[(v_at + columns + 1u32) as usize];
            let mut by_k = 0.0f32;
            let mut by_q = 0.0f32;
            let mut both = 0.0f32;
            #[unroll]
            for i in 0..owned {
                let row = row_of(part, i, shape);
                let k = shared[(k_at + row) as usize];
                let q = shared[(q_at + row) as usize];
                by_k += memory[i as usize] * k;
                by_q += memory[i as usize] * q;
                both += k * q;
            }
            if comptime!(shape.parts > 1) {
                by_k += plane_shuffle_xor(by_k, 1u32);
                by_q += plane_shuffle_xor(by_q, 1u32);
                both += plane_shuffle_xor(both, 1u32);
                by_k += plane_shuffle_xor(by_k, 2u32);
                by_q += plane_shuffle_xor(by_q, 2u32);
                both += plane_shuffle_xor(both, 2u32);
            }
            let change = learn * (shared[(v_at + own) as usize] - forget * by_k);
            #[unroll]
            for i in 0..owned {
                let row = row_of(part, i, shape);
                let k = shared[(k_at + row) as usize];
                memory[i as usize] = memory[i as usize] * forget + k * change;
            }
            if valid && part == 0u32 {
                let at =
                    ((sequence * tokens + first + token) * comptime!(shape.v_heads) + head) * v_dim;
                read[(at + column) as usize] = forget * by_q + both * change;
            }
        }
        if stage + 1u32 < stages {
            #[unroll]
            for i in 0..loads {
                let number = min(comptime!(i * shape.units()) + unit, numbers - 1u32);
                shared[(to + number) as usize] = coming[i as usize];
            }
        }
        sync_cube();
    }

    if valid {
        #[unroll]
        for i in 0..owned {
            let row = row_of(part, i, shape);
            new_state[(state_base + row * v_dim + column) as usize] = memory[i as usize];
        }
    }
}

/// Norm over a head, times its gate. One head of one token in a workgroup.
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
    let square = sum_of_units(x * x, &mut shared, v_dim);
    let factor = (square / comptime!(v_dim as f32).runtime() + epsilon).inverse_sqrt();
    let z = sequence * row_batch
        + token * row_token
        + comptime!(shape.channels())
        + head * v_dim
        + UNIT_POS;
    let z = f32::cast_from(rows[z as usize]);
    out[at as usize] = F::cast_from(x * factor * norm[UNIT_POS as usize] * z * sigmoid(z));
}
