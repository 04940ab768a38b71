//! Experts on CubeCL's runtimes.
//!
//! A *pair* is a row and one of its experts; pair `row * k + j` is choice j of the row. A few pairs are multiplied one
//! by one (`few.rs`). Many are sorted by expert (`arrange.rs`) and multiplied in tiles of pairs of one expert
//! (`tiles.rs`), so that a weight is read once for a tile. The host never learns how many rows an expert has: it
//! launches as many tiles as there can be.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits` holds every count to what kernels index"
)]

mod arrange;
mod choose;
mod combine;
mod few;
mod quantised;
mod route;
mod tiles;

pub(crate) use choose::choose;
pub(crate) use combine::alone as combine;
pub(crate) use route::route;

use super::{Experts, Section, Shared};
use crate::OperationError;
use crate::cube::launch::{empty, shaped};
use crate::gate::Activation;
use crate::gate::cube::activate;
use crate::linear::packed::cube::{Words, words_of};
use crate::linear::quantised::cube::Forms;
use arrange::Arrangement;
use burn::tensor::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;
use tiles::{Place, Units};

/// The section of a weight on a device.
struct Stored<R: CubeRuntime> {
    section: Section,
    tensors: Vec<CubeTensor<R>>,
}

/// Computes the output.
///
/// # Errors
/// If a generated kernel cannot be made or launched.
pub(crate) fn experts<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Experts,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let mut next = || inputs.next().expect("the inputs were counted");
    let (x, ids, weights) = (next(), next(), next());
    let shape = x.shape().to_vec();
    let hidden = shape[shape.len() - 1];
    let pairs = ids.meta.num_elements();
    let rows_of_all = [ids.meta.shape().as_slice(), &[hidden]].concat();
    if pairs == 0 {
        let shape = if op.apart { rows_of_all } else { shape };
        return Ok(vec![empty(&x, shape, F::dtype())]);
    }
    let mut stored = |sections: &[Section]| -> Vec<Stored<R>> {
        let take = |section: &Section| Stored {
            section: *section,
            tensors: (0..section.tensors(op.count)).map(|_| next()).collect(),
        };
        sections.iter().map(take).collect()
    };
    let (inner, outer) = (stored(&op.inner), stored(&op.outer));
    let biases = op.biased.then(|| [next(), next()]);
    let added = match op.shared {
        Shared::None => None,
        Shared::Rows => Some((next(), None)),
        Shared::Gated => Some((next(), Some(next()))),
    };
    let size = op.size();
    let chosen = pairs / (x.meta.num_elements() / hidden);
    let arrangement =
        (pairs > Experts::FEW).then(|| Arrangement::of(&ids, op.count, Units::of::<R, F>(&x)));
    let sections = [inner.as_slice(), &outer];
    if let Some(arrangement) = &arrangement
        && biases.is_none()
        && let Some(rows) = quantised::experts::<R, F>(op, &x, sections, arrangement, chosen)?
    {
        if op.apart {
            return Ok(vec![shaped(rows, rows_of_all)]);
        }
        let y = empty(&x, shape, F::dtype());
        combine::combine::<R, F>(&rows, &weights, None, &x, added.as_ref(), &y);
        return Ok(vec![y]);
    }
    let times = |x: &CubeTensor<R>, share: usize, weight: &[Stored<R>], columns, rows: usize| {
        let y = empty(x, [pairs, rows], F::dtype());
        let flat = shaped(x.clone(), [x.meta.num_elements() / columns, columns]);
        let mut forms = Forms::of(&flat);
        let mut column = 0;
        for stored in weight {
            let weight = stored.words(columns);
            let (place, products) = (Place { share, column }, &op.products);
            match &arrangement {
                Some(arrangement) => {
                    let x = forms.for_weight::<F>(stored.section.storage);
                    tiles::multiply::<R, F>(x, &weight, arrangement, &y, place, products)?;
                }
                None => {
                    let experts = (&ids, op.count);
                    few::multiply::<R, F>(x, &weight, experts, &y, place, products)?;
                }
            }
            column += stored.section.rows;
        }
        Ok::<_, OperationError>(y)
    };
    let bias = |i: usize| biases.as_ref().map(|biases| (&ids, &biases[i]));
    let mut gated = None;
    if arrangement.is_none() && op.activation == Activation::Silu && biases.is_none() {
        let weights: Vec<_> = inner.iter().map(|stored| stored.words(hidden)).collect();
        let experts = (&ids, op.count);
        gated = few::multiply_gated::<R, F>(&x, &weights, experts, [chosen, size], &op.products)?;
    }
    let gated = match gated {
        Some(gated) => gated,
        None => {
            let wide = times(&x, chosen, &inner, hidden, 2 * size)?;
            activate::<R, F>(&wide, op.activation, bias(0))
        }
    };
    let rows = times(&gated, 1, &outer, size, hidden)?;
    if op.apart {
        return Ok(vec![shaped(rows, rows_of_all)]);
    }
    let y = empty(&x, shape, F::dtype());
    combine::combine::<R, F>(&rows, &weights, bias(1), &x, added.as_ref(), &y);
    Ok(vec![y])
}

impl<R: CubeRuntime> Stored<R> {
    /// The rows of all experts, of `columns` elements each.
    fn words(&self, columns: usize) -> Words<'_, R> {
        words_of(
            self.section.storage,
            columns,
            self.section.rows,
            &self.tensors,
        )
    }
}
