//! An operation with inputs that were found to fit: the only thing that backends execute.

use crate::{Operation, OperationError};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};

/// An operation and inputs that fit it and are on one device.
///
/// [`Checked::new`] is the only constructor, so no unchecked input reaches a kernel.
#[derive(Debug)]
pub struct Checked<'a, B: Backend> {
    pub(crate) operation: &'a Operation,
    pub(crate) inputs: Vec<FloatTensor<B>>,
    /// Shape and element type of each input.
    pub(crate) shapes: Vec<(Shape, DType)>,
    /// Shape and element type of each output.
    pub(crate) outputs: Vec<(Shape, DType)>,
}

impl<'a, B: Backend> Checked<'a, B> {
    /// Checks rank, shape, element type and device of every input.
    ///
    /// # Errors
    /// As [`Operation::outputs`]; [`OperationError::Argument`] for inputs on two devices.
    pub fn new(
        operation: &'a Operation,
        inputs: Vec<FloatTensor<B>>,
    ) -> Result<Self, OperationError> {
        let shapes: Vec<_> = inputs.iter().map(|x| (x.shape(), x.dtype())).collect();
        let outputs = operation.outputs(&shapes)?;
        let first = B::float_device(&inputs[0]);
        let devices = inputs.iter().map(B::float_device);
        if let Some((i, device)) = devices.enumerate().find(|(_, device)| *device != first) {
            let names = operation.inputs();
            return Err(OperationError::Argument {
                operation: operation.name(),
                what: format!(
                    "`{}` is on {device:?}, `{}` on {first:?}",
                    names[i], names[0]
                ),
            });
        }
        Ok(Self {
            operation,
            inputs,
            shapes,
            outputs,
        })
    }

    /// The operation.
    pub fn operation(&self) -> &'a Operation {
        self.operation
    }
}
