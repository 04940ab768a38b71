//! What is computed for one token, by the kernels for many tokens as by the one for a single token.
//!
//! Results of a token have the same bits in all of them. So sums have the same order everywhere, and products are
//! added by `fma`: compilers contract other products and sums in one kernel and not in another.

use super::walk::Shape;
use crate::Delta;
use crate::cube::unit::sigmoid;
use ::cubecl::prelude::*;

/// The head of q and k that serves head `head` of v.
#[cube]
pub(super) fn k_head_of(head: u32, #[comptime] shape: Shape) -> u32 {
    if comptime!(shape.tiled) {
        head % comptime!(shape.k_heads)
    } else {
        head / comptime!(shape.v_heads / shape.k_heads)
    }
}

/// The convolution of a channel at a token, and its silu.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn convolved<F: Float>(
    rows: &Array<F>,
    convolution: &Array<f32>,
    last: &Array<F>,
    channel: u32,
    token: u32,
    sequence: u32,
    row_batch: u32,
    row_token: u32,
    #[comptime] shape: Shape,
) -> f32 {
    let taps = comptime!(shape.taps);
    let channels = comptime!(shape.channels());
    let before = comptime!(shape.taps - 1);
    let mut sum = 0.0f32;
    #[unroll]
    for tap in 0..taps {
        // The tap's token plus `taps - 1`, which is never negative.
        let ahead = token + tap;
        let weight = convolution[(tap * channels + channel) as usize];
        if ahead >= before {
            let at = sequence * row_batch + (ahead - before) * row_token + channel;
            sum = fma(weight, f32::cast_from(rows[at as usize]), sum);
        } else {
            let at = (sequence * before + ahead) * channels + channel;
            sum = fma(weight, f32::cast_from(last[at as usize]), sum);
        }
    }
    sum * sigmoid(sum)
}

/// Writes a channel of the rows from which the next call starts: the last `taps - 1`, which may include rows of
/// earlier calls.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn keep<F: Float>(
    rows: &Array<F>,
    last: &Array<F>,
    kept: &mut Array<F>,
    channel: u32,
    tokens: u32,
    sequence: u32,
    row_batch: u32,
    row_token: u32,
    #[comptime] shape: Shape,
) {
    let channels = comptime!(shape.channels());
    let before = comptime!(shape.taps - 1);
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

/// The square of a number that will be added to others.
#[cube]
pub(super) fn squared(x: f32) -> f32 {
    fma(x, x, 0.0f32.runtime())
}

/// An element of a head of q or k with this sum of squares, in a head of length 1; that of q is multiplied by
/// `1 / sqrt(Dk)`.
#[cube]
pub(super) fn normalised(value: f32, square: f32, of_q: bool, #[comptime] shape: Shape) -> f32 {
    let factor = (square + comptime!(Delta::LENGTH_EPSILON).runtime()).inverse_sqrt();
    let value = value * factor;
    let scale = comptime!(1.0 / (shape.k_dim as f32).sqrt()).runtime();
    select(of_q, value * scale, value)
}

/// One of the two gates of a token, whose row of projections starts at element `row`: for `which` 0 the factor by
/// which the state decays, for 1 beta, the factor on the update.
#[cube]
pub(super) fn gate<F: Float>(
    rows: &Array<F>,
    which: u32,
    row: u32,
    head: u32,
    decay: f32,
    bias: f32,
    #[comptime] shape: Shape,
) -> f32 {
    let gates = row + comptime!(shape.channels() + shape.v_heads * shape.v_dim) + head;
    let a = f32::cast_from(rows[(gates + comptime!(shape.v_heads)) as usize]) + bias;
    let step = select(a < 20.0f32, (1.0f32 + a.exp()).ln(), a);
    let b = f32::cast_from(rows[gates as usize]);
    select(which == 0u32, (decay * step).exp(), sigmoid(b))
}

/// What the token's key is given in a column, of which it reads `by_k` before the decay.
#[cube]
pub(super) fn change_of(value: f32, by_k: f32, forget: f32, learn: f32) -> f32 {
    learn * fma(-forget, by_k, value)
}

/// What the query reads of a column: `by_q` before the decay and the change; `both` is `q . k`.
#[cube]
pub(super) fn read_of(by_q: f32, both: f32, forget: f32, change: f32) -> f32 {
    fma(both, change, forget * by_q)
}

/// Elements of the state after the token.
#[cube]
pub(super) fn updated<N: Size>(
    memory: Vector<f32, N>,
    forget: Vector<f32, N>,
    key: Vector<f32, N>,
    change: Vector<f32, N>,
) -> Vector<f32, N> {
    fma(key, change, memory * forget)
}

/// An element of the result: the norm of a head with this sum of squares, times its gate z.
#[cube]
pub(super) fn gated(
    x: f32,
    square: f32,
    weight: f32,
    z: f32,
    epsilon: f32,
    #[comptime] shape: Shape,
) -> f32 {
    let mean = square / comptime!(shape.v_dim as f32).runtime();
    let factor = (mean + epsilon).inverse_sqrt();
    x * factor * weight * z * sigmoid(z)
}
