//! Heads of expanded latent attention on the host.

use super::{Expand, Rotate};
use crate::flex::elements::{Stored, elements, tensor};
use crate::latents::flex::rotate;
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

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
    let (batch, tokens, row) = (shape[0], shape[1], shape[2]);
    let rows = elements::<E>(&inputs[0]);
    let latents = elements::<E>(&inputs[1]);
    let (d, width) = (op.nope + op.rest, op.rank + op.rest);
    let mut k = vec![E::put(0.0); batch * op.heads * tokens * d];
    let mut v = vec![E::put(0.0); batch * op.heads * tokens * op.v];
    // The keys and values of one head of one sequence.
    let of_head = |(i, (k, v)): (usize, (&mut [E], &mut [E]))| {
        let (sequence, head) = (i / op.heads, i % op.heads);
        let tokens_of = k.chunks_exact_mut(d).zip(v.chunks_exact_mut(op.v));
        for (token, (k, v)) in tokens_of.enumerate() {
            let at = sequence * tokens + token;
            let from = &rows[at * row + head * op.head()..][..op.head()];
            let (first, value) = from.split_at(op.nope);
            k[..op.nope].copy_from_slice(first);
            k[op.nope..].copy_from_slice(&latents[at * width + op.rank..][..op.rest]);
            v.copy_from_slice(value);
        }
    };
    if tokens > 0 {
        let values = v.par_chunks_mut(tokens * op.v);
        let heads = k.par_chunks_mut(tokens * d).zip(values).enumerate();
        heads.for_each(of_head);
    }
    vec![
        tensor(k, [batch, op.heads, tokens, d]),
        tensor(v, [batch, op.heads, tokens, op.v]),
    ]
}
