//! The gated delta rule: mix the channels of all tokens, walk the tokens with the state in
//! registers, then norm and gate all tokens.
//!
//! The walk is one token after the other, so that a chunk, a whole prompt and a single token
//! are the same sums. Columns of the state do not know each other: a unit owns one, or
//! `PARTS` neighbours share it and meet by shuffles where the device has them.

use super::{array, empty, plane, sigmoid, sum_of_units};
use crate::Delta;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use cubecl::prelude::*;

/// Tokens whose q, k and v are in shared memory at once.
const STAGE: u32 = 8;
/// Elements of a vector.
const LANES: u32 = 4;
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
    plane: u32,
}

impl Shape {
    fn channels(&self) -> u32 {
        2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
    }

    /// Units of a workgroup that walks.
    fn units(&self) -> u32 {
        self.columns * self.parts
    }

    /// Vectors of q and k in a stage.
    fn stage_vectors(&self) -> u32 {
        STAGE * 2 * self.k_dim / LANES
    }

    /// Of these, the share of a unit.
    fn key_loads(&self) -> u32 {
        self.stage_vectors().div_ceil(self.units())
    }

    /// Numbers of v in a stage, the share of a unit.
    fn value_loads(&self) -> u32 {
        (STAGE * self.columns).div_ceil(self.units())
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
    let plane = plane(&client);
    let dim = op.k_dim as u32;
    let shape = Shape {
        k_heads: op.k_heads as u32,
        v_heads: op.v_heads as u32,
        k_dim: dim,
        v_dim: op.v_dim as u32,
        taps: op.taps as u32,
        parts: match plane >= PARTS && dim.is_multiple_of(LANES * PARTS) {
            true => PARTS,
            false => 1,
        },
        columns: COLUMNS,
        plane,
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
    let square = sum_of_units(
        square,
        &mut shared,
        comptime!(shape.k_dim.max(shape.v_dim)),
        comptime!(shape.plane),
    );
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

/// Vectors of q and k that a unit brings into shared memory.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load_keys<N: Size>(
    mixed: &Array<Vector<f32, N>>,
    into: &mut Array<Vector<f32, N>>,
    first: u32,
    last_token: u32,
    head: u32,
    base: u32,
    #[comptime] shape: Shape,
) {
    let vectors = comptime!(shape.k_dim / LANES);
    let channels = comptime!(shape.channels() / LANES);
    let k_head = head / comptime!(shape.v_heads / shape.k_heads);
    #[unroll]
    for i in 0..comptime!(shape.key_loads()) {
        let number = min(
            comptime!(i * shape.units()) + UNIT_POS,
            comptime!(shape.stage_vectors() - 1).runtime(),
        );
        let token = min(first + number / comptime!(2 * vectors), last_token);
        let within = number % comptime!(2 * vectors);
        // q of all heads, then k of all heads.
        let of_k = within / vectors;
        let at = base
            + token * channels
            + of_k * comptime!(shape.k_heads * vectors)
            + k_head * vectors
            + within % vectors;
        into[i as usize] = mixed[at as usize];
    }
}

/// One number of v that a unit brings into shared memory.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load_value<N: Size>(
    mixed: &Array<Vector<f32, N>>,
    number: u32,
    first: u32,
    last_token: u32,
    head: u32,
    first_column: u32,
    base: u32,
    #[comptime] shape: Shape,
) -> f32 {
    let columns = comptime!(shape.columns);
    let v_dim = comptime!(shape.v_dim);
    let token = min(first + number / columns, last_token);
    let column = min(first_column + number % columns, v_dim - 1u32);
    let channel = comptime!(2 * shape.k_heads * shape.k_dim) + head * v_dim + column;
    let vector =
        mixed[(base + token * comptime!(shape.channels() / LANES) + channel / LANES) as usize];
    let lane = channel % LANES;
    select(
        lane < 2u32,
        select(lane == 0u32, vector[0], vector[1]),
        select(lane == 2u32, vector[2], vector[3]),
    )
}

/// How much of the state a token keeps, and how much of its value it learns.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load_gate<F: Float>(
    rows: &Array<F>,
    which: u32,
    token: u32,
    head: u32,
    row_base: u32,
    row_token: u32,
    decay: f32,
    bias: f32,
    #[comptime] shape: Shape,
) -> f32 {
    let gates = row_base
        + token * row_token
        + comptime!(shape.channels() + shape.v_heads * shape.v_dim)
        + head;
    let a = f32::cast_from(rows[(gates + comptime!(shape.v_heads)) as usize]) + bias;
    let step = select(a < 20.0f32, (1.0f32 + a.exp()).ln(), a);
    let b = f32::cast_from(rows[gates as usize]);
    select(which == 0u32, (decay * step).exp(), sigmoid(b))
}

/// All tokens of some columns of a head's state in a workgroup.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn walk<F: Float, N: Size>(
    rows: &Array<F>,
    mixed: &Array<Vector<f32, N>>,
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
    let v_dim = comptime!(shape.v_dim);
    let parts = comptime!(shape.parts);
    let columns = comptime!(shape.columns);
    let vectors = comptime!(shape.k_dim / LANES);
    let stage_vectors = comptime!(shape.stage_vectors());
    let stage_values = comptime!(STAGE * shape.columns);
    // Vectors of a column of the state that a unit owns; the parts take turns.
    let owned = comptime!(shape.k_dim / LANES / shape.parts);

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
    let base = sequence * tokens * comptime!(shape.channels() / LANES);
    let decay = decays[head as usize];
    let bias = biases[head as usize];
    let last_token = tokens - 1u32;

    let mut memory = Array::<Vector<f32, N>>::new(comptime!(owned as usize));
    #[unroll]
    for i in 0..owned {
        let row = (comptime!(i * shape.parts) + part) * LANES;
        let mut vector = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for lane in 0..LANES {
            vector[lane as usize] = state[(state_base + (row + lane) * v_dim + at_column) as usize];
        }
        memory[i as usize] = vector;
    }

    let mut keys =
        SharedMemory::<Vector<f32, N>>::new(comptime!(2 * shape.stage_vectors() as usize));
    let mut values = SharedMemory::<f32>::new(comptime!((2 * STAGE * shape.columns) as usize));
    let mut gates = SharedMemory::<f32>::new(comptime!(4 * STAGE as usize));
    let mut coming = Array::<Vector<f32, N>>::new(comptime!(shape.key_loads() as usize));
    let mut coming_values = Array::<f32>::new(comptime!(shape.value_loads() as usize));
    let mut coming_gate = 0.0f32;
    let gate_token = min(unit / 2u32, comptime!(STAGE - 1).runtime());
    let mut own_keys = Array::<Vector<f32, N>>::new(comptime!(owned as usize));

    let stages = tokens.div_ceil(STAGE);
    // One turn more than there are stages: the first only loads.
    for turn in 0..stages + 1u32 {
        let first = turn * STAGE;
        if turn < stages {
            load_keys(mixed, &mut coming, first, last_token, head, base, shape);
            #[unroll]
            for i in 0..comptime!(shape.value_loads()) {
                let number = min(comptime!(i * shape.units()) + unit, stage_values - 1u32);
                coming_values[i as usize] = load_value(
                    mixed,
                    number,
                    first,
                    last_token,
                    head,
                    first_column,
                    base,
                    shape,
                );
            }
            coming_gate = load_gate(
                rows,
                unit % 2u32,
                min(first + gate_token, last_token),
                head,
                row_base,
                row_token,
                decay,
                bias,
                shape,
            );
        }
        if turn > 0u32 {
            let before = first - STAGE;
            let buffer = (turn - 1u32) % 2u32;
            for token in 0..min(comptime!(STAGE).runtime(), tokens - before) {
                let q_at = buffer * stage_vectors + token * comptime!(2 * vectors) + part;
                let gate_at = buffer * comptime!(2 * STAGE) + token * 2u32;
                let forget = gates[gate_at as usize];
                let learn = gates[(gate_at + 1u32) as usize];
                let value = values[(buffer * stage_values + token * columns + own) as usize];
                let mut by_k = Vector::<f32, N>::new(0.0f32);
                let mut by_q = Vector::<f32, N>::new(0.0f32);
                let mut both = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for i in 0..owned {
                    let at = q_at + comptime!(i * shape.parts);
                    let q = keys[at as usize];
                    let k = keys[(at + vectors) as usize];
                    own_keys[i as usize] = k;
                    by_k += memory[i as usize] * k;
                    by_q += memory[i as usize] * q;
                    both += k * q;
                }
                let mut by_k = (by_k[0] + by_k[1]) + (by_k[2] + by_k[3]);
                let mut by_q = (by_q[0] + by_q[1]) + (by_q[2] + by_q[3]);
                let mut both = (both[0] + both[1]) + (both[2] + both[3]);
                if comptime!(shape.parts > 1) {
                    by_k += plane_shuffle_xor(by_k, 1u32);
                    by_q += plane_shuffle_xor(by_q, 1u32);
                    both += plane_shuffle_xor(both, 1u32);
                    by_k += plane_shuffle_xor(by_k, 2u32);
                    by_q += plane_shuffle_xor(by_q, 2u32);
                    both += plane_shuffle_xor(both, 2u32);
                }
                let change = learn * (value - forget * by_k);
                let forget_all = Vector::<f32, N>::new(forget);
                let change_all = Vector::<f32, N>::new(change);
                #[unroll]
                for i in 0..owned {
                    memory[i as usize] =
                        memory[i as usize] * forget_all + own_keys[i as usize] * change_all;
                }
                if valid && part == 0u32 {
                    let at = ((sequence * tokens + before + token) * comptime!(shape.v_heads)
                        + head)
                        * v_dim;
                    read[(at + column) as usize] = forget * by_q + both * change;
                }
            }
        }
        if turn < stages {
            let buffer = turn % 2u32;
            #[unroll]
            for i in 0..comptime!(shape.key_loads()) {
                let number = min(comptime!(i * shape.units()) + unit, stage_vectors - 1u32);
                keys[(buffer * stage_vectors + number) as usize] = coming[i as usize];
            }
            #[unroll]
            for i in 0..comptime!(shape.value_loads()) {
                let number = min(comptime!(i * shape.units()) + unit, stage_values - 1u32);
                values[(buffer * stage_values + number) as usize] = coming_values[i as usize];
            }
            if unit < comptime!(2 * STAGE) {
                gates[(buffer * comptime!(2 * STAGE) + unit) as usize] = coming_gate;
            }
        }
        sync_cube();
    }

    if valid {
        #[unroll]
        for i in 0..owned {
            let row = (comptime!(i * shape.parts) + part) * LANES;
            let vector = memory[i as usize];
            #[unroll]
            for lane in 0..LANES {
                new_state[(state_base + (row + lane) * v_dim + column) as usize] =
                    vector[lane as usize];
            }
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
    let square = sum_of_units(x * x, &mut shared, v_dim, comptime!(shape.plane));
    let factor = (square / comptime!(v_dim as f32).runtime() + epsilon).inverse_sqrt();
    let z = sequence * row_batch
        + token * row_token
        + comptime!(shape.channels())
        + head * v_dim
        + UNIT_POS;
    let z = f32::cast_from(rows[z as usize]);
    out[at as usize] = F::cast_from(x * factor * norm[UNIT_POS as usize] * z * sigmoid(z));
}
