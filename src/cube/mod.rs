//! Burn's CubeCL backends: attention runs kernels of a plan, other operations those of `ops`.

mod attend;
mod limits;
mod route;

use crate::{AttentionBackend, Checked, Operation, OperationError};
use burn::tensor::{DType, Shape};
use burn_cubecl::element::BoolElement;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};
use butterfly_ops::cube;
use butterfly_runtime::Launches;
use cubecl::device::Device;
use cubecl::device_handle::DeviceHandle;
use cubecl::ir::DeviceProperties;

impl<R, F, I, BT> AttentionBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime + Launches,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    const ON_HOST: bool = false;

    fn integers(x: CubeTensor<R>) -> CubeTensor<R> {
        x
    }

    fn has_hopper_kernels(dtype: DType, device: &R::Device) -> bool {
        cube::has_hopper_kernels(dtype, &R::client(device))
    }

    fn start(device: &R::Device) {
        DeviceHandle::<R::Server>::new(device.to_id()).flush_queue();
    }

    fn prepare(
        operation: &Operation,
        inputs: &[(Shape, DType)],
        device: &R::Device,
    ) -> Result<(), OperationError> {
        let outputs = operation.outputs(inputs)?;
        let client = R::client(device);
        check(operation, inputs, &outputs, client.properties())?;
        match operation {
            Operation::Attend(op) => attend::kernel(op, inputs, &client).map(|_| ()),
            Operation::Layer(_) => Ok(()),
        }
    }

    fn execute(checked: Checked<'_, Self>) -> Result<Vec<CubeTensor<R>>, OperationError> {
        let Checked {
            operation,
            inputs,
            shapes,
            outputs,
        } = checked;
        check(operation, &shapes, &outputs, inputs[0].client.properties())?;
        match operation {
            Operation::Attend(op) => attend::attend(op, inputs),
            Operation::Layer(op) => cube::run(op, inputs),
        }
    }
}

/// Checks that a device can run `operation` on `inputs`, which fit it and give `outputs`.
fn check(
    operation: &Operation,
    inputs: &[(Shape, DType)],
    outputs: &[(Shape, DType)],
    device: &DeviceProperties,
) -> Result<(), OperationError> {
    match operation {
        Operation::Attend(op) => limits::check(op, operation.named(inputs), device),
        Operation::Layer(op) => cube::check(op, inputs, outputs, device),
    }
}
