//! The gated delta rule's walk over tokens.
//!
//! Tokens are processed one after the other, so that results of this form do not depend on how a
//! prompt is cut. The columns of the state are independent of one another: a unit owns one column in
//! registers or, on devices with plane shuffles, a few neighbouring units share a few columns and
//! sum by shuffles.

use super::token::{change_of, gate, k_head_of, read_of, updated};
use ::cubecl::prelude::*;

/// Elements of a vector.
pub(super) const LANES: u32 = 4;
/// Tokens whose q, k and v are in one of the two buffers in shared memory.
const BUFFERED: u32 = 8;

/// The compile-time parameters of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) k_heads: u32,
    pub(super) v_heads: u32,
    pub(super) k_dim: u32,
    pub(super) v_dim: u32,
    pub(super) taps: u32,
    pub(super) tiled: bool,
    /// Units that share a column.
    pub(super) parts: u32,
    /// Columns that these units share.
    pub(super) each: u32,
    pub(super) columns: u32,
    pub(super) plane: u32,
}

impl Shape {
    /// Channels of the convolution.
    pub(super) fn channels(&self) -> u32 {
        2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
    }

    /// Units of a workgroup of [`walk`].
    pub(super) fn units(&self) -> u32 {
        self.columns / self.each * self.parts
    }
}

/// Vectors of q and k in one buffer.
fn buffer_vectors(shape: &Shape) -> u32 {
    BUFFERED * 2 * shape.k_dim / LANES
}

/// Bytes of shared memory of a workgroup of [`walk`], for heads of k of `k_dim` elements.
pub(super) fn shared_bytes(k_dim: usize, columns: usize) -> usize {
    let buffer = BUFFERED as usize;
    4 * (2 * buffer * 2 * k_dim + 2 * buffer * columns + 4 * buffer)
}

/// Vectors of q and k that each unit loads into a buffer.
fn key_loads(shape: &Shape) -> u32 {
    buffer_vectors(shape).div_ceil(shape.units())
}

/// Elements of v that each unit loads into a buffer.
fn value_loads(shape: &Shape) -> u32 {
    (BUFFERED * shape.columns).div_ceil(shape.units())
}

/// Sum of a vector's elements over the units that share a column.
#[cube]
fn sum_of_parts<N: Size>(x: Vector<f32, N>, #[comptime] shape: Shape) -> f32 {
    let mut sum = (x[0] + x[1]) + (x[2] + x[3]);
    #[unroll]
    for step in 0..comptime!(shape.parts.trailing_zeros()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step).runtime());
    }
    sum
}

/// Loads the vectors of q and k that the unit will store in shared memory.
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
    let k_head = k_head_of(head, shape);
    #[unroll]
    for i in 0..comptime!(key_loads(&shape)) {
        let number = min(
            comptime!(i * shape.units()) + UNIT_POS,
            comptime!(buffer_vectors(&shape) - 1).runtime(),
        );
        let token = min(first + number / comptime!(2 * vectors), last_token);
        let within = number % comptime!(2 * vectors);
        // A row holds q of all heads, then k of all heads.
        let of_k = within / vectors;
        let at = base
            + token * channels
            + of_k * comptime!(shape.k_heads * vectors)
            + k_head * vectors
            + within % vectors;
        into[i as usize] = mixed[at as usize];
    }
}

/// Loads one element of v that the unit will store in shared memory.
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

/// Walks all tokens; a workgroup owns some columns of one head's state.
///
/// While one buffer of tokens is processed, the next one is loaded.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn walk<F: Float, N: Size>(
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
    let per_buffer = comptime!(buffer_vectors(&shape));
    let stage_values = comptime!(BUFFERED * shape.columns);
    // Vectors of a column of the state that a unit owns: the units that share it take them in turn.
    let owned = comptime!(shape.k_dim / LANES / shape.parts);
    let each = comptime!(shape.each);

    let (head, sequence) = (CUBE_POS_Y, CUBE_POS_Z);
    let first_column = CUBE_POS_X * columns;
    let unit = UNIT_POS;
    let part = unit % parts;
    // First of its columns, within those of the workgroup.
    let own = unit / parts * each;
    let state_base =
        (sequence * comptime!(shape.v_heads) + head) * comptime!(shape.k_dim * shape.v_dim);
    let row_base = sequence * row_batch;
    let base = sequence * tokens * comptime!(shape.channels() / LANES);
    let decay = decays[head as usize];
    let bias = biases[head as usize];
    let last_token = tokens - 1u32;

    let mut memory = Array::<Vector<f32, N>>::new(comptime!((owned * shape.each) as usize));
    #[unroll]
    for c in 0..each {
        let column = min(first_column + own + c, v_dim - 1u32);
        #[unroll]
        for i in 0..owned {
            let row = (comptime!(i * shape.parts) + part) * LANES;
            let mut vector = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for lane in 0..LANES {
                vector[lane as usize] =
                    state[(state_base + (row + lane) * v_dim + column) as usize];
            }
            memory[comptime!((c * owned + i) as usize)] = vector;
        }
    }

    let mut keys =
        SharedMemory::<Vector<f32, N>>::new(comptime!(2 * buffer_vectors(&shape) as usize));
    let mut values = SharedMemory::<f32>::new(comptime!((2 * BUFFERED * shape.columns) as usize));
    let mut gates = SharedMemory::<f32>::new(comptime!(4 * BUFFERED as usize));
    let mut coming = Array::<Vector<f32, N>>::new(comptime!(key_loads(&shape) as usize));
    let mut coming_values = Array::<f32>::new(comptime!(value_loads(&shape) as usize));
    let mut coming_gate = 0.0f32;
    let gate_token = min(unit / 2u32, comptime!(BUFFERED - 1).runtime());
    let mut own_keys = Array::<Vector<f32, N>>::new(comptime!(owned as usize));
    let mut by_k = Array::<Vector<f32, N>>::new(comptime!(shape.each as usize));
    let mut by_q = Array::<Vector<f32, N>>::new(comptime!(shape.each as usize));

    let buffers = tokens.div_ceil(BUFFERED);
    // Each turn loads a buffer and processes the one before: the first turn only loads, the last
    // only processes.
    for turn in 0..buffers + 1u32 {
        let first = turn * BUFFERED;
        if turn < buffers {
            load_keys(mixed, &mut coming, first, last_token, head, base, shape);
            #[unroll]
            for i in 0..comptime!(value_loads(&shape)) {
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
            let token = min(first + gate_token, last_token);
            coming_gate = gate(
                rows,
                unit % 2u32,
                row_base + token * row_token,
                head,
                decay,
                bias,
                shape,
            );
        }
        if turn > 0u32 {
            let before = first - BUFFERED;
            let buffer = (turn - 1u32) % 2u32;
            for token in 0..min(comptime!(BUFFERED).runtime(), tokens - before) {
                let q_at = buffer * per_buffer + token * comptime!(2 * vectors) + part;
                let gate_at = buffer * comptime!(2 * BUFFERED) + token * 2u32;
                let forget = gates[gate_at as usize];
                let learn = gates[(gate_at + 1u32) as usize];
                #[unroll]
                for c in 0..each {
                    by_k[c as usize] = Vector::<f32, N>::new(0.0f32);
                    by_q[c as usize] = Vector::<f32, N>::new(0.0f32);
                }
                let mut both = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for i in 0..owned {
                    let at = q_at + comptime!(i * shape.parts);
                    let q = keys[at as usize];
                    let k = keys[(at + vectors) as usize];
                    own_keys[i as usize] = k;
                    both = fma(k, q, both);
                    #[unroll]
                    for c in 0..each {
                        let row = memory[comptime!((c * owned + i) as usize)];
                        by_k[c as usize] = fma(row, k, by_k[c as usize]);
                        by_q[c as usize] = fma(row, q, by_q[c as usize]);
                    }
                }
                let both = sum_of_parts(both, shape);
                let forget_all = Vector::<f32, N>::new(forget);
                #[unroll]
                for c in 0..each {
                    let by_k = sum_of_parts(by_k[c as usize], shape);
                    let by_q = sum_of_parts(by_q[c as usize], shape);
                    let value =
                        values[(buffer * stage_values + token * columns + own + c) as usize];
                    let change = change_of(value, by_k, forget, learn);
                    let change_all = Vector::<f32, N>::new(change);
                    #[unroll]
                    for i in 0..owned {
                        let at = comptime!((c * owned + i) as usize);
                        memory[at] =
                            updated(memory[at], forget_all, own_keys[i as usize], change_all);
                    }
                    let column = first_column + own + c;
                    if column < v_dim && part == 0u32 {
                        let row = sequence * tokens + before + token;
                        let to = (row * comptime!(shape.v_heads) + head) * v_dim + column;
                        read[to as usize] = read_of(by_q, both, forget, change);
                    }
                }
            }
        }
        if turn < buffers {
            let buffer = turn % 2u32;
            #[unroll]
            for i in 0..comptime!(key_loads(&shape)) {
                let number = min(comptime!(i * shape.units()) + unit, per_buffer - 1u32);
                keys[(buffer * per_buffer + number) as usize] = coming[i as usize];
            }
            #[unroll]
            for i in 0..comptime!(value_loads(&shape)) {
                let number = min(comptime!(i * shape.units()) + unit, stage_values - 1u32);
                values[(buffer * stage_values + number) as usize] = coming_values[i as usize];
            }
            if unit < comptime!(2 * BUFFERED) {
                gates[(buffer * comptime!(2 * BUFFERED) + unit) as usize] = coming_gate;
            }
        }
        sync_cube();
    }

    #[unroll]
    for c in 0..each {
        let column = first_column + own + c;
        if column < v_dim {
            #[unroll]
            for i in 0..owned {
                let row = (comptime!(i * shape.parts) + part) * LANES;
                let vector = memory[comptime!((c * owned + i) as usize)];
                #[unroll]
                for lane in 0..LANES {
                    let to = state_base + (row + lane) * v_dim + column;
                    new_state[to as usize] = vector[lane as usize];
                }
            }
        }
    }
}
