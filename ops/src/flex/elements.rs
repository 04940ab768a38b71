//! Elements of tensors, whatever their type.

use burn::tensor::{Element, Shape};
use burn_flex::{FlexTensor, Layout};
use half::{bf16, f16};
use std::borrow::Cow;

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
