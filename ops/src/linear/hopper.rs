//! Products by the generated kernel with Hopper's matrix instructions.

use super::Products;
use crate::OperationError;
#[cfg(feature = "cuda")]
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// The kernel for a product, which it takes.
#[cfg(feature = "cuda")]
pub(super) struct OnHopper {
    product: butterfly_runtime::ReadyProduct,
    multiply: butterfly_runtime::Multiply,
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(super) enum OnHopper {}

#[cfg(not(feature = "cuda"))]
impl OnHopper {
    pub(super) fn find<R: CubeRuntime + Launches, F: FloatElement>(
        _: &CubeTensor<R>,
        _: &CubeTensor<R>,
        _: usize,
        _: &Products,
    ) -> Result<Option<Self>, OperationError> {
        Ok(None)
    }

    pub(super) fn starts_at(&self, _: usize) -> bool {
        match *self {}
    }

    pub(super) fn launch<R: CubeRuntime + Launches>(
        &self,
        _: &CubeTensor<R>,
        _: &CubeTensor<R>,
        _: &CubeTensor<R>,
        _: usize,
    ) -> Result<(), OperationError> {
        match *self {}
    }
}

#[cfg(feature = "cuda")]
impl OnHopper {
    /// The kernel for contiguous rows x [m, K] times a weight [N, K], whose results are N columns of a
    /// matrix of `width` columns; `None` if the device is no Hopper GPU, or if the kernel does not take
    /// the types or the shape: rows have to start at multiples of 16 bytes.
    pub(super) fn find<R: CubeRuntime + Launches, F: FloatElement>(
        x: &CubeTensor<R>,
        weight: &CubeTensor<R>,
        width: usize,
        products: &Products,
    ) -> Result<Option<Self>, OperationError> {
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
        let counted = [(m, k), (n, k), (m, width)];
        if !counted.iter().all(|(rows, row)| super::counts(*rows, *row)) {
            return Ok(None);
        }
        #[expect(clippy::cast_possible_truncation, reason = "32 bits count them all")]
        let [m, k, n, width] = [m, k, n, width].map(|n| n as u32);
        let multiply = butterfly_runtime::Multiply {
            shape: [m, n, k],
            rows: [k, k, width],
        };
        let product = products.find(dtype)?;
        let product = product.filter(|product| product.takes(&multiply));
        Ok(product.map(|product| Self { product, multiply }))
    }

    /// Whether results may start at this column: their address has to be a multiple of 16 bytes.
    pub(super) fn starts_at(&self, column: usize) -> bool {
        (column * self.product.dtype().bytes() as usize).is_multiple_of(16)
    }

    /// Computes the product of x and the weight for which it was found, into columns `column..` of y.
    pub(super) fn launch<R: CubeRuntime + Launches>(
        &self,
        x: &CubeTensor<R>,
        weight: &CubeTensor<R>,
        y: &CubeTensor<R>,
        column: usize,
    ) -> Result<(), OperationError> {
        let bytes = (column * self.product.dtype().bytes() as usize) as u64;
        let y = y.handle.clone().offset_start(bytes);
        let tensors = [&x.handle, &weight.handle, &y];
        Ok(self.product.launch(&x.client, &self.multiply, tensors)?)
    }
}
