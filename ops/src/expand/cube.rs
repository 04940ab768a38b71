//! Heads of expanded latent attention on devices.

use super::{Expand, Rotate};
use crate::cube::join::{Part, Turn, join};
use crate::cube::launch::{empty, view};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::{into_contiguous, slice};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::{Device, Launches};

/// Kernels on NVIDIA devices read vectors from addresses that this divides, in bytes.
const ALIGNED: usize = 16;

pub(crate) fn rotated<R: CubeRuntime, F: FloatElement>(
    op: &Rotate,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let mut next = || inputs.next().expect("the inputs were counted");
    let q = next();
    let table = match op.rotated {
        0 => empty(&q, [1], DType::F32),
        _ => next(),
    };
    let (batch, tokens, row) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    let part = |first, length| Part {
        tensor: &q,
        first: op.start + first,
        steps: [tokens * row, op.head(), row],
        length,
    };
    let turn = Turn {
        table: &table,
        rotated: op.rotated,
        interleaved: op.interleaved,
    };
    let parts = [part(0, op.nope), part(op.nope, op.rest)];
    vec![join::<R, F>([batch, op.heads, tokens], parts, &turn)]
}

pub(crate) fn expand<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Expand,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let mut next = || inputs.next().expect("the inputs were counted");
    let (rows, latents) = (next(), next());
    let (batch, tokens, row) = (rows.shape()[0], rows.shape()[1], rows.shape()[2]);
    let width = op.rank + op.rest;
    let parts = [
        Part {
            tensor: &rows,
            first: 0,
            steps: [tokens * row, op.head(), row],
            length: op.nope,
        },
        Part {
            tensor: &latents,
            first: op.rank,
            steps: [tokens * width, 0, width],
            length: op.rest,
        },
    ];
    let none = empty(&rows, [1], DType::F32);
    let turn = Turn {
        table: &none,
        rotated: 0,
        interleaved: false,
    };
    let k = join::<R, F>([batch, op.heads, tokens], parts, &turn);
    vec![k, values(op, rows)]
}

/// The values within the rows, [B, heads, T, v]: in place where kernels read from any address that vectors
/// may have, else copied if the device cannot bind memory from there on.
fn values<R: CubeRuntime + Launches>(op: &Expand, rows: CubeTensor<R>) -> CubeTensor<R> {
    let (batch, tokens, row) = (rows.shape()[0], rows.shape()[1], rows.shape()[2]);
    let of_heads = |length| {
        let shape = vec![batch, tokens, op.heads, length];
        view(&rows, shape, vec![tokens * row, row, op.head(), 1])
    };
    let bytes = op.nope * rows.dtype.size();
    let mut v = match R::device(&rows.client) {
        Device::Cuda if bytes.is_multiple_of(ALIGNED) => {
            let mut v = of_heads(op.v);
            v.handle = v.handle.clone().offset_start(bytes as u64);
            v
        }
        Device::Cuda | Device::Vulkan | Device::Webgpu => {
            let end = op.head();
            slice(
                of_heads(end),
                &[0..batch, 0..tokens, 0..op.heads, op.nope..end],
            )
        }
    };
    v.meta.swap(1, 2);
    v
}
