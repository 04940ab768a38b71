//! The gated delta rule, token by token.

use crate::Delta;
use crate::flex::elements::{Stored, elements, sigmoid, silu, tensor};
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

pub(crate) fn delta<E: Stored>(op: &Delta, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let shape = inputs[0].shape();
    let (batch, tokens, width) = (shape[0], shape[1], shape[2]);
    if batch * tokens == 0 {
        let out = tensor(Vec::<E>::new(), [batch, tokens, op.v_heads * op.v_dim]);
        return vec![out, inputs[5].clone(), inputs[6].clone()];
    }
    let rows = elements::<E>(&inputs[0]);
    let weights = [1, 2, 3, 4].map(|i| elements::<f32>(&inputs[i]));
    let [convolution, decay, bias, norm] = weights.each_ref().map(|x| x.as_ref());
    let last = elements::<E>(&inputs[5]);
    let state = elements::<f32>(&inputs[6]);
    let (channels, taps) = (op.channels(), op.taps);
    let (dk, dv) = (op.k_dim, op.v_dim);
    let keys = op.k_heads * dk;

    // Rows of q, k and v at negative tokens are those of earlier calls.
    let before = |b: usize, token: isize, c: usize| -> f32 {
        match usize::try_from(token) {
            Ok(token) => rows[(b * tokens + token) * width + c].get(),
            Err(_) => {
                let at = (taps as isize - 1 + token) as usize;
                last[(b * (taps - 1) + at) * channels + c].get()
            }
        }
    };
    let mut mixed = vec![0.0; batch * tokens * channels];
    mixed
        .par_chunks_mut(channels)
        .enumerate()
        .for_each(|(i, out)| {
            let (b, token) = (i / tokens, (i % tokens) as isize);
            for (c, out) in out.iter_mut().enumerate() {
                let products = (0..taps).map(|tap| {
                    let at = token + 1 + tap as isize - taps as isize;
                    convolution[tap * channels + c] * before(b, at, c)
                });
                *out = silu(products.sum());
            }
            for (h, head) in out[..2 * keys].chunks_mut(dk).enumerate() {
                let square: f32 = head.iter().map(|x| x * x).sum();
                let mut factor = 1.0 / (square + Delta::LENGTH_EPSILON).sqrt();
                if h < op.k_heads {
                    factor /= (dk as f32).sqrt();
                }
                head.iter_mut().for_each(|x| *x *= factor);
            }
        });

    let mut state = state.into_owned();
    let mut o = vec![E::put(0.0); batch * op.v_heads * tokens * dv];
    let heads = state
        .par_chunks_mut(dk * dv)
        .zip(o.par_chunks_mut(tokens * dv));
    heads.enumerate().for_each(|(i, (state, o))| {
        let (b, h) = (i / op.v_heads, i % op.v_heads);
        let mut read = vec![0.0; dv];
        for token in 0..tokens {
            let row = &rows[(b * tokens + token) * width..][..width];
            let mixed = &mixed[(b * tokens + token) * channels..][..channels];
            let q = &mixed[op.k_head(h) * dk..][..dk];
            let k = &mixed[keys + op.k_head(h) * dk..][..dk];
            let v = &mixed[2 * keys + h * dv..][..dv];
            let gates = channels + op.v_heads * dv;
            let beta = sigmoid(row[gates + h].get());
            let step = softplus(row[gates + op.v_heads + h].get() + bias[h]);
            let forget = (decay[h] * step).exp();
            read.fill(0.0);
            for (state, k) in state.chunks_mut(dv).zip(k) {
                for (read, state) in read.iter_mut().zip(state) {
                    *state *= forget;
                    *read += *state * k;
                }
            }
            let change: Vec<f32> = v.iter().zip(&read).map(|(v, r)| beta * (v - r)).collect();
            read.fill(0.0);
            for ((state, k), q) in state.chunks_mut(dv).zip(k).zip(q) {
                for ((read, state), change) in read.iter_mut().zip(state).zip(&change) {
                    *state += k * change;
                    *read += *state * q;
                }
            }
            let square: f32 = read.iter().map(|x| x * x).sum();
            let factor = 1.0 / (square / dv as f32 + op.epsilon).sqrt();
            for (j, out) in o[token * dv..][..dv].iter_mut().enumerate() {
                let gate = silu(row[channels + h * dv + j].get());
                *out = E::put(read[j] * factor * norm[j] * gate);
            }
        }
    });

    // From [B, Hv, T, Dv] to [B, T, Hv, Dv].
    let mut out = vec![E::put(0.0); o.len()];
    for (i, head) in o.chunks(dv).enumerate() {
        let (b, h, token) = (i / tokens / op.v_heads, i / tokens % op.v_heads, i % tokens);
        let to = ((b * tokens + token) * op.v_heads + h) * dv;
        out[to..to + dv].copy_from_slice(head);
    }
    let mut kept = Vec::with_capacity(last.len());
    for b in 0..batch {
        for at in 0..taps - 1 {
            let token = (tokens + at) as isize + 1 - taps as isize;
            kept.extend((0..channels).map(|c| E::put(before(b, token, c))));
        }
    }
    vec![
        tensor(out, [batch, tokens, op.v_heads * dv]),
        tensor(kept, [batch, taps - 1, channels]),
        tensor(state, [batch, op.v_heads, dk, dv]),
    ]
}

fn softplus(x: f32) -> f32 {
    match x > 20.0 {
        true => x,
        false => x.exp().ln_1p(),
    }
}
