//! Norms of rows.

use crate::flex::elements::{Stored, elements, rounded, tensor};
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// `x / rms(x) * weight`.
fn normalise(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let square: f32 = x.iter().map(|x| x * x).sum();
    let factor = 1.0 / (square / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

pub(crate) fn norm<E: Stored>(inputs: &[FlexTensor], epsilon: f32) -> Vec<FlexTensor> {
    let (x, weight) = (elements::<f32>(&inputs[0]), elements::<f32>(&inputs[1]));
    let n = weight.len();
    let mut out = vec![0.0; x.len()];
    let rows = out.par_chunks_mut(n).zip(x.par_chunks(n));
    rows.for_each(|(out, x)| normalise(x, &weight, epsilon, out));
    vec![rounded::<E>(out, inputs[0].shape())]
}

pub(crate) fn add_norm<E: Stored>(inputs: &[FlexTensor], epsilon: f32) -> Vec<FlexTensor> {
    let (x, y) = (elements::<f32>(&inputs[0]), elements::<E>(&inputs[1]));
    let n = inputs[2].shape()[0];
    let mut sum = vec![0.0; x.len()];
    let rows = sum
        .par_chunks_mut(n)
        .zip(x.par_chunks(n).zip(y.par_chunks(n)));
    rows.for_each(|(sum, (x, y))| {
        E::widen(y, sum);
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    });
    let sum = tensor(sum, inputs[0].shape());
    let normed = norm::<E>(&[sum.clone(), inputs[2].clone()], epsilon);
    std::iter::once(sum).chain(normed).collect()
}
