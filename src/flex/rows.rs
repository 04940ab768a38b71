//! Norms and gates over rows.

use super::{Stored, elements, sigmoid, silu, tensor};
use crate::Activation;
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// `x / rms(x) * weight`.
fn normalise<E: Stored>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [E]) {
    let square: f32 = x.iter().map(|x| x * x).sum();
    let factor = 1.0 / (square / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = E::put(x * factor * weight);
    }
}

pub(super) fn norm<E: Stored>(inputs: &[FlexTensor], epsilon: f32) -> Vec<FlexTensor> {
    let (x, weight) = (elements::<f32>(&inputs[0]), elements::<f32>(&inputs[1]));
    let n = weight.len();
    let mut out = vec![E::put(0.0); x.len()];
    let rows = out.par_chunks_mut(n).zip(x.par_chunks(n));
    rows.for_each(|(out, x)| normalise(x, &weight, epsilon, out));
    vec![tensor(out, inputs[0].shape())]
}

pub(super) fn add_norm<E: Stored>(inputs: &[FlexTensor], epsilon: f32) -> Vec<FlexTensor> {
    let (x, y) = (elements::<f32>(&inputs[0]), elements::<E>(&inputs[1]));
    let sum = x.iter().zip(y.iter());
    let sum: Vec<f32> = sum.map(|(x, y)| x + y.get()).collect();
    let sum = tensor(sum, inputs[0].shape());
    let normed = norm::<E>(&[sum.clone(), inputs[2].clone()], epsilon);
    std::iter::once(sum).chain(normed).collect()
}

pub(super) fn gated<E: Stored>(inputs: &[FlexTensor], activation: Activation) -> Vec<FlexTensor> {
    let mut shape = inputs[0].shape().to_vec();
    let last = shape.len() - 1;
    let n = shape[last] / 2;
    shape[last] = n;
    let x = elements::<E>(&inputs[0]);
    let mut out = vec![E::put(0.0); x.len() / 2];
    let rows = out.par_chunks_mut(n).zip(x.par_chunks(2 * n));
    rows.for_each(|(out, row)| {
        let (gate, x) = row.split_at(n);
        for ((out, gate), x) in out.iter_mut().zip(gate).zip(x) {
            let gate = match activation {
                Activation::Silu => silu(gate.get()),
            };
            *out = E::put(gate * x.get());
        }
    });
    vec![tensor(out, shape)]
}

pub(super) fn gate_output<E: Stored>(inputs: &[FlexTensor], head_dim: usize) -> Vec<FlexTensor> {
    let shape = inputs[0].shape();
    let (o, rows) = (elements::<E>(&inputs[0]), elements::<E>(&inputs[1]));
    let (n, width) = (shape[2], inputs[1].shape()[2]);
    let mut out = vec![E::put(0.0); o.len()];
    for (i, out) in out.iter_mut().enumerate() {
        let (row, at) = (i / n, i % n);
        let gate = at / head_dim * 2 * head_dim + head_dim + at % head_dim;
        *out = E::put(o[i].get() * sigmoid(rows[row * width + gate].get()));
    }
    vec![tensor(out, shape)]
}
