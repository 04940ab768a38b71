//! Heads of expanded latent attention on devices.

use super::{Expand, Rotate};
use crate::cube::join::{Part, Place, Turn, join, place, write};
use crate::cube::launch::{empty, view};
use crate::linear::cube::dense;
use crate::linear::hopper::{self, Matrix, To};
use crate::{OperationError, Up};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::{into_contiguous, slice};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;
use std::ops::Range;

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
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let mut next = || inputs.next().expect("the inputs were counted");
    let (latents, weight) = (next(), next());
    let (batch, room) = (latents.shape()[0], latents.shape()[1]);
    let Up { heads, nope, v, .. } = op.up;
    let k = empty(&latents, [batch, heads, room, nope + op.rest], F::dtype());
    let v = empty(&latents, [batch, heads, room, v], F::dtype());
    if op.tokens > 0 && !by_matrix_units::<R, F>(op, [&latents, &weight], [&k, &v])? {
        for sequence in 0..batch {
            for first in (0..op.tokens).step_by(PANEL) {
                let tokens = first..op.tokens.min(first + PANEL);
                panel::<R, F>(op, [&latents, &weight], [&k, &v], (sequence, tokens))?;
            }
        }
    }
    Ok(vec![k, v])
}

/// Tokens whose keys and values are made at once where they are not made in place.
const PANEL: usize = 2048;

/// By Hopper's matrix units, which write where keys and values belong, two launches for each sequence; false if the device
/// has none, or they do not take the shape.
fn by_matrix_units<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Expand,
    [latents, weight]: [&CubeTensor<R>; 2],
    [k, v]: [&CubeTensor<R>; 2],
) -> Result<bool, OperationError> {
    let [batch, room, width] = latents.meta.shape().dims();
    let Up {
        heads, nope, rank, ..
    } = op.up;
    for sequence in 0..batch {
        for (out, rows) in [(k, 0..nope), (v, nope..op.up.of_head())] {
            let x = Matrix {
                tensor: latents,
                first: sequence * room * width,
                step: width,
                // All heads read the same rows.
                apart: 0,
            };
            let matrix = Matrix {
                tensor: weight,
                first: rows.start * rank,
                step: rank,
                apart: op.up.of_head() * rank,
            };
            let step = out.shape()[3];
            let to = To {
                first: sequence * heads * room * step,
                step,
                apart: room * step,
                count: heads,
            };
            let shape = [op.tokens, rows.len(), rank];
            let y = || out.clone();
            if hopper::multiply_each::<R, F>([x, matrix], shape, to, &op.products, y)?.is_none() {
                return Ok(false);
            }
        }
    }
    let all = (0, 0..op.tokens);
    let counts = [batch, heads, op.tokens];
    place::<R, F>(
        &within(k, counts, &all, nope),
        shared(op, latents, &all),
        &no_turn(latents),
    );
    Ok(true)
}

/// Keys and values of some tokens of a sequence, from their products with the whole weight.
fn panel<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Expand,
    [latents, weight]: [&CubeTensor<R>; 2],
    [k, v]: [&CubeTensor<R>; 2],
    at: (usize, Range<usize>),
) -> Result<(), OperationError> {
    let [batch, room, width] = latents.meta.shape().dims();
    let Up {
        heads,
        nope,
        v: of_value,
        rank,
    } = op.up;
    let (sequence, tokens) = &at;
    let first = sequence * room;
    let all = view(latents, vec![batch * room, width], vec![width, 1]);
    let x = slice(all, &[first + tokens.start..first + tokens.end, 0..rank]);
    let rows = dense::<R, F>(&into_contiguous(x), weight, &op.products)?;
    let row = op.up.rows();
    let made = |first, length| Part {
        tensor: &rows,
        first,
        steps: [0, op.up.of_head(), row],
        length,
    };
    let counts = [1, heads, tokens.len()];
    let turn = no_turn(latents);
    let parts = [made(0, nope), shared(op, latents, &at)];
    write::<R, F>(&within(k, counts, &at, 0), parts, &turn);
    place::<R, F>(&within(v, counts, &at, 0), made(nope, of_value), &turn);
    Ok(())
}

/// The elements from `first` on of the vectors in keys or values [B, heads, room, D].
fn within<'a, R: CubeRuntime>(
    tensor: &'a CubeTensor<R>,
    counts: [usize; 3],
    (sequence, tokens): &(usize, Range<usize>),
    first: usize,
) -> Place<'a, R> {
    let [_, heads, room, d] = tensor.meta.shape().dims();
    Place {
        tensor,
        counts,
        first: sequence * heads * room * d + tokens.start * d + first,
        steps: [heads * room * d, room * d, d],
    }
}

/// What all heads share of the keys of tokens.
fn shared<'a, R: CubeRuntime>(
    op: &Expand,
    latents: &'a CubeTensor<R>,
    (sequence, tokens): &(usize, Range<usize>),
) -> Part<'a, R> {
    let [_, room, width] = latents.meta.shape().dims();
    Part {
        tensor: latents,
        first: (sequence * room + tokens.start) * width + op.up.rank,
        steps: [room * width, 0, width],
        length: op.rest,
    }
}

/// What the cache holds is rotated already; any tensor that is only read stands for the table.
fn no_turn<R: CubeRuntime>(table: &CubeTensor<R>) -> Turn<'_, R> {
    Turn {
        table,
        rotated: 0,
        interleaved: false,
    }
}
