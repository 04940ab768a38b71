//! Heads of expanded latent attention on the host.

use super::{Expand, Rotate};
use crate::Up;
use crate::absorb::flex::{Rectangle, matrix, multiply, weight};
use crate::flex::elements::{Stored, elements, floats, rounded, tensor};
use crate::latents::flex::rotate;
use crate::linear::flex::Bytes;
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

pub(crate) fn rotated<E: Stored>(op: &Rotate, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let shape = inputs[0].shape();
    let (batch, tokens, row) = (shape[0], shape[1], shape[2]);
    let x = elements::<E>(&inputs[0]);
    let rotation = (op.rotated > 0).then(|| elements::<f32>(&inputs[1]));
    let d = op.head();
    let mut out = vec![E::put(0.0); batch * op.heads * tokens * d];
    let of_head = |(i, out): (usize, &mut [E])| {
        let first = i / op.heads * tokens * row + op.start + i % op.heads * d;
        let mut turned = vec![0.0; op.rotated];
        for (token, out) in out.chunks_exact_mut(d).enumerate() {
            out.copy_from_slice(&x[first + token * row..][..d]);
            if let Some(rotation) = &rotation {
                let part = &mut out[op.nope..][..op.rotated];
                E::widen(part, &mut turned);
                let table = &rotation[token * op.rotated..][..op.rotated];
                rotate(&mut turned, table, op.interleaved);
                E::narrow(&turned, part);
            }
        }
    };
    if tokens > 0 {
        out.par_chunks_mut(tokens * d).enumerate().for_each(of_head);
    }
    vec![tensor(out, [batch, op.heads, tokens, d])]
}

pub(crate) fn expand<E: Stored>(op: &Expand, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let shape = inputs[0].shape();
    let (batch, room, width) = (shape[0], shape[1], shape[2]);
    let given = elements::<E>(&inputs[0]);
    let latents = floats(&given);
    let bytes = Bytes::of(&inputs[1..2]);
    let weight = weight(&bytes, &inputs[1], op.up);
    let Up {
        heads,
        nope,
        v,
        rank,
    } = op.up;
    let d = nope + op.rest;
    let mut keys = vec![0.0; batch * heads * room * d];
    let mut values = vec![0.0; batch * heads * room * v];
    // The keys and values of one head of one sequence.
    let of_head = |(i, (keys, values)): (usize, (&mut [f32], &mut [f32]))| {
        let (sequence, first_row) = (i / heads, i % heads * op.up.of_head());
        let latents = &latents[sequence * room * width..][..room * width];
        let times = |rows: Range<usize>, (out, step): (&mut [f32], usize)| {
            let n = rows.len();
            let matrix = matrix(&weight, rows, rank);
            let from = Rectangle {
                values: latents,
                rows: op.tokens,
                step: width,
            };
            multiply(from, &matrix, [rank, n], [1, rank], (out, step));
        };
        times(first_row..first_row + nope, (&mut *keys, d));
        times(first_row + nope..first_row + nope + v, (values, v));
        let shared = latents.chunks_exact(width).map(|latent| &latent[rank..]);
        for (key, shared) in keys.chunks_exact_mut(d).zip(shared).take(op.tokens) {
            key[nope..].copy_from_slice(shared);
        }
    };
    if op.tokens > 0 {
        let values = values.par_chunks_mut(room * v);
        let of_heads = keys.par_chunks_mut(room * d).zip(values).enumerate();
        of_heads.for_each(of_head);
    }
    vec![
        rounded::<E>(keys, [batch, heads, room, d]),
        rounded::<E>(values, [batch, heads, room, v]),
    ]
}
