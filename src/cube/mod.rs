//! Burn's CubeCL backends: attention by compiled kernels, the rest by CubeCL's own.
//!
//! Attention comes from a [`Plan`](crate::Plan). What surrounds it is small, works on
//! whole rows, and is written once in CubeCL for all runtimes. Sums are f32 in a fixed
//! order, so that the same inputs give the same bits.

mod attend;
mod delta;
mod heads;
mod limits;
mod project;
mod rows;
mod walk;

use crate::{AttentionBackend, Checked, Operation, OperationError};
use burn::tensor::{DType, Shape};
use burn_cubecl::element::BoolElement;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};
use butterfly_runtime::Launches;
use cubecl::client::ComputeClient;
use cubecl::features::Plane;
use cubecl::prelude::*;
use half::{bf16, f16};

impl<R, F, I, BT> AttentionBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime + Launches,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn prepare(
        operation: &Operation,
        inputs: &[(Shape, DType)],
        device: &R::Device,
    ) -> Result<(), OperationError> {
        let outputs = operation.outputs(inputs)?;
        let client = R::client(device);
        limits::check(operation, inputs, &outputs, client.properties())?;
        let kernel = |op| attend::kernel(op, inputs, &client);
        operation.attend().map(kernel).transpose().map(|_| ())
    }

    fn execute(checked: Checked<'_, Self>) -> Result<Vec<CubeTensor<R>>, OperationError> {
        let Checked {
            operation,
            inputs,
            shapes,
            outputs,
        } = checked;
        limits::check(operation, &shapes, &outputs, inputs[0].client.properties())?;
        let dtypes: Vec<_> = shapes.iter().map(|(_, dtype)| *dtype).collect();
        match (operation, operation.element(&dtypes)) {
            (Operation::Attend(op), _) => attend::attend(op, inputs),
            (_, DType::F16) => typed::<R, f16>(operation, inputs),
            (_, DType::BF16) => typed::<R, bf16>(operation, inputs),
            _ => typed::<R, f32>(operation, inputs),
        }
    }
}

fn typed<R: CubeRuntime + Launches, F: FloatElement>(
    operation: &Operation,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    Ok(match operation {
        Operation::Attend(_) => unreachable!("attention is not of one element type"),
        Operation::Project => project::project::<R, F>(inputs, None)?,
        Operation::ProjectBy(plan) => project::project::<R, F>(inputs, Some(plan))?,
        Operation::Append(op) => heads::append::<R, F>(op, inputs),
        Operation::Norm { epsilon, .. } => rows::norm::<R, F>(inputs, *epsilon),
        Operation::AddNorm { epsilon } => rows::add_norm::<R, F>(inputs, *epsilon),
        Operation::Gated(activation) => rows::gated::<R, F>(inputs, *activation),
        Operation::GateOutput { head_dim } => rows::gate_output::<R, F>(inputs, *head_dim),
        Operation::Delta(op) => delta::delta::<R, F>(op, inputs),
    })
}

/// The tensor with the elements of its rows side by side, none of them further from the first than
/// 32 bits count. It nearly always is so; else it is copied.
fn dense_rows<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
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

/// A new tensor whose elements lie in order.
fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let shape = shape.into();
    let handle = like.client.empty(shape.num_elements() * dtype.size());
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, shape, handle, dtype)
}

/// The whole buffer from a tensor's first element on, as a kernel's argument.
///
/// # Safety
/// Kernels that index it compute their own bounds.
unsafe fn array<R: CubeRuntime>(x: &CubeTensor<R>) -> ArrayArg<R> {
    let bytes = usize::try_from(x.handle.size_in_used()).expect("a buffer fits the address space");
    let length = bytes / x.dtype.size();
    // SAFETY: the length is that of the buffer.
    unsafe { ArrayArg::from_raw_parts(x.handle.clone(), length) }
}

/// So many workgroups, in two dimensions where one has no room for them.
fn grid(count: u32) -> CubeCount {
    const MOST: u32 = 65_535;
    match count <= MOST {
        true => CubeCount::Static(count, 1, 1),
        false => CubeCount::Static(MOST, count.div_ceil(MOST), 1),
    }
}

/// Units of a plane, on devices where all planes are of one size and sum among themselves; else 0.
fn plane<R: CubeRuntime>(client: &ComputeClient<R>) -> u32 {
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

/// Sum over the `n` units of a workgroup, in a fixed order, by planes of `plane` units where
/// that is not 0. `shared` has room for `n` numbers.
#[cube]
#[allow(clippy::manual_is_multiple_of)] // What runs on the device has operators alone.
fn sum_of_units(
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
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}
