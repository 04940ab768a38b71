//! Burn's `Fusion` backend: an operation is registered in the stream of its inputs as a custom
//! operation, and runs when the stream reaches it.
//!
//! Shapes are checked and the kernel is prepared before the operation is registered, so most errors
//! are returned at once. Nothing waits for the device.

use crate::{AttentionBackend, Checked, Operation, OperationError};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_fusion::stream::{Operation as Execute, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};
use std::marker::PhantomData;

impl<B: FusionBackend + AttentionBackend> AttentionBackend for Fusion<B> {
    const ON_HOST: bool = B::ON_HOST;

    fn integers(x: IntTensor<Self>) -> FloatTensor<Self> {
        x
    }

    fn has_hopper_kernels(dtype: DType, device: &Self::Device) -> bool {
        B::has_hopper_kernels(dtype, device)
    }

    fn start(device: &Self::Device) {
        B::start(device);
    }

    fn prepare(
        operation: &Operation,
        inputs: &[(Shape, DType)],
        device: &Self::Device,
    ) -> Result<(), OperationError> {
        B::prepare(operation, inputs, device)
    }

    fn execute(checked: Checked<'_, Self>) -> Result<Vec<FloatTensor<Self>>, OperationError> {
        let Checked {
            operation,
            inputs,
            shapes,
            outputs,
        } = checked;
        let client = inputs[0].client.clone();
        B::prepare(operation, &shapes, &client.device().clone())?;
        let streams = OperationStreams::with_inputs(&inputs);
        let inputs: Vec<_> = inputs.into_iter().map(|x| x.into_ir()).collect();
        let outputs = outputs.into_iter();
        let outputs: Vec<_> = outputs
            .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype))
            .collect();
        let ir = CustomOpIr::new(operation.name(), &inputs, &outputs);
        let deferred = Deferred::<B> {
            ir: ir.clone(),
            operation: operation.clone(),
            backend: PhantomData,
        };
        let outputs = client.register(streams, OperationIr::Custom(ir), deferred);
        Ok(outputs)
    }
}

/// An operation that waits in its stream.
#[derive(Debug)]
struct Deferred<B> {
    ir: CustomOpIr,
    operation: Operation,
    backend: PhantomData<B>,
}

impl<B: FusionBackend + AttentionBackend> Execute<B::FusionRuntime> for Deferred<B> {
    fn execute(
        &self,
        handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>,
    ) {
        let inputs = self.ir.inputs.iter();
        let inputs = inputs.map(|ir| handles.get_float_tensor::<B>(ir)).collect();
        // Shapes and kernel were checked before registration; only the device can still fail, and
        // a stream has no way to return an error.
        let outputs = Checked::new(&self.operation, inputs).and_then(B::execute);
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(error) => panic!("{}: {error}", self.operation.name()),
        };
        for (ir, output) in self.ir.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<B>(&ir.id, output);
        }
    }
}
