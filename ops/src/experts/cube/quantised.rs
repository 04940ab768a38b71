//! Many pairs in FP8 times weights in FP8: pairs stay in the order of their experts from the first product to the last.

use super::Stored;
use super::arrange::Arrangement;
use super::tiles::Units;
use crate::OperationError;
use crate::cube::launch::empty;
use crate::experts::Experts;
use crate::gate::Activation;
use crate::gate::cube::activate;
use crate::linear::packed::cube::Words;
use crate::linear::quantised::cube::{Quantised, picked, quantised};
use crate::linear::quantised::hopper::{Gates, Listed, Product, multiply, takes};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// The rows of all pairs [pairs, H], of x [.., H] of which each row has `chosen` pairs; `None` if a weight does not want
/// quantised rows, or if there is no kernel for the sizes.
///
/// # Errors
/// If a kernel cannot be made or launched.
pub(super) fn experts<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Experts,
    x: &CubeTensor<R>,
    [inner, outer]: [&[Stored<R>]; 2],
    arrangement: &Arrangement<R>,
    chosen: usize,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    let pairs = arrangement.order.meta.num_elements();
    let hidden = *x.meta.shape().last().expect("rows");
    let size = op.size();
    let mut all = inner.iter().chain(outer);
    if !all.all(|stored| stored.section.storage.quantises()) || arrangement.units != Units::Matrix {
        return Ok(None);
    }
    let [sorted, scattered] = [false, true].map(|scattered| Listed {
        order: &arrangement.order,
        offsets: &arrangement.offsets,
        tiles: &arrangement.tiles,
        scattered,
    });
    let [inner, outer] = [(inner, hidden), (outer, size)].map(|(stored, k)| words(stored, k));
    let silu = op.activation == Activation::Silu;
    let (first, gated) = match inner.as_slice() {
        [both] if silu => {
            let product = product((both, Gates::Together), &sorted, [pairs, size, 0]);
            (vec![product], true)
        }
        [gate, up] if silu => {
            let product = product((gate, Gates::Apart(up)), &sorted, [pairs, size, 0]);
            (vec![product], true)
        }
        sections => (products(sections, &sorted, pairs), false),
    };
    let second = products(&outer, &scattered, pairs);
    for product in first.iter().chain(&second) {
        if !takes::<R, F>(product, &op.products)? {
            return Ok(None);
        }
    }
    let times = |x: &Quantised<R>, products: &[Product<'_, R>]| {
        let y = empty(&x.words, [pairs, products[0].width], F::dtype());
        for product in products {
            if !multiply::<R, F>(x, product, &y, &op.products)? {
                return Ok(None);
            }
        }
        Ok::<_, OperationError>(Some(y))
    };
    let x = picked(&quantised::<R, F>(x), &arrangement.order, chosen);
    let Some(wide) = times(&x, &first)? else {
        return Ok(None);
    };
    let rows = match gated {
        true => wide,
        false => activate::<R, F>(&wide, op.activation, None),
    };
    times(&quantised::<R, F>(&rows), &second)
}

/// The rows of all experts in each section.
fn words<R: CubeRuntime>(stored: &[Stored<R>], columns: usize) -> Vec<Words<'_, R>> {
    let words = stored.iter().map(|stored| stored.words(columns));
    words.collect()
}

/// The products with the sections of a weight, side by side.
fn products<'a, R: CubeRuntime>(
    sections: &'a [Words<'a, R>],
    listed: &'a Listed<'a, R>,
    rows: usize,
) -> Vec<Product<'a, R>> {
    let width = sections.iter().map(|weight| weight.rows).sum();
    let mut column = 0;
    let product = |weight: &'a Words<'a, R>| {
        let first = column;
        column += weight.rows;
        product((weight, Gates::None), listed, [rows, width, first])
    };
    sections.iter().map(product).collect()
}

fn product<'a, R: CubeRuntime>(
    (weight, gates): (&'a Words<'a, R>, Gates<'a, R>),
    listed: &'a Listed<'a, R>,
    [rows, width, column]: [usize; 3],
) -> Product<'a, R> {
    Product {
        weight,
        gates,
        listed: Some(listed),
        rows,
        width,
        column,
    }
}
