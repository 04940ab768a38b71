//! Linear layers on the host.

use super::rows::{Rows, multiply};
use super::storage::{Part, Storage};
use crate::flex::elements::{Stored, elements, floats, rounded};
use crate::flex::tensor;
use crate::gate::flex::activated;
use crate::{Embed, Project};
use burn::tensor::{DType, TensorMetadata};
use burn_flex::FlexTensor;
use std::borrow::Cow;

/// Rows of a packed embedding.
pub(crate) fn embed<E: Stored>(op: &Embed, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let [batch, tokens] = inputs[0].shape().dims();
    let ids: Vec<usize> = match inputs[0].dtype() {
        DType::I32 => integers::<i32>(&inputs[0]),
        _ => integers::<i64>(&inputs[0]),
    };
    let table = Bytes::of(&inputs[1..]);
    let table = table.rows(
        Part {
            storage: Storage::Packed(op.table),
            rows: op.rows,
        },
        op.columns,
    );
    let mut row = vec![0.0; op.columns];
    let mut out = Vec::with_capacity(ids.len() * op.columns);
    for id in ids {
        table.unpack(id, &mut row);
        out.extend_from_slice(&row);
    }
    vec![rounded::<E>(out, [batch, tokens, op.columns])]
}

fn integers<I: burn::tensor::Element + bytemuck::Pod + TryInto<usize>>(
    ids: &FlexTensor,
) -> Vec<usize> {
    let ids = ids.to_contiguous();
    let ids = ids.storage::<I>().iter();
    // A negative id is no row of any table, as is the largest number.
    ids.map(|id| (*id).try_into().unwrap_or(usize::MAX))
        .collect()
}

/// x […, K] with the parts of a weight [N, K] → […, N].
pub(crate) fn project<E: Stored>(op: &Project, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let mut shape = inputs[0].shape().to_vec();
    let last = shape.len() - 1;
    let (k, n) = (shape[last], op.rows());
    shape[last] = n;
    let given = elements::<E>(&inputs[0]);
    let x = floats(&given);
    let m = x.len() / k;
    let mut y = vec![0.0; m * n];
    let mut at = 1;
    let bytes = op.parts.iter().map(|part| {
        let tensors = &inputs[at..at + part.names().len()];
        at += tensors.len();
        Bytes::of(tensors)
    });
    let bytes: Vec<Bytes<'_>> = bytes.collect();
    let parts = bytes.iter().zip(op.parts.iter());
    let weights: Vec<Rows<'_>> = parts.map(|(bytes, part)| bytes.rows(*part, k)).collect();
    multiply(&x, (m, m > Project::FEW), &weights, &mut y);
    if let Some(activation) = op.gate {
        shape[last] = n / 2;
        y = activated(activation, &y, n);
    }
    vec![match op.wide {
        true => tensor(y, shape),
        false => rounded::<E>(y, shape),
    }]
}

/// The bytes of a part's tensors.
pub(crate) struct Bytes<'a>(Vec<Cow<'a, [u8]>>);

impl<'a> Bytes<'a> {
    pub(crate) fn of(tensors: &'a [FlexTensor]) -> Self {
        let bytes = |x: &'a FlexTensor| match x.dtype() {
            DType::F32 => bytes_of::<f32>(x),
            DType::F16 => bytes_of::<half::f16>(x),
            DType::BF16 => bytes_of::<half::bf16>(x),
            _ => bytes_of::<u8>(x),
        };
        Self(tensors.iter().map(bytes).collect())
    }

    /// The weight of a part that has these tensors.
    pub(crate) fn rows(&self, part: Part, k: usize) -> Rows<'_> {
        let bytes: Vec<&[u8]> = self.0.iter().map(|bytes| bytes.as_ref()).collect();
        Rows::new(part.storage, [part.rows, k], &bytes).expect("the inputs were checked")
    }

    /// The bytes of a tensor.
    pub(crate) fn tensor(&self, i: usize) -> &[u8] {
        &self.0[i]
    }
}

fn bytes_of<E: burn::tensor::Element + bytemuck::Pod>(x: &FlexTensor) -> Cow<'_, [u8]> {
    match x.as_slice::<E>() {
        Some(elements) => Cow::Borrowed(bytemuck::cast_slice(elements)),
        None => Cow::Owned(bytemuck::cast_slice(x.to_contiguous().storage::<E>()).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flex::tensor;
    use half::{bf16, f16};

    /// Products agree with f64 on the same numbers, for all shapes and pairs of types.
    #[test]
    fn products_of_all_types() {
        products::<bf16, bf16>(8);
        products::<bf16, f16>(8);
        products::<bf16, f32>(8);
        products::<f16, f32>(11);
        products::<f16, bf16>(11);
        products::<f32, bf16>(24);
        products::<f32, f16>(24);
    }

    /// Rows of `E`, whose results have this many bits of precision, times a weight of `W`.
    fn products<E: Stored, W: Stored>(bits: i32) {
        let number = |seed: usize| {
            let mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let shapes = [
            (1, 1, 1),
            (1, 576, 2000),
            (3, 100, 1000),
            (17, 70_000, 3),
            (130, 64, 33),
        ];
        for (rows, k, n) in shapes {
            let x: Vec<E> = (0..rows * k).map(|i| E::put(number(i))).collect();
            let w = (0..n * k).map(|i| W::put(number(i + 1_000_003)));
            let w: Vec<W> = w.collect();
            let inputs = vec![tensor(x.clone(), [rows, 1, k]), tensor(w.clone(), [n, k])];
            let got = project::<E>(&Project::dense(n, W::dtype()), inputs);
            assert_eq!(got[0].shape().to_vec(), [rows, 1, n]);
            for (i, got) in elements::<E>(&got[0]).iter().enumerate() {
                let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let terms = row
                    .iter()
                    .zip(column)
                    .map(|(x, w)| f64::from(x.get()) * f64::from(w.get()));
                let want: f64 = terms.sum();
                let got = f64::from(got.get());
                let off = (got - want).abs();
                let allowed = want.abs() * 2f64.powi(-bits) + 1e-6 * k as f64;
                assert!(
                    off <= allowed,
                    "[{rows}, {k}, {n}] at {i}: {got}, not {want}"
                );
            }
        }
    }
}
