//! The largest element of rows.

use super::{ArgMax, NUMBERS};
use crate::flex::elements::{Stored, elements, floats};
use burn::tensor::{Bytes, DType, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

pub(crate) fn argmax<E: Stored>(op: ArgMax, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let mut shape = inputs[0].shape().to_vec();
    let row = shape.pop().unwrap_or(1);
    let parts = op.parts(row);
    shape.extend([parts, NUMBERS]);
    let x = elements::<E>(&inputs[0]);
    let of_part = |(number, x): (usize, &[E])| described(number * op.part, &floats(x));
    let of_row = |x: &[E]| -> Vec<[i32; NUMBERS]> {
        let parts = x.par_chunks(op.part).enumerate();
        parts.map(of_part).collect()
    };
    let found: Vec<[i32; NUMBERS]> = x.chunks(row).flat_map(of_row).collect();
    let bytes = Bytes::from_elems(found.into_flattened());
    vec![FlexTensor::new(
        bytes,
        Layout::contiguous(shape.into()),
        DType::I32,
    )]
}

/// What there is to say about a part whose first element is element `start` of its row.
fn described(start: usize, part: &[f32]) -> [i32; NUMBERS] {
    let better = |best: usize, i: usize| if part[i] > part[best] { i } else { best };
    let best = (0..part.len()).fold(0, better);
    let bad = part.iter().filter(|x| !x.is_finite()).count();
    let index = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    [
        index(start + best),
        part[best].to_bits().cast_signed(),
        index(bad),
    ]
}
