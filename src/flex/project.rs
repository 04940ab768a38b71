//! Products of rows with a weight.

use super::{Stored, elements, tensor};
use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use half::bf16;
use rayon::prelude::*;

/// x […, K] with weight [N, K] → […, N].
pub(super) fn project<E: Stored>(inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
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
    let y = match weight.dtype() {
        DType::BF16 => in_panels(&x, &weight),
        _ => multiply(x, weight),
    };
    vec![Flex::float_reshape(y, shape.into())]
}

/// Burn's own product.
fn multiply(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
    Flex::float_matmul(x, Flex::float_swap_dims(weight, 0, 1))
}

/// Elements of a panel of the weight, as f32 small enough for the cache of a core.
const PANEL: usize = 1 << 16;

/// The same for bf16, of which Burn first makes f32 out of the whole weight, for each product.
///
/// Here threads take panels of the weight's rows, so that it is read from memory once and as
/// bf16. More rows of x want larger panels, since each product packs them anew.
fn in_panels(x: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let ([rows, k], n) = (x.shape().dims(), weight.shape()[0]);
    if rows * k * n == 0 {
        return tensor(vec![bf16::ZERO; rows * n], [rows, n]);
    }
    let wide = |x: &[bf16]| -> Vec<f32> { x.iter().map(|x| x.get()).collect() };
    let x = tensor(wide(&elements(x)), [rows, k]);
    let height = (PANEL * rows.clamp(1, 16) / k).clamp(1, n);
    let panels = elements::<bf16>(weight);
    let panels = panels.par_chunks(height * k).map(|panel| {
        let panel = tensor(wide(panel), [panel.len() / k, k]);
        let y = multiply(x.clone(), panel);
        elements::<f32>(&y)
            .iter()
            .map(|y| Stored::put(*y))
            .collect()
    });
    let panels: Vec<Vec<bf16>> = panels.collect();
    let mut out = vec![bf16::ZERO; rows * n];
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

    /// bf16 products agree with f64 on the same numbers, whatever the shape.
    #[test]
    fn bf16_products() {
        let number = |seed: usize| {
            let mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bf16::from_f32((mixed >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        let shapes = [
            (1, 1, 1),
            (1, 576, 2000),
            (3, 100, 1000),
            (17, 70_000, 3),
            (130, 64, 33),
        ];
        for (rows, k, n) in shapes {
            let x: Vec<bf16> = (0..rows * k).map(number).collect();
            let w: Vec<bf16> = (0..n * k).map(|i| number(i + 1_000_003)).collect();
            let got = project::<bf16>(vec![
                tensor(x.clone(), [rows, 1, k]),
                tensor(w.clone(), [n, k]),
            ]);
            assert_eq!(got[0].shape().to_vec(), [rows, 1, n]);
            for (i, got) in elements::<bf16>(&got[0]).iter().enumerate() {
                let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let terms = row.iter().zip(column).map(|(x, w)| x.to_f64() * w.to_f64());
                let want: f64 = terms.sum();
                let off = (got.to_f64() - want).abs();
                let allowed = want.abs() / 256.0 + 1e-5 * k as f64;
                assert!(
                    off <= allowed,
                    "[{rows}, {k}, {n}] at {i}: {got}, not {want}"
                );
            }
        }
    }
}
