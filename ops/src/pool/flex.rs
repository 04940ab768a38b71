//! Means of consecutive keys.

use crate::Pool;
use crate::flex::elements::{Stored, elements};
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

pub(crate) fn pool<E: Stored>(op: &Pool, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let (k, means) = (next(), next());
    // Updated in place if it is contiguous and no other tensor shares its memory.
    let mut means = means.to_contiguous();
    let shape = k.shape();
    let (room, d) = (shape[2], shape[3]);
    let each = (means.shape()[2] * d).max(1);
    let k = elements::<E>(&k);
    let of_head = |(head, means): (usize, &mut [f32])| {
        let mut keys = vec![0.0; op.tokens * d];
        for j in op.pools.clone() {
            let from = (head * room + j * op.tokens) * d;
            E::widen(&k[from..from + keys.len()], &mut keys);
            let mean = &mut means[j * d..][..d];
            mean.fill(0.0);
            for key in keys.chunks_exact(d) {
                for (sum, x) in mean.iter_mut().zip(key) {
                    *sum += x;
                }
            }
            for x in mean {
                *x /= op.tokens as f32;
            }
        }
    };
    let heads = means.storage_mut::<f32>();
    // Threads would cost more than a mean or two.
    match op.pools.len() {
        0 => {}
        1 | 2 => heads.chunks_mut(each).enumerate().for_each(of_head),
        _ => heads.par_chunks_mut(each).enumerate().for_each(of_head),
    }
    vec![means]
}
