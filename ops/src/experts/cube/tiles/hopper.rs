//! Tiles by generated kernels with Hopper's matrix instructions.

use super::{Arrangement, Place};
use crate::OperationError;
use crate::experts::GroupedProducts;
use crate::linear::packed::cube::Words;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(super) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    _: &CubeTensor<R>,
    _: &Words<'_, R>,
    _: &Arrangement<R>,
    _: &CubeTensor<R>,
    _: Place,
    _: &GroupedProducts,
) -> Result<bool, OperationError> {
    Ok(false)
}

/// Computes the products of [`tiles::multiply`](super::multiply), and returns whether it did.
///
/// It does not if the device is no Hopper GPU, or if there is no kernel for the types, the format or the sizes: rows and
/// tensors have to start at multiples of 16 bytes.
///
/// # Errors
/// If a kernel cannot be made or launched.
#[cfg(feature = "cuda")]
pub(super) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    x: &CubeTensor<R>,
    weight: &Words<'_, R>,
    arrangement: &Arrangement<R>,
    y: &CubeTensor<R>,
    place: Place,
    products: &GroupedProducts,
) -> Result<bool, OperationError> {
    use crate::linear::few::{starts_whole, tensors, wanted};
    use butterfly_ir::Grouped;
    use butterfly_runtime::{GroupedSizes, GroupedTensors};

    if arrangement.units.tile() != Grouped::PAIRS {
        return Ok(false);
    }
    let Some(dtype) = crate::linear::hopper::element::<R, F>(&x.client)? else {
        return Ok(false);
    };
    let Some(wanted) = wanted(dtype, weight, F::dtype()) else {
        return Ok(false);
    };
    let [words, scales, biases] = tensors(weight);
    if ![x, words, scales, biases, y].into_iter().all(starts_whole) {
        return Ok(false);
    }
    let [pairs, width] = [0usize, 1].map(|i| y.meta.shape()[i]);
    let experts = arrangement.offsets.meta.num_elements() - 1;
    let counts = [
        weight.rows,
        experts,
        pairs,
        place.share,
        arrangement.count,
        place.column,
        width,
    ];
    let counts = counts.map(u32::try_from);
    let [
        Ok(rows),
        Ok(experts),
        Ok(pairs),
        Ok(share),
        Ok(tiles),
        Ok(column),
        Ok(width),
    ] = counts
    else {
        return Ok(false);
    };
    let sizes = GroupedSizes {
        rows,
        experts,
        pairs,
        share,
        tiles,
        column,
        width,
    };
    let product = products.find(wanted)?;
    let Some(product) = product.filter(|product| product.takes(&sizes)) else {
        return Ok(false);
    };
    let tensors = GroupedTensors {
        x: &x.handle,
        words: &words.handle,
        scales: &scales.handle,
        biases: &biases.handle,
        order: &arrangement.order.handle,
        offsets: &arrangement.offsets.handle,
        tiles: &arrangement.tiles.handle,
        y: &y.handle,
    };
    product.launch(&x.client, &sizes, &tensors)?;
    Ok(true)
}
