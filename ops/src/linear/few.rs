//! Products of a few rows with a packed weight, by generated kernels for Hopper that read the weight at the speed of memory.

use super::packed::cube::Words;
use crate::OperationError;
use crate::experts::GroupedProducts;
use crate::normed::cube::{Given, Kept};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// Which rows of x are multiplied with which weight.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only those kernels read it")
)]
pub(crate) enum Pairs<'a, R: CubeRuntime> {
    /// All rows with the one weight that there is.
    Rows,
    /// A row with the weight of its expert, for each pair.
    Experts {
        /// The expert of each pair, 32 bits.
        ids: &'a CubeTensor<R>,
        /// Number of experts; other ids stand for the last one.
        experts: usize,
        /// Consecutive pairs that share a row.
        share: usize,
    },
}

/// The rows of the weight, or of that of an expert.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only those kernels read it")
)]
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a, R: CubeRuntime> {
    /// All of them.
    All(&'a Words<'a, R>),
    /// The second half, multiplied with silu of the products of the first.
    Gated(&'a Words<'a, R>),
    /// Those of the second weight, multiplied with silu of the products of the first, which is stored in the same way.
    GatedBy([&'a Words<'a, R>; 2]),
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(crate) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    _: &CubeTensor<R>,
    _: Rows<'_, R>,
    _: Pairs<'_, R>,
    _: &CubeTensor<R>,
    _: usize,
    _: &GroupedProducts,
) -> Result<bool, OperationError> {
    Ok(false)
}

/// Writes the products of a few rows of x, contiguous, to columns from `column` on of y, which has a row for each of them
/// or for each pair. Returns whether it did.
///
/// It does not if the device is no Hopper GPU, or if there is no kernel for the types, the format or the sizes: rows of x
/// and tensors of the weight have to start at multiples of 16 bytes.
///
/// # Errors
/// If a kernel cannot be made or launched.
#[cfg(feature = "cuda")]
pub(crate) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    x: &CubeTensor<R>,
    rows: Rows<'_, R>,
    pairs: Pairs<'_, R>,
    y: &CubeTensor<R>,
    column: usize,
    products: &GroupedProducts,
) -> Result<bool, OperationError> {
    use butterfly_runtime::{FewGates, FewPairs, FewSizes, FewTensors};

    let (weight, apart, count, gates) = match rows {
        Rows::All(weight) => (weight, weight, weight.rows, FewGates::None),
        Rows::Gated(weight) => (weight, weight, weight.rows / 2, FewGates::Together),
        Rows::GatedBy([weight, apart]) => (weight, apart, weight.rows, FewGates::Apart),
    };
    if apart.format != weight.format || apart.rows != weight.rows {
        return Ok(false);
    }

    let Some(dtype) = super::hopper::element::<R, F>(&x.client)? else {
        return Ok(false);
    };
    let Some(wanted) = wanted(dtype, weight, F::dtype()) else {
        return Ok(false);
    };
    let [words, scales, biases] = tensors(weight);
    let apart = tensors(apart);
    let given = [x, words, scales, biases].into_iter().chain(apart);
    if !given.into_iter().all(starts_whole) {
        return Ok(false);
    }
    let [multiplied, width] = [0usize, 1].map(|i| y.meta.shape()[i]);
    let (ids, [experts, share]) = match pairs {
        Pairs::Rows => (None, [1, 1]),
        Pairs::Experts {
            ids,
            experts,
            share,
        } => (Some(ids), [experts, share]),
    };
    let counts = [count, multiplied, width, column, experts, share].map(u32::try_from);
    let [
        Ok(rows),
        Ok(multiplied),
        Ok(width),
        Ok(column),
        Ok(experts),
        Ok(share),
    ] = counts
    else {
        return Ok(false);
    };
    let sizes = FewSizes {
        rows,
        pairs: match ids {
            None => FewPairs::Rows(multiplied),
            Some(_) => FewPairs::Experts {
                experts,
                pairs: multiplied,
                share,
            },
        },
        column,
        width,
        gates,
    };
    let product = products.find(wanted)?;
    let Some(product) = product.filter(|product| product.takes_few(&sizes)) else {
        return Ok(false);
    };
    let tensors = FewTensors {
        x: &x.handle,
        words: &words.handle,
        scales: &scales.handle,
        biases: &biases.handle,
        apart: apart.map(|tensor| &tensor.handle),
        ids: &ids.unwrap_or(x).handle,
        y: &y.handle,
    };
    product.launch_few(&x.client, &sizes, &tensors)?;
    Ok(true)
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(crate) fn multiply_normed<R: CubeRuntime + Launches, F: FloatElement>(
    _: &Given<R>,
    _: Rows<'_, R>,
    _: &Kept<R>,
    _: &CubeTensor<R>,
    _: &GroupedProducts,
) -> Result<bool, OperationError> {
    Ok(false)
}

/// As [`multiply`], of norms of a few rows, from the first column of y on; writes what is wanted of sums and norms too.
///
/// # Errors
/// If a kernel cannot be made or launched.
#[cfg(feature = "cuda")]
pub(crate) fn multiply_normed<R: CubeRuntime + Launches, F: FloatElement>(
    given: &Given<R>,
    rows: Rows<'_, R>,
    kept: &Kept<R>,
    y: &CubeTensor<R>,
    products: &GroupedProducts,
) -> Result<bool, OperationError> {
    use butterfly_runtime::{NormedSizes, NormedTensors};

    let (weight, count, gated) = match rows {
        Rows::All(weight) => (weight, weight.rows, false),
        Rows::Gated(weight) => (weight, weight.rows / 2, true),
        Rows::GatedBy(_) => return Ok(false),
    };
    let Some(dtype) = super::hopper::element::<R, F>(&given.x.client)? else {
        return Ok(false);
    };
    let Some(wanted) = wanted(dtype, weight, F::dtype()) else {
        return Ok(false);
    };
    let [words, scales, biases] = tensors(weight);
    let x = &given.x;
    let (added, factors) = (given.added.as_ref(), given.factors.as_ref());
    let (added_or_x, factors_or_x) = (added.unwrap_or(x), factors.unwrap_or(x));
    let sums = kept.sums.as_ref();
    let norms = kept.norms.as_ref();
    let read = [x, added_or_x, &given.norm, words, scales, biases];
    let written = [sums.unwrap_or(x), norms.unwrap_or(x)];
    if !read.into_iter().chain(written).all(starts_whole) {
        return Ok(false);
    }
    let counts = [count, given.rows(), y.meta.shape()[1], given.terms()].map(u32::try_from);
    let [Ok(rows), Ok(count), Ok(width), Ok(terms)] = counts else {
        return Ok(false);
    };
    let sizes = NormedSizes {
        rows,
        count,
        column: 0,
        width,
        gated,
        terms,
        weighted: factors.is_some(),
        sums: sums.is_some(),
        norms: norms.is_some(),
        epsilon: given.epsilon,
    };
    let product = products.find(wanted)?;
    let Some(product) = product.filter(|product| product.takes_normed(&sizes)) else {
        return Ok(false);
    };
    let tensors = NormedTensors {
        x: &x.handle,
        added: &added_or_x.handle,
        factors: &factors_or_x.handle,
        norm: &given.norm.handle,
        words: &words.handle,
        scales: &scales.handle,
        biases: &biases.handle,
        sums: &sums.unwrap_or(y).handle,
        norms: &norms.unwrap_or(y).handle,
        y: &y.handle,
    };
    product.launch_normed(&x.client, &sizes, &tensors)?;
    Ok(true)
}

/// The kernels for such a weight beside activations of this type; `None` if there are none.
#[cfg(feature = "cuda")]
pub(crate) fn wanted<R: CubeRuntime>(
    dtype: butterfly_ir::Dtype,
    weight: &Words<'_, R>,
    activations: burn::tensor::DType,
) -> Option<butterfly_ir::Grouped> {
    use super::{Packed, Storage};
    use butterfly_ir::{Grouped, GroupedFormat};
    let format = match weight.format.storage {
        Storage::Dense(stored) if stored == activations => GroupedFormat::Dense,
        Storage::Packed(Packed::Affine {
            bits: 4,
            group,
            scales,
        }) => GroupedFormat::Affine4 { group, scales },
        Storage::Packed(Packed::Float8 { scales, .. }) => GroupedFormat::Float8 { scales },
        Storage::Packed(Packed::Microscaled) => GroupedFormat::Microscaled,
        Storage::Dense(_) | Storage::Packed(_) => return None,
    };
    Grouped::of(dtype, format, weight.format.columns)
}

/// The tensors of a weight. Formats without scales or biases are given the first one in their place.
#[cfg(feature = "cuda")]
pub(crate) fn tensors<'a, R: CubeRuntime>(weight: &Words<'a, R>) -> [&'a CubeTensor<R>; 3] {
    [0, 1, 2].map(|i| weight.tensors.get(i).unwrap_or(&weight.tensors[0]))
}

/// Whether a tensor starts at a multiple of 16 bytes: views of a larger one may start anywhere.
#[cfg(feature = "cuda")]
pub(crate) fn starts_whole<R: CubeRuntime>(tensor: &CubeTensor<R>) -> bool {
    let start = tensor.handle.offset_start.unwrap_or_default();
    start.is_multiple_of(16)
}
