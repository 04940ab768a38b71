//! From projections to heads, and to the cache.

use crate::Append;
use crate::flex::elements::{Stored, elements, tensor};
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

pub(crate) fn append<E: Stored>(op: &Append, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let rows = [next(), next(), next()];
    // The caches are updated in place if they are contiguous and no other tensor shares their
    // memory.
    let mut caches = [next(), next()].map(|cache| cache.to_contiguous());
    let norms = op.norm.map(|epsilon| (epsilon, [next(), next()]));
    let rotation = (op.rotated > 0).then(&mut next);
    let lags = op.lagging.then(|| next().to_contiguous());
    let lags = lags.as_ref().map(|lags| lags.storage::<i32>());

    let shape = rows[0].shape();
    let (batch, tokens) = (shape[0], shape[1]);
    let (d, room) = (op.head_dim, caches[0].shape()[2]);
    let norms = norms.as_ref().map(|(epsilon, weights)| {
        let [q, k] = weights;
        (*epsilon, [elements::<f32>(q), elements::<f32>(k)])
    });
    let rotation = rotation.as_ref().map(|x| elements::<f32>(x));
    // One head of one token, after its norm and rotation.
    let head = |which: usize, row: &[E], start: usize, [sequence, token]: [usize; 2]| -> Vec<f32> {
        let mut x = vec![0.0; d];
        E::widen(&row[start..start + d], &mut x);
        if let (Some((epsilon, weights)), 0 | 1) = (&norms, which) {
            let square: f32 = x.iter().map(|x| x * x).sum();
            let factor = 1.0 / (square / d as f32 + epsilon).sqrt();
            for (x, weight) in x.iter_mut().zip(weights[which].iter()) {
                *x *= factor * weight;
            }
        }
        if let (Some(rotation), 0 | 1) = (&rotation, which) {
            let half = op.rotated / 2;
            let at = if op.lagging {
                sequence * tokens + token
            } else {
                token
            };
            let (cosines, sines) = rotation[at * op.rotated..][..op.rotated].split_at(half);
            for i in 0..half {
                let (first, second) = match op.interleaved {
                    true => (2 * i, 2 * i + 1),
                    false => (i, half + i),
                };
                let (a, b) = (x[first], x[second]);
                x[first] = a * cosines[i] - b * sines[i];
                x[second] = b * cosines[i] + a * sines[i];
            }
        }
        x
    };

    let mut q = vec![E::put(0.0); batch * op.q_heads * tokens * d];
    let steps = [op.q_step, d, d];
    let heads = [op.q_heads, op.kv_heads, op.kv_heads];
    for which in 0..3 {
        let width = rows[which].shape()[2];
        let values = elements::<E>(&rows[which]);
        let (out, length) = match which {
            0 => (q.as_mut_slice(), tokens),
            _ => (caches[which - 1].storage_mut::<E>(), room),
        };
        // The tokens of one head of one sequence.
        let tokens_of = |(i, out): (usize, &mut [E])| {
            let (b, h) = (i / heads[which], i % heads[which]);
            let start = op.starts[which] + h * steps[which];
            let rows = values[b * tokens * width..].chunks(width);
            let first = match (which, &lags) {
                (0, _) => 0,
                (_, None) => op.position,
                (_, Some(lags)) => op.position.saturating_sub(lags[b].max(0) as usize),
            };
            let out = out[first * d..].chunks_mut(d).take(tokens);
            for (token, (out, row)) in out.zip(rows).enumerate() {
                E::narrow(&head(which, row, start, [b, token]), out);
            }
        };
        // Threads would cost more than the heads of one token.
        let each = (length * d).max(1);
        // Those of further sequences in the caches stay as they are.
        let count = batch * heads[which];
        match tokens {
            0 | 1 => out
                .chunks_mut(each)
                .take(count)
                .enumerate()
                .for_each(tokens_of),
            _ => out
                .par_chunks_mut(each)
                .take(count)
                .enumerate()
                .for_each(tokens_of),
        }
    }
    let [k, v] = caches;
    vec![tensor(q, [batch, op.q_heads, tokens, d]), k, v]
}
