//! Products of quantised rows by the generated kernel for Hopper.

use super::cube::Quantised;
use crate::OperationError;
use crate::experts::GroupedProducts;
use crate::linear::packed::cube::Words;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// Pairs of rows and experts, sorted by expert.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only that kernel reads it")
)]
pub(crate) struct Listed<'a, R: CubeRuntime> {
    /// [pairs].
    pub(crate) order: &'a CubeTensor<R>,
    /// Where the pairs of each expert begin in the order, [experts + 1].
    pub(crate) offsets: &'a CubeTensor<R>,
    /// The expert of each tile of pairs, and the number of the tile among those of the expert, [tiles, 2].
    pub(crate) tiles: &'a CubeTensor<R>,
    /// Whether products go to the rows that the order names.
    pub(crate) scattered: bool,
}

/// What silu of products multiplies.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only that kernel reads it")
)]
pub(crate) enum Gates<'a, R: CubeRuntime> {
    /// Nothing.
    None,
    /// Of those with the first half of the weight's rows: those with the second.
    Together,
    /// Of those with the weight: those with another one, which is stored in the same way.
    Apart(&'a Words<'a, R>),
}

/// What is multiplied with what.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only that kernel reads it")
)]
pub(crate) struct Product<'a, R: CubeRuntime> {
    pub(crate) weight: &'a Words<'a, R>,
    /// What gates the products.
    pub(crate) gates: Gates<'a, R>,
    pub(crate) listed: Option<&'a Listed<'a, R>>,
    /// The number of rows of x.
    pub(crate) rows: usize,
    /// Elements of a row of y, and the column of the first product.
    pub(crate) width: usize,
    pub(crate) column: usize,
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(crate) fn takes<R: CubeRuntime + Launches, F: FloatElement>(
    _: &Product<'_, R>,
    _: &GroupedProducts,
) -> Result<bool, OperationError> {
    Ok(false)
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(crate) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    _: &Quantised<R>,
    _: &Product<'_, R>,
    _: &CubeTensor<R>,
    _: &GroupedProducts,
) -> Result<bool, OperationError> {
    Ok(false)
}

/// Whether the kernel takes such a product: the device is a Hopper GPU, and types and sizes are those that it has.
///
/// # Errors
/// If a kernel cannot be made.
#[cfg(feature = "cuda")]
pub(crate) fn takes<R: CubeRuntime + Launches, F: FloatElement>(
    product: &Product<'_, R>,
    products: &GroupedProducts,
) -> Result<bool, OperationError> {
    Ok(ready::<R, F>(product, products)?.is_some())
}

/// Writes products of quantised rows to columns of y. Returns whether it did, which it does if [`takes`] says so and
/// tensors start at multiples of 16 bytes.
///
/// # Errors
/// If a kernel cannot be made or launched.
#[cfg(feature = "cuda")]
pub(crate) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    x: &Quantised<R>,
    product: &Product<'_, R>,
    y: &CubeTensor<R>,
    products: &GroupedProducts,
) -> Result<bool, OperationError> {
    use crate::linear::few::{starts_whole, tensors};
    use butterfly_runtime::QuantisedTensors;

    let Some((ready, sizes)) = ready::<R, F>(product, products)? else {
        return Ok(false);
    };
    let [words, scales, _] = tensors(product.weight);
    let [other_words, other_scales, _] = match product.gates {
        Gates::None | Gates::Together => tensors(product.weight),
        Gates::Apart(other) => tensors(other),
    };
    let given = [words, scales, other_words, other_scales, y];
    if !given.into_iter().all(starts_whole) {
        return Ok(false);
    }
    let tensors = QuantisedTensors {
        x: &x.words.handle,
        factors: &x.factors.handle,
        words: &words.handle,
        scales: &scales.handle,
        other_words: &other_words.handle,
        other_scales: &other_scales.handle,
        order: &product.listed.map_or(y, |listed| listed.order).handle,
        offsets: &product.listed.map_or(y, |listed| listed.offsets).handle,
        tiles: &product.listed.map_or(y, |listed| listed.tiles).handle,
        y: &y.handle,
    };
    ready.launch_quantised(&y.client, &sizes, &tensors)?;
    Ok(true)
}

/// The kernel for such a product, and what it is told of its sizes; `None` if there is none for it.
#[cfg(feature = "cuda")]
fn ready<R: CubeRuntime + Launches, F: FloatElement>(
    product: &Product<'_, R>,
    products: &GroupedProducts,
) -> Result<
    Option<(
        butterfly_runtime::ReadyGrouped,
        butterfly_runtime::QuantisedSizes,
    )>,
    OperationError,
> {
    use butterfly_runtime::{FewGates, QuantisedExperts, QuantisedSizes};

    let weight = product.weight;
    let Some(dtype) = crate::linear::hopper::element::<R, F>(&weight.tensors[0].client)? else {
        return Ok(None);
    };
    let wanted = crate::linear::few::wanted(dtype, weight, F::dtype());
    let Some(wanted) = wanted.filter(butterfly_ir::Grouped::has_quantised) else {
        return Ok(None);
    };
    let (of_row, gates) = match &product.gates {
        Gates::None => (weight.rows, FewGates::None),
        Gates::Together => (weight.rows / 2, FewGates::Together),
        Gates::Apart(other) if (other.rows, other.format) == (weight.rows, weight.format) => {
            (weight.rows, FewGates::Apart)
        }
        Gates::Apart(_) => return Ok(None),
    };
    let elements = |tensor: &CubeTensor<R>| tensor.meta.num_elements();
    let (experts, tiles) = match product.listed {
        Some(listed) => (elements(listed.offsets) - 1, elements(listed.tiles) / 2),
        None => (1, 1),
    };
    let Product {
        rows,
        width,
        column,
        ..
    } = *product;
    let counts = [of_row, rows, width, column, experts, tiles].map(u32::try_from);
    let [
        Ok(of_row),
        Ok(pairs),
        Ok(width),
        Ok(column),
        Ok(count),
        Ok(tiles),
    ] = counts
    else {
        return Ok(None);
    };
    let sizes = QuantisedSizes {
        rows: of_row,
        pairs,
        experts: product.listed.map(|listed| QuantisedExperts {
            count,
            tiles,
            scattered: listed.scattered,
        }),
        column,
        width,
        gates,
    };
    let ready = products.find(wanted)?;
    let ready = ready.filter(|ready| ready.takes_quantised(&sizes));
    Ok(ready.map(|ready| (ready, sizes)))
}
