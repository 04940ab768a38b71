//! The backends that can run operations.

use crate::{Checked, Operation, OperationError};
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};

/// A Burn backend with Butterfly's kernels.
///
/// Implemented for `CubeBackend` on the CUDA and wgpu runtimes, for `Flex` on the CPU, for
/// `Fusion` over either, and for `Autodiff`, which refuses every operation.
pub trait AttentionBackend: Backend {
    /// Whether tensors lie in the memory of the host, where they can share that of a mapped file.
    const ON_HOST: bool;

    /// An integer tensor as an input of operations, whose inputs are all of one type.
    fn integers(x: IntTensor<Self>) -> FloatTensor<Self>;

    /// Whether this device runs the generated kernels for Hopper in `dtype`, which need less memory than others: of many
    /// rows, products write gated ones without a tensor of both halves, and linear attention goes in chunks.
    fn has_hopper_kernels(_dtype: DType, _device: &Self::Device) -> bool {
        false
    }

    /// Starts what has been launched so far, without waiting for it. Devices are handed launches in batches otherwise,
    /// and are idle while the first one is put together.
    fn start(_device: &Self::Device) {}

    /// Does work that runs many operations. On the CPU it is done by one of the threads that operations
    /// share, where each of them begins at once, and not after it was handed over to such a thread.
    fn on_threads<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// Checks that an operation can run on inputs of these shapes and element types, and prepares
    /// its kernel, without running it.
    ///
    /// # Errors
    /// When the inputs do not fit together, are larger than kernels can index or the device has
    /// memory for, or when there is no kernel.
    fn prepare(
        operation: &Operation,
        inputs: &[(Shape, DType)],
        device: &Self::Device,
    ) -> Result<(), OperationError>;

    /// Runs an operation on checked inputs.
    ///
    /// # Errors
    /// Those of [`AttentionBackend::prepare`], before anything has run; or when the device fails.
    fn execute(checked: Checked<'_, Self>) -> Result<Vec<FloatTensor<Self>>, OperationError>;
}

/// Checks the inputs, then runs the operation.
///
/// # Errors
/// [`OperationError`] if the inputs do not fit, before anything has run; else as
/// [`AttentionBackend::execute`].
pub fn run<B: AttentionBackend>(
    operation: &Operation,
    inputs: Vec<FloatTensor<B>>,
) -> Result<Vec<FloatTensor<B>>, OperationError> {
    B::execute(Checked::new(operation, inputs)?)
}
