//! Burn's `Autodiff` backend: every operation is refused until there are backward kernels.

use crate::{AttentionBackend, Checked, Operation, OperationError};
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};

impl<B: AttentionBackend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C> {
    const ON_HOST: bool = B::ON_HOST;

    fn integers(x: IntTensor<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::integers(x))
    }

    fn prepare(
        operation: &Operation,
        _: &[(Shape, DType)],
        _: &Self::Device,
    ) -> Result<(), OperationError> {
        Err(OperationError::Gradients(operation.name()))
    }

    fn execute(checked: Checked<'_, Self>) -> Result<Vec<FloatTensor<Self>>, OperationError> {
        Err(OperationError::Gradients(checked.operation.name()))
    }
}
