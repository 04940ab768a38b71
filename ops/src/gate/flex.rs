//! Gates over rows.

use super::ROOT;
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
    let out = activated(activation, &floats(&x), 2 * n);
    vec![rounded::<E>(out, shape)]
}

/// The gated rows of rows of `n` elements.
pub(crate) fn activated(activation: Activation, x: &[f32], n: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / 2];
    let rows = out.par_chunks_mut(n / 2).zip(x.par_chunks(n));
    rows.for_each(|(out, row)| activate(activation, row, out));
    out
}

/// The gated row [n] of a row [2 n].
pub(crate) fn activate(activation: Activation, row: &[f32], out: &mut [f32]) {
    let (gate, x) = row.split_at(out.len());
    let pairs = gate.iter().zip(x);
    match activation {
        Activation::Silu => {
            let pairs = out.iter_mut().zip(pairs);
            pairs.for_each(|(out, (gate, x))| *out = silu(*gate) * x);
        }
        Activation::Gelu => {
            let pairs = out.iter_mut().zip(pairs);
            pairs.for_each(|(out, (gate, x))| *out = gelu(*gate) * x);
        }
        Activation::Clamped {
            alpha,
            limit,
            alternate,
        } => {
            let clamped = |gate: f32, x: f32| {
                let gate = gate.min(limit);
                gate * sigmoid(alpha * gate) * (x.clamp(-limit, limit) + 1.0)
            };
            for (i, out) in out.iter_mut().enumerate() {
                *out = match alternate {
                    true => clamped(row[2 * i], row[2 * i + 1]),
                    false => clamped(gate[i], x[i]),
                };
            }
        }
    }
}

fn gelu(x: f32) -> f32 {
    // (1 + tanh(u)) / 2 as a sigmoid, without the cancellation of 1 + tanh(u) for negative numbers.
    x * sigmoid(2.0 * ROOT * (x + 0.044_715 * x * x * x))
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
