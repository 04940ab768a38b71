//! From projections to heads: norm, rotation and append to the cache, in one kernel.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use crate::Append;
use crate::cube::launch::{array, dense_rows, empty, owned, plane};
use crate::cube::unit::sum_of_units;
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units that share a head.
const UNITS: u32 = 64;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    q_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    q_step: u32,
    starts: [u32; 3],
    norm: bool,
    rotated: u32,
    interleaved: bool,
    lagging: bool,
    plane: u32,
}

pub(crate) fn append<R: CubeRuntime, F: FloatElement>(
    op: &Append,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let rows = [next(), next(), next()].map(dense_rows);
    // The caches are updated in place, unless another tensor still shares their memory.
    let caches = [next(), next()].map(owned);
    let none = || empty(&rows[0], [1], DType::F32);
    let norms = match op.norm {
        Some(_) => [next(), next()].map(into_contiguous),
        None => [none(), none()],
    };
    let rotation = match op.rotated {
        0 => none(),
        _ => into_contiguous(next()),
    };
    let lags = match op.lagging {
        true => into_contiguous(next()),
        false => empty(&rows[0], [1], DType::I32),
    };
    let shape = rows[0].shape();
    let (batch, tokens) = (shape[0], shape[1]);
    let room = caches[0].shape()[2];
    let q = empty(
        &rows[0],
        [batch, op.q_heads, tokens, op.head_dim],
        F::dtype(),
    );
    let shape = Shape {
        q_heads: op.q_heads as u32,
        kv_heads: op.kv_heads as u32,
        head_dim: op.head_dim as u32,
        q_step: op.q_step as u32,
        starts: op.starts.map(|n| n as u32),
        norm: op.norm.is_some(),
        rotated: op.rotated as u32,
        interleaved: op.interleaved,
        lagging: op.lagging,
        plane: plane(&rows[0].client),
    };
    let heads = shape.q_heads + 2 * shape.kv_heads;
    let strides = rows.each_ref().map(|x| {
        let strides = x.meta.strides();
        [strides[0] as u32, strides[1] as u32]
    });
    if batch * tokens > 0 {
        // SAFETY: the shapes were checked; tokens, heads and sequences are those of the grid.
        unsafe {
            heads_kernel::launch_unchecked::<F, R>(
                &q.client,
                CubeCount::Static(tokens as u32, heads, batch as u32),
                CubeDim::new_1d(UNITS),
                AddressType::from_len(caches[0].meta.num_elements()),
                array(&rows[0]),
                array(&rows[1]),
                array(&rows[2]),
                array(&norms[0]),
                array(&norms[1]),
                array(&rotation),
                array(&lags),
                array(&q),
                array(&caches[0]),
                array(&caches[1]),
                strides[0][0],
                strides[0][1],
                strides[1][0],
                strides[1][1],
                strides[2][0],
                strides[2][1],
                tokens as u32,
                room as u32,
                op.position as u32,
                op.norm.unwrap_or(0.0),
                shape,
            );
        }
    }
    let [k, v] = caches;
    vec![q, k, v]
}

/// Element `at` of a head, normalised and weighted if `normed`.
#[cube]
fn scaled<F: Float>(
    rows: &Array<F>,
    norm: &Array<f32>,
    start: u32,
    at: u32,
    factor: f32,
    #[comptime] normed: bool,
) -> f32 {
    let mut x = f32::cast_from(rows[(start + at) as usize]);
    if normed {
        x = x * factor * norm[at as usize];
    }
    x
}

/// Writes one head of one token, after its norm and the rotation in row `turn` of the table.
#[cube]
#[allow(clippy::too_many_arguments, clippy::manual_is_multiple_of)] // Kernels have no methods.
fn write_head<F: Float>(
    rows: &Array<F>,
    norm: &Array<f32>,
    rotation: &Array<f32>,
    out: &mut Array<F>,
    shared: &mut SharedMemory<f32>,
    start: u32,
    to: usize,
    turn: u32,
    epsilon: f32,
    #[comptime] head_dim: u32,
    #[comptime] normed: bool,
    #[comptime] rotated: u32,
    #[comptime] interleaved: bool,
    #[comptime] plane: u32,
) {
    let mut factor = 1.0f32;
    if normed {
        let mut square = 0.0f32;
        let mut at = UNIT_POS;
        while at < head_dim {
            let x = f32::cast_from(rows[(start + at) as usize]);
            square += x * x;
            at += UNITS;
        }
        let sum = sum_of_units(square, shared, UNITS, plane);
        factor = (sum / comptime!(head_dim as f32).runtime() + epsilon).inverse_sqrt();
    }
    let half = comptime!(rotated / 2).runtime();
    let mut at = UNIT_POS;
    while at < head_dim {
        let mut x = scaled(rows, norm, start, at, factor, normed);
        if at < rotated {
            // From the first element of a pair to the second, and the number of the pair.
            let mut step = half;
            let mut pair = at % half;
            let mut first = at < half;
            if interleaved {
                step = 1u32;
                pair = at / 2u32;
                first = at % 2u32 == 0u32;
            }
            let cosine = rotation[(turn * rotated + pair) as usize];
            let sine = rotation[(turn * rotated + half + pair) as usize];
            if first {
                x = x * cosine - scaled(rows, norm, start, at + step, factor, normed) * sine;
            } else {
                x = x * cosine + scaled(rows, norm, start, at - step, factor, normed) * sine;
            }
        }
        out[to + at as usize] = F::cast_from(x);
        at += UNITS;
    }
}

/// A workgroup computes one head of one token. Rows are indexed with 32 bits, q and the caches with
/// 32 or 64, depending on the size of the caches.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn heads_kernel<F: Float>(
    q_rows: &Array<F>,
    k_rows: &Array<F>,
    v_rows: &Array<F>,
    q_norm: &Array<f32>,
    k_norm: &Array<f32>,
    rotation: &Array<f32>,
    lags: &Array<i32>,
    q: &mut Array<F>,
    k: &mut Array<F>,
    v: &mut Array<F>,
    q_batch: u32,
    q_token: u32,
    k_batch: u32,
    k_token: u32,
    v_batch: u32,
    v_token: u32,
    tokens: u32,
    room: u32,
    position: u32,
    epsilon: f32,
    #[comptime] shape: Shape,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let (token, head, sequence) = (CUBE_POS_X, CUBE_POS_Y, CUBE_POS_Z);
    let d = comptime!(shape.head_dim);
    let hq = comptime!(shape.q_heads);
    let hkv = comptime!(shape.kv_heads);
    let mut position = position;
    let mut turn = token;
    if comptime!(shape.lagging) {
        position -= min(position, u32::cast_from(max(lags[sequence as usize], 0i32)));
        turn += sequence * tokens;
    }
    if head < hq {
        let start = sequence * q_batch
            + token * q_token
            + head * comptime!(shape.q_step)
            + comptime!(shape.starts[0]);
        let to = ((sequence * hq + head) * tokens + token) as usize * d as usize;
        write_head(
            q_rows,
            q_norm,
            rotation,
            q,
            &mut shared,
            start,
            to,
            turn,
            epsilon,
            d,
            comptime!(shape.norm),
            comptime!(shape.rotated),
            comptime!(shape.interleaved),
            comptime!(shape.plane),
        );
    } else {
        let head = head - hq;
        let of_kind = head % hkv;
        let cache = (sequence * hkv + of_kind) as usize * room as usize;
        let to = (cache + (position + token) as usize) * d as usize;
        if head < hkv {
            let start =
                sequence * k_batch + token * k_token + of_kind * d + comptime!(shape.starts[1]);
            write_head(
                k_rows,
                k_norm,
                rotation,
                k,
                &mut shared,
                start,
                to,
                turn,
                epsilon,
                d,
                comptime!(shape.norm),
                comptime!(shape.rotated),
                comptime!(shape.interleaved),
                comptime!(shape.plane),
            );
        } else {
            let start =
                sequence * v_batch + token * v_token + of_kind * d + comptime!(shape.starts[2]);
            write_head(
                v_rows,
                k_norm,
                rotation,
                v,
                &mut shared,
                start,
                to,
                turn,
                epsilon,
                d,
                false,
                0u32,
                false,
                0u32,
            );
        }
    }
}
