//! Gates over rows.

use crate::Activation;
use crate::flex::elements::{Stored, elements, floats, rounded, sigmoid, silu};
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

pub(crate) fn gated<E: Stored>(inputs: &[FlexTensor], activation: Activation) -> Vec<FlexTensor> {
    let mut shape = inputs[0].shape().to_vec();
    let last = shape.len() - 1;
    let n = shape[last] / 2;
    shape[last] = n;
    let x = elements::<E>(&inputs[0]);
    let mut out = vec![0.0; x.len() / 2];
    let rows = out.par_chunks_mut(n).zip(x.par_chunks(2 * n));
    rows.for_each(|(out, row)| {
        let row = floats(row);
        let (gate, x) = row.split_at(n);
        for ((out, gate), x) in out.iter_mut().zip(gate).zip(x) {
            let gate = match activation {
                Activation::Silu => silu(*gate),
            };
            *out = gate * x;
        }
    });
    vec![rounded::<E>(out, shape)]
}

pub(crate) fn gate_output<E: Stored>(inputs: &[FlexTensor], head_dim: usize) -> Vec<FlexTensor> {
    let shape = inputs[0].shape();
    let (o, rows) = (elements::<E>(&inputs[0]), elements::<E>(&inputs[1]));
    let (n, width) = (shape[2], inputs[1].shape()[2]);
    let mut out = vec![0.0; o.len()];
    let tokens = o.par_chunks(n).zip(rows.par_chunks(width));
    let tokens = out.par_chunks_mut(n).zip(tokens);
    tokens.for_each(|(out, (o, row))| {
        for ((at, out), o) in out.iter_mut().enumerate().zip(o) {
            let gate = at / head_dim * 2 * head_dim + head_dim + at % head_dim;
            *out = o.get() * sigmoid(row[gate].get());
        }
    });
    vec![rounded::<E>(out, shape)]
}
