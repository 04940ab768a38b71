//! Products with a matrix of each head on devices.
//!
//! Many rows go through Burn's batched product, the batch being the heads; the weight is read as it is, by
//! views. On NVIDIA devices, other kernels multiply a few rows.

mod few;

use super::{Absorb, Unabsorb, Up};
use crate::cube::join::{Part, Turn, join};
use crate::cube::launch::{empty, view};
use crate::linear::cube::batched;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::{cast, into_contiguous, slice};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

pub(crate) fn absorb<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Absorb,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let mut next = || inputs.next().expect("the inputs were counted");
    let (q, weight) = (next(), next());
    let rotation = match op.rotated {
        0 => empty(&q, [1], DType::F32),
        _ => next(),
    };
    let (batch, tokens, row) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    let up = op.up;
    let rows = batch * tokens;
    if rows == 0 {
        let shape = [batch, up.heads, tokens, up.rank + op.rest];
        return vec![empty(&q, shape, F::dtype())];
    }
    if few::takes::<R, F>(up, rows, &weight) {
        return vec![few::absorb::<R, F>(op, [&q, &weight, &rotation])];
    }
    let whole = view(&q, vec![rows, row], vec![row, 1]);
    let end = op.start + up.heads * op.head();
    let heads = match (op.start, end) {
        (0, end) if end == row => whole,
        (start, end) => slice(whole, &[0..rows, start..end]),
    };
    let step = heads.meta.strides()[0];
    let x = view(
        &heads,
        vec![up.heads, rows, up.nope],
        vec![op.head(), step, 1],
    );
    let k = matrices(weight, up, 0..up.nope);
    let y = batched(x, converted(k, F::dtype()));
    let parts = [
        Part {
            tensor: &y,
            first: 0,
            steps: [tokens * up.rank, rows * up.rank, up.rank],
            length: up.rank,
        },
        Part {
            tensor: &q,
            first: op.start + up.nope,
            steps: [tokens * row, op.head(), row],
            length: op.rest,
        },
    ];
    let turn = Turn {
        table: &rotation,
        rotated: op.rotated,
        interleaved: op.interleaved,
    };
    vec![join::<R, F>([batch, up.heads, tokens], parts, &turn)]
}

pub(crate) fn unabsorb<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Unabsorb,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let (mut o, weight) = (next(), into_contiguous(next()));
    let up = op.up;
    let (batch, tokens) = (o.shape()[0], o.shape()[2]);
    let rows = batch * tokens;
    if rows == 0 {
        return vec![empty(&o, [batch, tokens, up.heads * up.v], F::dtype())];
    }
    // As attention writes it, o lies in memory as [B, T, heads, rank].
    o.meta.swap(1, 2);
    let o = into_contiguous(o);
    if few::takes::<R, F>(up, rows, &weight) {
        return vec![few::unabsorb::<R, F>(op, &o, &weight)];
    }
    let x = view(
        &o,
        vec![up.heads, rows, up.rank],
        vec![up.rank, up.heads * up.rank, 1],
    );
    let mut v = converted(matrices(weight, up, up.nope..up.of_head()), F::dtype());
    v.meta.swap(1, 2);
    let mut y = batched(x, v);
    // [heads, rows, v] → [rows, heads, v].
    y.meta.swap(0, 1);
    let y = into_contiguous(y);
    let row = up.heads * up.v;
    vec![view(
        &y,
        vec![batch, tokens, row],
        vec![tokens * row, row, 1],
    )]
}

/// Some rows of each head of the weight, [heads, rows, rank].
fn matrices<R: CubeRuntime>(
    weight: CubeTensor<R>,
    up: Up,
    rows: std::ops::Range<usize>,
) -> CubeTensor<R> {
    let (of_head, rank) = (up.of_head(), up.rank);
    let all = view(
        &weight,
        vec![up.heads, of_head, rank],
        vec![of_head * rank, rank, 1],
    );
    slice(all, &[0..up.heads, rows, 0..rank])
}

/// A weight in the type of rows: checkpoints may store it in another.
fn converted<R: CubeRuntime>(weight: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    match weight.dtype == dtype {
        true => weight,
        false => cast(weight, dtype),
    }
}
