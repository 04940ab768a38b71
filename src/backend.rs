//! The backends that can run operations.

use crate::{Operation, OperationError};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};

/// A Burn backend with Butterfly's kernels.
///
/// Implemented for `CubeBackend` on the CUDA and wgpu runtimes, for `Flex` on the CPU, for
/// `Fusion` over either, and for `Autodiff`, which refuses.
pub trait AttentionBackend: Backend {
    /// Finds or makes what an operation on such inputs needs, without running it.
    ///
    /// # Errors
    /// When there is no kernel.
    fn prepare(
        operation: &Operation,
        inputs: &[(Shape, DType)],
        device: &Self::Device,
    ) -> Result<(), OperationError>;

    /// Runs an operation whose inputs were checked by [`Operation::outputs`].
    ///
    /// # Errors
    /// When there is no kernel, or it cannot be launched.
    fn execute(
        operation: &Operation,
        inputs: Vec<FloatTensor<Self>>,
    ) -> Result<Vec<FloatTensor<Self>>, OperationError>;
}

/// Checks the inputs, then runs the operation.
///
/// # Errors
/// [`OperationError`]; nothing has run then.
pub fn run<B: AttentionBackend>(
    operation: &Operation,
    inputs: Vec<FloatTensor<B>>,
) -> Result<Vec<FloatTensor<B>>, OperationError> {
    let shapes: Vec<_> = inputs.iter().map(|x| (x.shape(), x.dtype())).collect();
    operation.outputs(&shapes)?;
    B::execute(operation, inputs)
}
