//! Products with a matrix of each head on the host.
//!
//! Threads share the heads, whose matrices are widened to f32 once for all rows.

use super::{Absorb, Unabsorb, Up};
use crate::flex::elements::{Stored, elements, floats, rounded};
use crate::latents::flex::rotate;
use crate::linear::flex::Bytes;
use crate::linear::rows::Rows;
use crate::linear::storage::{Part, Storage};
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use gemm::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

pub(crate) fn absorb<E: Stored>(op: &Absorb, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let shape = inputs[0].shape();
    let (batch, tokens, row) = (shape[0], shape[1], shape[2]);
    let (up, width) = (op.up, op.up.rank + op.rest);
    let given = elements::<E>(&inputs[0]);
    let x = floats(&given);
    let bytes = Bytes::of(&inputs[1..2]);
    let weight = weight(&bytes, &inputs[1], up);
    let rotation = (op.rotated > 0).then(|| elements::<f32>(&inputs[2]));
    let mut out = vec![0.0; batch * up.heads * tokens * width];
    // The queries of one head of one sequence.
    let of_head = |(i, out): (usize, &mut [f32])| {
        let (sequence, head) = (i / up.heads, i % up.heads);
        let first = sequence * tokens * row + op.start + head * op.head();
        let first_row = head * up.of_head();
        let k = matrix(&weight, first_row..first_row + up.nope, up.rank);
        let from = Rectangle {
            values: &x[first..],
            rows: tokens,
            step: row,
        };
        multiply(
            from,
            &k,
            [up.nope, up.rank],
            [up.rank, 1],
            (&mut *out, width),
        );
        for (token, out) in out.chunks_exact_mut(width).enumerate() {
            let rest = &mut out[up.rank..];
            rest.copy_from_slice(&x[first + token * row + up.nope..][..op.rest]);
            if let Some(rotation) = &rotation {
                let table = &rotation[token * op.rotated..][..op.rotated];
                rotate(&mut rest[..op.rotated], table, op.interleaved);
            }
        }
    };
    if tokens > 0 {
        out.par_chunks_mut(tokens * width)
            .enumerate()
            .for_each(of_head);
    }
    vec![rounded::<E>(out, [batch, up.heads, tokens, width])]
}

pub(crate) fn unabsorb<E: Stored>(op: &Unabsorb, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let shape = inputs[0].shape();
    let (batch, tokens) = (shape[0], shape[2]);
    let up = op.up;
    let given = elements::<E>(&inputs[0]);
    let o = floats(&given);
    let bytes = Bytes::of(&inputs[1..2]);
    let weight = weight(&bytes, &inputs[1], up);
    // [B, heads] blocks of [T, v].
    let mut heads = vec![0.0; batch * up.heads * tokens * up.v];
    let of_head = |(i, out): (usize, &mut [f32])| {
        let first_row = i % up.heads * up.of_head() + up.nope;
        let v = matrix(&weight, first_row..first_row + up.v, up.rank);
        let from = Rectangle {
            values: &o[i * tokens * up.rank..],
            rows: tokens,
            step: up.rank,
        };
        multiply(from, &v, [up.rank, up.v], [1, up.rank], (out, up.v));
    };
    if tokens > 0 {
        heads
            .par_chunks_mut(tokens * up.v)
            .enumerate()
            .for_each(of_head);
    }
    let mut out = Vec::with_capacity(heads.len());
    for (sequence, token) in (0..batch).flat_map(|b| (0..tokens).map(move |t| (b, t))) {
        for head in 0..up.heads {
            let at = ((sequence * up.heads + head) * tokens + token) * up.v;
            out.extend_from_slice(&heads[at..at + up.v]);
        }
    }
    vec![rounded::<E>(out, [batch, tokens, up.heads * up.v])]
}

pub(crate) fn weight<'a>(bytes: &'a Bytes<'_>, tensor: &FlexTensor, up: Up) -> Rows<'a> {
    let part = Part {
        storage: Storage::Dense(tensor.dtype()),
        rows: up.rows(),
    };
    bytes.rows(part, up.rank)
}

/// Some rows of a weight in f32.
pub(crate) fn matrix(weight: &Rows<'_>, rows: Range<usize>, rank: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() * rank];
    weight.unpack_rows(rows, &mut out);
    out
}

/// Rows of a matrix, `step` elements apart.
pub(crate) struct Rectangle<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) step: usize,
}

/// The first `k` elements of each row times a matrix [k, n] whose rows and columns are `steps` apart, to
/// the first `n` elements of rows of `width`.
pub(crate) fn multiply(
    x: Rectangle<'_>,
    matrix: &[f32],
    [k, n]: [usize; 2],
    steps: [usize; 2],
    (out, width): (&mut [f32], usize),
) {
    assert!(x.rows > 0 && k > 0 && n > 0 && n <= width && k <= x.step);
    assert!(x.values.len() >= (x.rows - 1) * x.step + k);
    assert!(out.len() >= x.rows * width && matrix.len() == k * n);
    let [row, column] = steps.map(|step| step as isize);
    // SAFETY: x is [rows, k] with rows `step` apart, the matrix [k, n], the result [rows, n] with rows
    // `width` apart, all within their slices.
    unsafe {
        gemm::gemm(
            x.rows,
            n,
            k,
            out.as_mut_ptr(),
            1,
            width as isize,
            false,
            x.values.as_ptr(),
            1,
            x.step as isize,
            matrix.as_ptr(),
            column,
            row,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
