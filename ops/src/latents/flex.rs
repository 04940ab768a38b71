//! Latents on the host.

use super::{Latent, Latents};
use crate::flex::elements::{Stored, elements, tensor};
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

pub(crate) fn latents<E: Stored>(op: &Latents, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let rows = next();
    // Updated in place if it is contiguous and no other tensor shares its memory.
    let mut cache = next().to_contiguous();
    let q_norm = op.q.map(|_| next());
    let kv_norm = next();
    let rotation = (op.rotated > 0).then(&mut next);

    let shape = rows.shape();
    let (batch, tokens, row) = (shape[0], shape[1], shape[2]);
    let values = elements::<E>(&rows);
    let q = op.q.zip(q_norm).map(|(latent, weight)| {
        let weight = elements::<f32>(&weight);
        let mut out = vec![E::put(0.0); batch * tokens * latent.rank];
        let rows = out.par_chunks_mut(latent.rank).zip(values.par_chunks(row));
        rows.for_each(|(out, row)| E::narrow(&normalised(latent, row, &weight), out));
        tensor(out, [batch, tokens, latent.rank])
    });

    let weight = elements::<f32>(&kv_norm);
    let rotation = rotation.as_ref().map(|x| elements::<f32>(x));
    let (room, width) = (cache.shape()[2], op.kv.rank + op.rest);
    // The latent of one token and what lies behind it.
    let latent = |row: &[E], token: usize| -> Vec<f32> {
        let mut x = normalised(op.kv, row, &weight);
        x.resize(width, 0.0);
        let rest = &mut x[op.kv.rank..];
        E::widen(&row[op.kv.start + op.kv.rank..][..op.rest], rest);
        if let Some(rotation) = &rotation {
            let table = &rotation[token * op.rotated..][..op.rotated];
            rotate(&mut rest[..op.rotated], table, op.interleaved);
        }
        x
    };
    let sequences = cache.storage_mut::<E>().chunks_mut((room * width).max(1));
    for (rows, out) in values.chunks((tokens * row).max(1)).zip(sequences) {
        let out = out[op.position * width..].par_chunks_mut(width);
        let rows = rows.par_chunks(row).enumerate();
        rows.zip(out)
            .for_each(|((token, row), out)| E::narrow(&latent(row, token), out));
    }
    q.into_iter().chain([cache]).collect()
}

fn normalised<E: Stored>(latent: Latent, row: &[E], weight: &[f32]) -> Vec<f32> {
    let mut x = vec![0.0; latent.rank];
    E::widen(&row[latent.start..][..latent.rank], &mut x);
    let square: f32 = x.iter().map(|x| x * x).sum();
    let factor = 1.0 / (square / latent.rank as f32 + latent.epsilon).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x *= factor * weight;
    }
    x
}

/// Rotates all elements of `x` by the cosines, then the sines of its pairs in `table`.
pub(crate) fn rotate(x: &mut [f32], table: &[f32], interleaved: bool) {
    let half = x.len() / 2;
    let (cosines, sines) = table.split_at(half);
    for i in 0..half {
        let (first, second) = match interleaved {
            true => (2 * i, 2 * i + 1),
            false => (i, half + i),
        };
        let (a, b) = (x[first], x[second]);
        x[first] = a * cosines[i] - b * sines[i];
        x[second] = b * cosines[i] + a * sines[i];
    }
}
