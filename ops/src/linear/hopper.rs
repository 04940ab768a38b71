//! Products by the generated kernel with Hopper's matrix instructions.

use super::Products;
use crate::OperationError;
use crate::cube::launch::empty;
use ::cubecl::client::ComputeClient;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::{Launches, Written};

/// A matrix within a tensor's memory, its rows contiguous.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only that kernel reads it")
)]
pub(crate) struct Matrix<'a, R: CubeRuntime> {
    pub(crate) tensor: &'a CubeTensor<R>,
    /// The first element.
    pub(crate) first: usize,
    /// Elements from one row to the next.
    pub(crate) step: usize,
    /// Elements from one matrix to the next, where several are multiplied.
    pub(crate) apart: usize,
}

/// Where results go: the first element, elements from one row to the next and from one matrix to the next, and how many
/// matrices there are.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only that kernel reads it")
)]
pub(crate) struct To {
    pub(crate) first: usize,
    pub(crate) step: usize,
    pub(crate) apart: usize,
    pub(crate) count: usize,
}

/// The element type, if it has 16 bits and the device is a Hopper GPU.
///
/// # Errors
/// If the device cannot be asked.
pub(crate) fn element<R: CubeRuntime + Launches, F: FloatElement>(
    client: &ComputeClient<R>,
) -> Result<Option<butterfly_ir::Dtype>, OperationError> {
    of_type(F::dtype(), client)
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(crate) fn of_type<R: CubeRuntime + Launches>(
    _: DType,
    _: &ComputeClient<R>,
) -> Result<Option<butterfly_ir::Dtype>, OperationError> {
    Ok(None)
}

/// As [`element`], of elements of type `dtype`.
#[cfg(feature = "cuda")]
pub(crate) fn of_type<R: CubeRuntime + Launches>(
    dtype: DType,
    client: &ComputeClient<R>,
) -> Result<Option<butterfly_ir::Dtype>, OperationError> {
    let dtype = match dtype {
        DType::F16 => butterfly_ir::Dtype::F16,
        DType::BF16 => butterfly_ir::Dtype::Bf16,
        _ => return Ok(None),
    };
    let cuda = R::device(client) == butterfly_runtime::Device::Cuda;
    let hopper = cuda && crate::cube::launch::capability()?.version == 90;
    Ok(hopper.then_some(dtype))
}

/// The product of x [m, K] and a weight [N, K], of `shape` m, N, K, written to the matrix y [m, N] that begins at
/// element `first` of the tensor which `y` returns, with `step` elements from one row to the next.
///
/// `None`, without a call of `y`, if the device is no Hopper GPU, or if the kernel does not take the types or the
/// shape: matrices and rows have to start at multiples of 16 bytes.
pub(crate) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    factors: [Matrix<'_, R>; 2],
    shape: [usize; 3],
    to: [usize; 2],
    products: &Products,
    y: impl FnOnce() -> CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    launch::<R, F>(factors, shape, To::one(to), Written::Rounded, products, y)
}

/// As [`multiply`], of several matrices x and as many weights, such as those of heads, in one launch.
pub(crate) fn multiply_each<R: CubeRuntime + Launches, F: FloatElement>(
    factors: [Matrix<'_, R>; 2],
    shape: [usize; 3],
    to: To,
    products: &Products,
    y: impl FnOnce() -> CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    launch::<R, F>(factors, shape, to, Written::Rounded, products, y)
}

/// The product of contiguous rows x [m, K] and a weight [N, K] as f32 [m, N]; `None` as for [`multiply`].
pub(crate) fn multiply_wide<R: CubeRuntime + Launches, F: FloatElement>(
    [x, weight]: [&CubeTensor<R>; 2],
    products: &Products,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    let [m, k, n] = [x.meta.shape()[0], x.meta.shape()[1], weight.meta.shape()[0]];
    let y = || empty(x, [m, n], DType::F32);
    let factors = [x, weight].map(Matrix::all);
    launch::<R, F>(
        factors,
        [m, n, k],
        To::one([0, n]),
        Written::Wide,
        products,
        y,
    )
}

/// As [`multiply`], of a weight [2 N, K], of which silu of the first half's products multiplies the second half's.
pub(crate) fn multiply_gated<R: CubeRuntime + Launches, F: FloatElement>(
    factors: [Matrix<'_, R>; 2],
    shape: [usize; 3],
    to: [usize; 2],
    products: &Products,
    y: impl FnOnce() -> CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    launch::<R, F>(factors, shape, To::one(to), Written::Gated, products, y)
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
fn launch<R: CubeRuntime + Launches, F: FloatElement>(
    _: [Matrix<'_, R>; 2],
    _: [usize; 3],
    _: To,
    _: Written,
    _: &Products,
    _: impl FnOnce() -> CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    Ok(None)
}

#[cfg(feature = "cuda")]
fn launch<R: CubeRuntime + Launches, F: FloatElement>(
    [x, weight]: [Matrix<'_, R>; 2],
    shape: [usize; 3],
    to: To,
    written: Written,
    products: &Products,
    y: impl FnOnce() -> CubeTensor<R>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    let device = &x.tensor.client;
    let Some(dtype) = element::<R, F>(device)? else {
        return Ok(None);
    };
    if weight.tensor.dtype != F::dtype() {
        return Ok(None);
    }
    let [m, n, _] = shape;
    let steps = [x.step, weight.step, to.step];
    let apart = [x.apart, weight.apart, to.apart];
    let weight_rows = match written {
        Written::Rounded | Written::Wide => n,
        Written::Gated => n.saturating_mul(2),
    };
    let mut reaches = [m, weight_rows, m].into_iter().zip(steps);
    let counted = reaches.all(|(rows, step)| super::counts(rows, step))
        && apart.iter().all(|apart| super::counts(to.count, *apart));
    let starts = [x.first, weight.first, to.first].map(|first| first * F::dtype().size());
    if !counted || starts.iter().any(|at| !at.is_multiple_of(16)) {
        return Ok(None);
    }
    #[expect(clippy::cast_possible_truncation, reason = "32 bits count them all")]
    let multiply = butterfly_runtime::Multiply {
        shape: shape.map(|n| n as u32),
        rows: steps.map(|n| n as u32),
        count: to.count as u32,
        apart: apart.map(|n| n as u32),
        written,
    };
    let product = products.find(dtype)?;
    let Some(product) = product.filter(|product| product.takes(&multiply)) else {
        return Ok(None);
    };
    let y = y();
    let tensors = [x.tensor, weight.tensor, &y].into_iter().zip(starts);
    let from =
        |(tensor, start): (&CubeTensor<R>, usize)| tensor.handle.clone().offset_start(start as u64);
    let handles: Vec<_> = tensors.map(from).collect();
    product.launch(device, &multiply, [&handles[0], &handles[1], &handles[2]])?;
    Ok(Some(y))
}

impl<'a, R: CubeRuntime> Matrix<'a, R> {
    /// All of a contiguous tensor of two dimensions.
    pub(crate) fn all(tensor: &'a CubeTensor<R>) -> Self {
        Self {
            tensor,
            first: 0,
            step: tensor.meta.shape()[1],
            apart: 0,
        }
    }
}

impl To {
    fn one([first, step]: [usize; 2]) -> Self {
        Self {
            first,
            step,
            apart: 0,
            count: 1,
        }
    }
}
