//! Products by the generated kernel with Hopper's matrix instructions.

use super::Products;
use crate::OperationError;
#[cfg(feature = "cuda")]
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(super) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    _: [&CubeTensor<R>; 2],
    _: [usize; 2],
    _: &Products,
    _: impl FnOnce() -> CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    Ok(None)
}

/// The product of contiguous rows x [m, K] and a weight [N, K], written to the columns from `column` on
/// of the matrix of `width` columns that `y` returns.
///
/// `None`, without a call of `y`, if the device is no Hopper GPU, or if the kernel does not take the
/// types or the shape: rows and results have to start at multiples of 16 bytes.
#[cfg(feature = "cuda")]
pub(super) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    [x, weight]: [&CubeTensor<R>; 2],
    [width, column]: [usize; 2],
    products: &Products,
    y: impl FnOnce() -> CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    let dtype = match F::dtype() {
        DType::F16 => butterfly_ir::Dtype::F16,
        DType::BF16 => butterfly_ir::Dtype::Bf16,
        _ => return Ok(None),
    };
    let cuda = R::device(&x.client) == butterfly_runtime::Device::Cuda;
    if !cuda || weight.dtype != F::dtype() || crate::cube::launch::capability()?.version != 90 {
        return Ok(None);
    }
    let [m, k, n] = [x.shape()[0], x.shape()[1], weight.shape()[0]];
    let start = column * F::dtype().size();
    let counted = [(m, k), (n, k), (m, width)];
    let counted = counted.iter().all(|(rows, row)| super::counts(*rows, *row));
    if !counted || !start.is_multiple_of(16) {
        return Ok(None);
    }
    #[expect(clippy::cast_possible_truncation, reason = "32 bits count them all")]
    let [m, k, n, width] = [m, k, n, width].map(|n| n as u32);
    let multiply = butterfly_runtime::Multiply {
        shape: [m, n, k],
        rows: [k, k, width],
    };
    let product = products.find(dtype)?;
    let Some(product) = product.filter(|product| product.takes(&multiply)) else {
        return Ok(None);
    };
    let y = y();
    let columns = y.handle.clone().offset_start(start as u64);
    product.launch(&x.client, &multiply, [&x.handle, &weight.handle, &columns])?;
    Ok(Some(y))
}
