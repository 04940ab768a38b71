//! Products of which the first half gates the second, without a tensor of both.

use super::{FEW, dense_few, panel_rows};
use crate::OperationError;
use crate::cube::launch::{empty, shaped};
use crate::linear::few;
use crate::linear::hopper::{Matrix, multiply_gated};
use crate::linear::packed::cube::{Weight, words_of};
use crate::linear::quantised::cube::Forms;
use crate::linear::quantised::hopper::{Gates, Product};
use crate::linear::{Project, Storage};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::{Device, Launches};

/// The products of contiguous rows […, K] with a weight [2 N, K] of one part, silu of the first N times the last N: of
/// many rows by a generated kernel; of a few with a packed weight by another one, with a dense weight on NVIDIA devices. Of a packed weight, rows of both
/// halves are unpacked together, a panel of them at a time.
///
/// `None` if neither kernel takes them; nothing has been written then that is kept.
pub(super) fn times<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Project,
    inputs: &[CubeTensor<R>],
) -> Result<Option<CubeTensor<R>>, OperationError> {
    let (x, tensors) = (&inputs[0], &inputs[1..]);
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    let (k, n) = (shape[last], op.rows() / 2);
    shape[last] = n;
    let m = x.meta.num_elements() / k;
    let [part] = op.parts.as_ref() else {
        return Ok(None);
    };
    let x = shaped(x.clone(), [m, k]);
    if m <= FEW {
        if let (Storage::Packed(_), 1..) = (part.storage, m) {
            let y = empty(&x, [m, n], F::dtype());
            let rows = few::Rows::Gated(&words_of(part.storage, k, 2 * n, tensors));
            let done = few::multiply::<R, F>(&x, rows, few::Pairs::Rows, &y, 0, &op.grouped)?;
            return Ok(done.then(|| shaped(y, shape)));
        }
        let dense = part.storage == Storage::Dense(F::dtype()) && F::dtype() != DType::F32;
        let takes =
            R::device(&x.client) == Device::Cuda && dense && dense_few::takes([m, k, 2 * n]);
        let y = (takes && m > 0).then(|| dense_few::multiply_gated::<R, F>(&x, &tensors[0]));
        return Ok(y.map(|y| shaped(y, shape)));
    }
    let mut forms = Forms::of(&x);
    if part.storage.quantises() {
        let y = empty(&x, [m, n], F::dtype());
        let product = Product {
            weight: &words_of(part.storage, k, 2 * n, tensors),
            gates: Gates::Together,
            listed: None,
            rows: m,
            width: n,
            column: 0,
        };
        if forms.multiply::<F>(&product, &y, &op.grouped)? {
            return Ok(Some(shaped(y, shape)));
        }
    }
    let rows = forms.for_weight::<F>(part.storage);
    let multiply = |weight: &CubeTensor<R>, of_weight, column, y: &mut Option<CubeTensor<R>>| {
        let made = || y.take().unwrap_or_else(|| empty(&x, [m, n], F::dtype()));
        let factors = [rows, weight].map(Matrix::all);
        let to = [column, n];
        multiply_gated::<R, F>(factors, [m, of_weight, k], to, &op.products, made)
    };
    let mut y = None;
    match part.storage {
        Storage::Dense(_) => y = multiply(&tensors[0], n, 0, &mut y)?,
        Storage::Packed(packed) => {
            let weight = Weight {
                packed,
                columns: k,
                tensors: tensors.to_vec(),
            };
            let panel = (panel_rows(k) / 2).max(1);
            for first in (0..n).step_by(panel) {
                let rows = panel.min(n - first);
                let both = weight.unpacked_both::<F>([first, n + first], rows);
                y = multiply(&both, rows, first, &mut y)?;
                if y.is_none() {
                    break;
                }
            }
        }
    }
    Ok(y.map(|y| shaped(y, shape)))
}
