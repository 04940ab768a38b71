//! Products of rows with a weight.

use crate::flex::elements::{Stored, elements, tensor};
use crate::{Embed, Project};
use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// Rows of a packed embedding.
pub(crate) fn embed<E: Stored>(op: &Embed, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let _ = (op, inputs);
    unimplemented!()
}

/// x […, K] with the parts of a weight [N, K] → […, N].
pub(crate) fn project<E: Stored>(op: &Project, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let _ = op;
    let [x, weight] = <[FlexTensor; 2]>::try_from(inputs).expect("the inputs were counted");
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    let (k, n) = (shape[last], weight.shape()[0]);
    let rows = shape[..last].iter().product::<usize>();
    shape[last] = n;
    if rows == 0 {
        return vec![tensor(Vec::<E>::new(), shape)];
    }
    let x = Flex::float_reshape(x, [rows, k].into());
    let y = match (E::dtype(), weight.dtype()) {
        (DType::F32, DType::F32) | (DType::F16, DType::F16) => multiply(x, weight),
        (_, DType::F16) => in_panels::<E, f16>(&x, &weight),
        (_, DType::BF16) => in_panels::<E, bf16>(&x, &weight),
        _ => in_panels::<E, f32>(&x, &weight),
    };
    vec![Flex::float_reshape(y, shape.into())]
}

/// Burn's own product.
fn multiply(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
    Flex::float_matmul(x, Flex::float_swap_dims(weight, 0, 1))
}

/// Elements of a panel of the weight. Converted to f32, a panel fits the cache of a core.
const PANEL: usize = 1 << 16;

/// The product for bf16 and for factors of two types. Burn's own would first convert the whole
/// weight to f32, for each product.
///
/// Here each thread takes panels of the weight's rows, so that the weight is read from memory once,
/// in its stored type. More rows of x need larger panels, since x is packed anew for each panel.
fn in_panels<E: Stored, W: Stored>(x: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let ([rows, k], n) = (x.shape().dims(), weight.shape()[0]);
    if rows * k * n == 0 {
        return tensor(vec![E::put(0.0); rows * n], [rows, n]);
    }
    let x: Vec<f32> = elements::<E>(x).iter().map(|x| x.get()).collect();
    let x = tensor(x, [rows, k]);
    let height = (PANEL * rows.clamp(1, 16) / k).clamp(1, n);
    let panels = elements::<W>(weight);
    let panels = panels.par_chunks(height * k).map(|panel| {
        let wide: Vec<f32> = panel.iter().map(|x| x.get()).collect();
        let y = multiply(x.clone(), tensor(wide, [panel.len() / k, k]));
        elements::<f32>(&y).iter().map(|y| E::put(*y)).collect()
    });
    let panels: Vec<Vec<E>> = panels.collect();
    let mut out = vec![E::put(0.0); rows * n];
    out.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
        for (out, panel) in out.chunks_mut(height).zip(&panels) {
            out.copy_from_slice(&panel[row * out.len()..][..out.len()]);
        }
    });
    tensor(out, [rows, n])
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let got = project::<E>(vec![
                tensor(x.clone(), [rows, 1, k]),
                tensor(w.clone(), [n, k]),
            ]);
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
