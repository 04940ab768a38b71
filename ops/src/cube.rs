//! The operations on CubeCL's runtimes: small kernels that work on whole rows, written once in CubeCL
//! for all runtimes.
//!
//! In CubeCL's terms a *unit* is a thread, a *plane* a warp or subgroup, a *cube* a workgroup.

use crate::{Limits, Operation, OperationError, delta, gate, heads, linear, norm};
use ::cubecl::client::ComputeClient;
use ::cubecl::features::Plane;
use ::cubecl::ir::DeviceProperties;
use ::cubecl::prelude::*;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_ir::Sm;
use butterfly_runtime::{Device, LaunchError, Launches, find};
use half::{bf16, f16};
use std::sync::OnceLock;

/// Checks that a device can run `operation` on `inputs`, which fit it and give `outputs`.
///
/// # Errors
/// [`OperationError::Limit`] if a tensor is too large; [`OperationError::Argument`] for an element
/// type, a number of heads or a head size that the device has no kernels for.
pub fn check(
    operation: &Operation,
    inputs: &[(Shape, DType)],
    outputs: &[(Shape, DType)],
    device: &DeviceProperties,
) -> Result<(), OperationError> {
    let limits = Limits {
        inputs: crate::Inputs {
            operation: operation.name(),
            names: operation.inputs(),
            inputs,
        },
        device,
    };
    // Outputs that need new memory: the caches of `Append` are updated in place.
    let mut new = outputs;
    match operation {
        Operation::Append(op) => {
            op.limits(&limits)?;
            new = &outputs[..1];
        }
        Operation::Delta(op) => op.limits(&limits)?,
        Operation::Norm(_) | Operation::AddNorm(_) => norm::limits(&limits)?,
        Operation::Gated(_) | Operation::GateOutput(_) => gate::limits(&limits)?,
        // `project` chooses a kernel that can index the product.
        Operation::Project(_) => {}
    }
    limits.element_types(outputs)?;
    limits.memory(new)
}

/// Runs `operation` on inputs that fit it, on a device for which [`check`] has passed.
///
/// # Errors
/// If a kernel for a matrix product cannot be made or launched.
pub fn run<R: CubeRuntime + Launches>(
    operation: &Operation,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let dtypes: Vec<_> = inputs.iter().map(|x| x.dtype).collect();
    match operation.element(&dtypes) {
        DType::F16 => typed::<R, f16>(operation, inputs),
        DType::BF16 => typed::<R, bf16>(operation, inputs),
        _ => typed::<R, f32>(operation, inputs),
    }
}

fn typed<R: CubeRuntime + Launches, F: FloatElement>(
    operation: &Operation,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    Ok(match operation {
        Operation::Project(op) => linear::cube::project::<R, F>(op, inputs)?,
        Operation::Append(op) => heads::cube::append::<R, F>(op, inputs),
        Operation::Norm(op) => norm::cube::norm::<R, F>(inputs, op.epsilon),
        Operation::AddNorm(op) => norm::cube::add_norm::<R, F>(inputs, op.epsilon),
        Operation::Gated(activation) => gate::cube::gated::<R, F>(inputs, *activation),
        Operation::GateOutput(op) => gate::cube::gate_output::<R, F>(inputs, op.head_dim),
        Operation::Delta(op) => delta::cube::delta::<R, F>(op, inputs),
    })
}

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

/// Sum over the `n` units of a workgroup, in a fixed order; uses sums over planes of `plane` units
/// if `plane` is not 0. `shared` has room for `n` numbers.
#[cube]
#[allow(clippy::manual_is_multiple_of)] // Kernels have operators and no methods.
pub(crate) fn sum_of_units(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] n: u32,
    #[comptime] plane: u32,
) -> f32 {
    let unit = UNIT_POS;
    if comptime!(plane > 0 && n.is_multiple_of(plane)) {
        let within = plane_sum(value);
        let planes = comptime!(n / plane);
        if comptime!(planes > 1) {
            if unit % plane == 0u32 {
                shared[(unit / plane) as usize] = within;
            }
            sync_cube();
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..planes {
                sum += shared[i as usize];
            }
            sync_cube();
            sum
        } else {
            within
        }
    } else {
        shared[unit as usize] = value;
        sync_cube();
        let mut reach = comptime!(n.next_power_of_two() / 2).runtime();
        while reach > 0u32 {
            if unit < reach && unit + reach < n {
                let other = shared[(unit + reach) as usize];
                shared[unit as usize] += other;
            }
            sync_cube();
            reach /= 2u32;
        }
        let sum = shared[0];
        sync_cube();
        sum
    }
}

#[cube]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}
