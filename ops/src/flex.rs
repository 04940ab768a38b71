//! The operations on Burn's CPU backend.
//!
//! Sums are f32 for every element type. Work is divided among threads by rows or heads, and no sum
//! is split between threads, so results do not depend on the number of threads.

use crate::{Operation, delta, gate, heads, linear, norm};
use burn::tensor::{DType, Element, Shape};
use burn_flex::{FlexTensor, Layout};
use half::{bf16, f16};
use std::borrow::Cow;

/// Runs `operation` on inputs that fit it.
pub fn run(operation: &Operation, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let dtypes: Vec<_> = inputs.iter().map(|x| x.dtype()).collect();
    match operation.element(&dtypes) {
        DType::F16 => typed::<f16>(operation, inputs),
        DType::BF16 => typed::<bf16>(operation, inputs),
        _ => typed::<f32>(operation, inputs),
    }
}

fn typed<E: Stored>(operation: &Operation, inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    match operation {
        Operation::Project(_) => linear::flex::project::<E>(inputs),
        Operation::Append(op) => heads::flex::append::<E>(op, inputs),
        Operation::Norm(op) => norm::flex::norm::<E>(&inputs, op.epsilon),
        Operation::AddNorm(op) => norm::flex::add_norm::<E>(&inputs, op.epsilon),
        Operation::Gated(activation) => gate::flex::gated::<E>(&inputs, *activation),
        Operation::GateOutput(op) => gate::flex::gate_output::<E>(&inputs, op.head_dim),
        Operation::Delta(op) => delta::flex::delta::<E>(op, &inputs),
    }
}

/// An element type as tensors store it.
pub trait Stored: Element + bytemuck::Pod + Send + Sync {
    /// The element as f32.
    fn get(self) -> f32;
    /// The nearest number of this type.
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

/// All elements in order; copied if the tensor is not contiguous.
pub fn elements<E: Stored>(x: &FlexTensor) -> Cow<'_, [E]> {
    match x.as_slice::<E>() {
        Some(elements) => Cow::Borrowed(elements),
        None => Cow::Owned(x.to_contiguous().storage::<E>().to_vec()),
    }
}

/// A contiguous tensor of these elements.
pub fn tensor<E: Stored>(elements: Vec<E>, shape: impl Into<Shape>) -> FlexTensor {
    let bytes = burn::tensor::Bytes::from_elems(elements);
    FlexTensor::new(bytes, Layout::contiguous(shape.into()), E::dtype())
}

pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
