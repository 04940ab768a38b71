//! Latents on devices: norms, rotation and append to the cache, in one kernel.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::{Latent, Latents};
use crate::cube::launch::{array, dense_rows, empty, owned, plane};
use crate::cube::unit::{sum_of_units, turned};
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units that share a vector.
const UNITS: u32 = 128;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    kv_start: u32,
    kv_rank: u32,
    rest: u32,
    rotated: u32,
    interleaved: bool,
    q_start: u32,
    q_rank: u32,
    plane: u32,
}

pub(crate) fn latents<R: CubeRuntime, F: FloatElement>(
    op: &Latents,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let rows = dense_rows(next());
    // Updated in place, unless another tensor still shares its memory.
    let cache = owned(next());
    let none = || empty(&rows, [1], DType::F32);
    let q_norm = match op.q {
        Some(_) => into_contiguous(next()),
        None => none(),
    };
    let kv_norm = into_contiguous(next());
    let rotation = match op.rotated {
        0 => none(),
        _ => into_contiguous(next()),
    };
    let (batch, tokens) = (rows.shape()[0], rows.shape()[1]);
    let room = cache.shape()[2];
    let of_q = op.q.unwrap_or(Latent {
        start: 0,
        rank: 0,
        epsilon: 0.0,
    });
    let q = match op.q {
        Some(q) => empty(&rows, [batch, tokens, q.rank], F::dtype()),
        None => empty(&rows, [1], F::dtype()),
    };
    let shape = Shape {
        kv_start: op.kv.start as u32,
        kv_rank: op.kv.rank as u32,
        rest: op.rest as u32,
        rotated: op.rotated as u32,
        interleaved: op.interleaved,
        q_start: of_q.start as u32,
        q_rank: of_q.rank as u32,
        plane: plane(&rows.client),
    };
    let strides = rows.meta.strides();
    let [of_sequence, of_token] = [strides[0] as u32, strides[1] as u32];
    if batch * tokens > 0 {
        let vectors = if op.q.is_some() { 2 } else { 1 };
        // SAFETY: the shapes were checked; tokens and sequences are those of the grid, whose second
        // dimension are the latents that there are.
        unsafe {
            latents_kernel::launch_unchecked::<F, R>(
                &rows.client,
                CubeCount::Static(tokens as u32, vectors, batch as u32),
                CubeDim::new_1d(UNITS),
                AddressType::from_len(cache.meta.num_elements()),
                array(&rows),
                array(&q_norm),
                array(&kv_norm),
                array(&rotation),
                array(&q),
                array(&cache),
                of_sequence,
                of_token,
                tokens as u32,
                room as u32,
                op.position as u32,
                of_q.epsilon,
                op.kv.epsilon,
                shape,
            );
        }
    }
    let q = op.q.map(|_| q);
    q.into_iter().chain([cache]).collect()
}

/// Writes the normalised vector of `rank` elements that begins at `start`.
#[cube]
#[allow(clippy::too_many_arguments)] // Kernels have no methods.
fn normalise<F: Float>(
    rows: &Array<F>,
    weight: &Array<f32>,
    out: &mut Array<F>,
    shared: &mut SharedMemory<f32>,
    start: u32,
    to: usize,
    epsilon: f32,
    #[comptime] rank: u32,
    #[comptime] plane: u32,
) {
    let mut square = 0.0f32;
    let mut at = UNIT_POS;
    while at < rank {
        let x = f32::cast_from(rows[(start + at) as usize]);
        square += x * x;
        at += UNITS;
    }
    let sum = sum_of_units(square, shared, UNITS, plane);
    let factor = (sum / comptime!(rank as f32).runtime() + epsilon).inverse_sqrt();
    let mut at = UNIT_POS;
    while at < rank {
        let x = f32::cast_from(rows[(start + at) as usize]);
        out[to + at as usize] = F::cast_from(x * factor * weight[at as usize]);
        at += UNITS;
    }
}

/// A workgroup computes one latent of one token. Rows are indexed with 32 bits, the cache with 32 or 64,
/// depending on its size.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn latents_kernel<F: Float>(
    rows: &Array<F>,
    q_norm: &Array<f32>,
    kv_norm: &Array<f32>,
    rotation: &Array<f32>,
    q: &mut Array<F>,
    cache: &mut Array<F>,
    of_sequence: u32,
    of_token: u32,
    tokens: u32,
    room: u32,
    position: u32,
    q_epsilon: f32,
    kv_epsilon: f32,
    #[comptime] shape: Shape,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let (token, sequence) = (CUBE_POS_X, CUBE_POS_Z);
    let row = sequence * of_sequence + token * of_token;
    let plane = comptime!(shape.plane);
    if CUBE_POS_Y == 0u32 {
        let rank = comptime!(shape.kv_rank);
        let start = row + comptime!(shape.kv_start);
        let width = comptime!(shape.kv_rank + shape.rest);
        let place = sequence as usize * room as usize + (position + token) as usize;
        let to = place * width as usize;
        normalise(
            rows,
            kv_norm,
            cache,
            &mut shared,
            start,
            to,
            kv_epsilon,
            rank,
            plane,
        );
        let rest = comptime!(shape.rest);
        let mut at = UNIT_POS;
        while at < rest {
            let x = turned(
                rows,
                rotation,
                start + rank,
                at,
                token,
                comptime!(shape.rotated),
                comptime!(shape.interleaved),
            );
            cache[to + (rank + at) as usize] = F::cast_from(x);
            at += UNITS;
        }
    } else {
        let rank = comptime!(shape.q_rank);
        let start = row + comptime!(shape.q_start);
        let to = (sequence * tokens + token) as usize * rank as usize;
        normalise(
            rows,
            q_norm,
            q,
            &mut shared,
            start,
            to,
            q_epsilon,
            rank,
            plane,
        );
    }
}
