//! Tensors and grids of a launch.

use crate::OperationError;
use ::cubecl::client::ComputeClient;
use ::cubecl::features::Plane;
use ::cubecl::prelude::*;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_std::Metadata;
use butterfly_ir::Sm;
use butterfly_runtime::{Device, LaunchError, find};
use std::sync::OnceLock;

/// Compute capability of the NVIDIA device, queried once per process.
///
/// # Errors
/// [`OperationError::Launch`] if there is no such device.
pub fn capability() -> Result<Sm, OperationError> {
    static FOUND: OnceLock<Result<Sm, String>> = OnceLock::new();
    let ask = || {
        find(Device::Cuda)?
            .sm
            .ok_or("it has no compute capability".into())
    };
    let device = Device::Cuda;
    FOUND
        .get_or_init(ask)
        .clone()
        .map_err(|reason| OperationError::Launch(LaunchError::Missing { device, reason }))
}

/// The tensor with a contiguous last dimension and elements whose offsets fit 32 bits; it is rarely
/// necessary to copy it.
pub(crate) fn dense_rows<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let steps = shape.iter().zip(strides.iter());
    let reach = steps.fold(1u64, |reach, (n, stride)| {
        let step = (*n as u64).saturating_sub(1).saturating_mul(*stride as u64);
        reach.saturating_add(step)
    });
    match strides.last() {
        Some(1) if reach <= u32::MAX.into() => x,
        _ => into_contiguous(x),
    }
}

/// The tensor with contiguous memory that no other tensor shares, to be updated in place. Rows of a copy
/// can have gaps, as those of the tensor that was copied.
pub(crate) fn owned<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    match x.can_mut() {
        true => into_contiguous(x),
        false => into_contiguous(x.copy()),
    }
}

/// A new contiguous tensor on the device of `like`, uninitialised.
pub fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let shape = shape.into();
    let handle = like.client.empty(shape.num_elements() * dtype.size());
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, shape, handle, dtype)
}

/// A view of the first elements of each vector [.., D], of which there are at least so many.
pub fn first_elements<R: CubeRuntime>(x: &CubeTensor<R>, length: usize) -> CubeTensor<R> {
    let (mut shape, strides) = (x.meta.shape().to_vec(), x.meta.strides().to_vec());
    if let Some(last) = shape.last_mut() {
        *last = length;
    }
    view(x, shape, strides)
}

/// A view of a tensor from its first element on, of which all that shape and strides reach exist.
pub(crate) fn view<R: CubeRuntime>(
    x: &CubeTensor<R>,
    shape: Vec<usize>,
    strides: Vec<usize>,
) -> CubeTensor<R> {
    let (client, handle, device) = (x.client.clone(), x.handle.clone(), x.device.clone());
    CubeTensor::new(
        client,
        handle,
        Metadata::new(shape, strides),
        device,
        x.dtype,
    )
}

/// A contiguous tensor in another shape of no more elements.
pub(crate) fn shaped<R: CubeRuntime>(x: CubeTensor<R>, shape: impl Into<Shape>) -> CubeTensor<R> {
    CubeTensor::new_contiguous(x.client, x.device, shape.into(), x.handle, x.dtype)
}

/// The whole buffer from a tensor's first element on, as an argument of a kernel.
///
/// # Safety
/// Kernels that are launched without bounds checks must not index past the end of the buffer.
pub(crate) unsafe fn array<R: CubeRuntime>(x: &CubeTensor<R>) -> ArrayArg<R> {
    let bytes = usize::try_from(x.handle.size_in_used()).expect("a buffer fits the address space");
    let length = bytes / x.dtype.size();
    // SAFETY: the length is that of the buffer.
    unsafe { ArrayArg::from_raw_parts(x.handle.clone(), length) }
}

/// A grid of at least `count` workgroups: two-dimensional, and possibly with a few more, if one
/// dimension cannot hold them.
pub(crate) fn grid(count: u32) -> CubeCount {
    const MOST: u32 = 65_535;
    match count <= MOST {
        true => CubeCount::Static(count, 1, 1),
        false => CubeCount::Static(MOST, count.div_ceil(MOST), 1),
    }
}

/// Units of a plane, on devices where all planes have the same size and can sum over their units;
/// else 0.
pub(crate) fn plane<R: CubeRuntime>(client: &ComputeClient<R>) -> u32 {
    let properties = client.properties();
    let (least, most) = (
        properties.hardware.plane_size_min,
        properties.hardware.plane_size_max,
    );
    match properties.features.plane.contains(Plane::Ops) && least == most {
        true => least,
        false => 0,
    }
}
