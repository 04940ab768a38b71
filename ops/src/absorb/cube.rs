//! Products with a matrix of each head on devices.
//!
//! Many rows go through the generated kernel with Hopper's matrix instructions, one launch for all heads of a sequence,
//! which reads and writes them where they lie; else through Burn's batched product, the batch being the heads. On NVIDIA devices,
//! other kernels multiply a few rows.

mod few;

use super::{Absorb, Unabsorb, Up};
use crate::OperationError;
use crate::cube::join::{Part, Place, Turn, join, place};
use crate::cube::launch::{empty, view};
use crate::linear::cube::batched;
use crate::linear::hopper::{self, Matrix, To};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::{cast, into_contiguous, slice};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

pub(crate) fn absorb<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Absorb,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
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
    let shape = [batch, up.heads, tokens, up.rank + op.rest];
    if rows == 0 {
        return Ok(vec![empty(&q, shape, F::dtype())]);
    }
    if few::takes::<R, F>(up, rows, &weight) {
        return Ok(vec![few::absorb::<R, F>(op, [&q, &weight, &rotation])]);
    }
    let turn = Turn {
        table: &rotation,
        rotated: op.rotated,
        interleaved: op.interleaved,
    };
    let rest = Part {
        tensor: &q,
        first: op.start + up.nope,
        steps: [tokens * row, op.head(), row],
        length: op.rest,
    };
    let k = matrices(weight, up, 0..up.nope);
    if let Some(out) = absorbed::<R, F>(op, &q, &k)? {
        let width = up.rank + op.rest;
        let behind = Place {
            tensor: &out,
            counts: [batch, up.heads, tokens],
            first: up.rank,
            steps: [up.heads * tokens * width, tokens * width, width],
        };
        place::<R, F>(&behind, rest, &turn);
        return Ok(vec![out]);
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
    let y = batched(x, converted(k, F::dtype()));
    let absorbed = Part {
        tensor: &y,
        first: 0,
        steps: [tokens * up.rank, rows * up.rank, up.rank],
        length: up.rank,
    };
    let parts = [absorbed, rest];
    Ok(vec![join::<R, F>([batch, up.heads, tokens], parts, &turn)])
}

/// q [B, heads, T, rank + rest], of whose vectors the first elements are written, by Hopper's matrix units, a launch for
/// each sequence; `None` if the device has none, or they do not take the shape.
fn absorbed<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Absorb,
    q: &CubeTensor<R>,
    k: &CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    if hopper::element::<R, F>(&q.client)?.is_none() {
        return Ok(None);
    }
    let [batch, tokens, row] = q.meta.shape().dims();
    let (up, heads, width) = (op.up, op.up.heads, op.up.rank + op.rest);
    let out = empty(q, [batch, heads, tokens, width], F::dtype());
    // The kernel reads the rows of its second factor.
    let mut of_rank = k.clone();
    of_rank.meta.swap(1, 2);
    let of_rank = into_contiguous(of_rank);
    for sequence in 0..batch {
        let x = Matrix {
            tensor: q,
            first: sequence * tokens * row + op.start,
            step: row,
            apart: op.head(),
        };
        let weight = Matrix {
            tensor: &of_rank,
            first: 0,
            step: up.nope,
            apart: up.rank * up.nope,
        };
        let to = To {
            first: sequence * heads * tokens * width,
            step: width,
            apart: tokens * width,
            count: heads,
        };
        let shape = [tokens, up.rank, up.nope];
        let y = || out.clone();
        if hopper::multiply_each::<R, F>([x, weight], shape, to, &op.products, y)?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(out))
}

pub(crate) fn unabsorb<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Unabsorb,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let (mut o, weight) = (next(), into_contiguous(next()));
    let up = op.up;
    let (batch, tokens) = (o.shape()[0], o.shape()[2]);
    let (rows, row) = (batch * tokens, up.heads * up.v);
    let out = empty(&o, [batch, tokens, row], F::dtype());
    if rows == 0 {
        return Ok(vec![out]);
    }
    // As attention writes it, o lies in memory as [B, T, heads, rank].
    o.meta.swap(1, 2);
    let o = into_contiguous(o);
    if few::takes::<R, F>(up, rows, &weight) {
        return Ok(vec![few::unabsorb::<R, F>(op, &o, &weight)]);
    }
    if unabsorbed::<R, F>(op, &o, &weight, &out)? {
        return Ok(vec![out]);
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
    let steps = vec![tokens * row, row, 1];
    Ok(vec![view(&y, vec![batch, tokens, row], steps)])
}

/// Writes `out` [B, T, heads * v] from contiguous o [B, T, heads, rank], as [`absorbed`] does; false if it cannot.
fn unabsorbed<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Unabsorb,
    o: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    out: &CubeTensor<R>,
) -> Result<bool, OperationError> {
    let up = op.up;
    let rows = out.shape()[0] * out.shape()[1];
    let x = Matrix {
        tensor: o,
        first: 0,
        step: up.heads * up.rank,
        apart: up.rank,
    };
    let v = Matrix {
        tensor: weight,
        first: up.nope * up.rank,
        step: up.rank,
        apart: up.of_head() * up.rank,
    };
    let to = To {
        first: 0,
        step: up.heads * up.v,
        apart: up.v,
        count: up.heads,
    };
    let shape = [rows, up.v, up.rank];
    let y = || out.clone();
    let written = hopper::multiply_each::<R, F>([x, v], shape, to, &op.products, y)?;
    Ok(written.is_some())
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
