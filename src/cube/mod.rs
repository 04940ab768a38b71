//! Burn's CubeCL backends: attention by compiled kernels, the rest by CubeCL's own.
//!
//! Attention comes from a [`Plan`](crate::Plan). What surrounds it is small, works on
//! whole rows, and is written once in CubeCL for all runtimes. Sums are f32 in a fixed
//! order, so that the same inputs give the same bits.

mod attend;
mod delta;
mod heads;
mod rows;

use crate::{AttentionBackend, Operation, OperationError};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::element::BoolElement;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};
use butterfly_runtime::Launches;
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
        match operation {
            Operation::Attend(op) => attend::kernel(op, inputs, &R::client(device)).map(|_| ()),
            Operation::Append(_)
            | Operation::Norm { .. }
            | Operation::AddNorm { .. }
            | Operation::Gated(_)
            | Operation::GateOutput { .. }
            | Operation::Delta(_) => Ok(()),
        }
    }

    fn execute(
        operation: &Operation,
        inputs: Vec<CubeTensor<R>>,
    ) -> Result<Vec<CubeTensor<R>>, OperationError> {
        match (operation, inputs[0].dtype()) {
            (Operation::Attend(op), _) => attend::attend(op, inputs),
            (_, DType::F16) => Ok(typed::<R, f16>(operation, inputs)),
            (_, DType::BF16) => Ok(typed::<R, bf16>(operation, inputs)),
            _ => Ok(typed::<R, f32>(operation, inputs)),
        }
    }
}

fn typed<R: CubeRuntime, F: FloatElement>(
    operation: &Operation,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    match operation {
        Operation::Attend(_) => unreachable!("attention is not of one element type"),
        Operation::Append(op) => heads::append::<R, F>(op, inputs),
        Operation::Norm { epsilon } => rows::norm::<R, F>(inputs, *epsilon),
        Operation::AddNorm { epsilon } => rows::add_norm::<R, F>(inputs, *epsilon),
        Operation::Gated(activation) => rows::gated::<R, F>(inputs, *activation),
        Operation::GateOutput { head_dim } => rows::gate_output::<R, F>(inputs, *head_dim),
        Operation::Delta(op) => delta::delta::<R, F>(op, inputs),
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
    let length = x.handle.size_in_used() as usize / x.dtype.size();
    // SAFETY: the length is that of the buffer.
    unsafe { ArrayArg::from_raw_parts(x.handle.clone(), length) }
}

/// Sum over the first `n` units of a workgroup of as many, in a fixed order.
#[cube]
fn sum_of_units(value: f32, shared: &mut SharedMemory<f32>, #[comptime] n: u32) -> f32 {
    let unit = UNIT_POS;
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

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}
