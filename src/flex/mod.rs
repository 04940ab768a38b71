//! Burn's CPU backend: attention by the native kernel, the rest as written.
//!
//! Sums are f32 whatever the element type; threads share rows or heads, never a sum, so that
//! results do not depend on their number.

mod attend;
mod delta;
mod heads;
mod project;
mod rows;

use crate::{AttentionBackend, Checked, Operation, OperationError};
use burn::tensor::{DType, Element, Shape};
use burn_flex::{Flex, FlexDevice, FlexTensor, Layout};
use half::{bf16, f16};
use std::borrow::Cow;

impl AttentionBackend for Flex {
    fn prepare(
        operation: &Operation,
        inputs: &[(Shape, DType)],
        _: &FlexDevice,
    ) -> Result<(), OperationError> {
        operation.outputs(inputs)?;
        let kernel = |op| attend::kernel(op, inputs);
        operation.attend().map(kernel).transpose().map(|_| ())
    }

    fn execute(checked: Checked<'_, Self>) -> Result<Vec<FlexTensor>, OperationError> {
        let Checked {
            operation, inputs, ..
        } = checked;
        let dtypes: Vec<_> = inputs.iter().map(|x| x.dtype()).collect();
        match operation.element(&dtypes) {
            DType::F16 => typed::<f16>(operation, inputs),
            DType::BF16 => typed::<bf16>(operation, inputs),
            _ => typed::<f32>(operation, inputs),
        }
    }
}

fn typed<E: Stored>(
    operation: &Operation,
    inputs: Vec<FlexTensor>,
) -> Result<Vec<FlexTensor>, OperationError> {
    match operation {
        Operation::Attend(op) => attend::attend::<E>(op, &inputs),
        Operation::Append(op) => Ok(heads::append::<E>(op, inputs)),
        Operation::Project | Operation::ProjectBy(_) => Ok(project::project::<E>(inputs)),
        Operation::Norm { epsilon, .. } => Ok(rows::norm::<E>(&inputs, *epsilon)),
        Operation::AddNorm { epsilon } => Ok(rows::add_norm::<E>(&inputs, *epsilon)),
        Operation::Gated(activation) => Ok(rows::gated::<E>(&inputs, *activation)),
        Operation::GateOutput { head_dim } => Ok(rows::gate_output::<E>(&inputs, *head_dim)),
        Operation::Delta(op) => Ok(delta::delta::<E>(op, &inputs)),
    }
}

/// An element type in memory.
trait Stored: Element + bytemuck::Pod + Send + Sync {
    fn get(self) -> f32;
    fn put(value: f32) -> Self;
}

impl Stored for f32 {
    fn get(self) -> f32 {
        self
    }
    fn put(value: f32) -> Self {
        value
    }
}

impl Stored for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Stored for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// All elements in order; copied where they are not so already.
fn elements<E: Stored>(x: &FlexTensor) -> Cow<'_, [E]> {
    match x.as_slice::<E>() {
        Some(elements) => Cow::Borrowed(elements),
        None => Cow::Owned(x.to_contiguous().storage::<E>().to_vec()),
    }
}

fn tensor<E: Stored>(elements: Vec<E>, shape: impl Into<Shape>) -> FlexTensor {
    let bytes = burn::tensor::Bytes::from_elems(elements);
    FlexTensor::new(bytes, Layout::contiguous(shape.into()), E::dtype())
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
