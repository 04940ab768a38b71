//! Elements of tensors, whatever their type.

use burn::tensor::{DType, Element, Shape};
use burn_flex::{FlexTensor, Layout};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::borrow::Cow;

/// An element type as tensors store it.
pub trait Stored: Element + bytemuck::Pod + Send + Sync {
    /// The element as f32.
    fn get(self) -> f32;
    /// The nearest number of this type.
    fn put(value: f32) -> Self;
    /// Elements as f32, into a slice of as many.
    fn widen(from: &[Self], to: &mut [f32]);
    /// The nearest numbers of this type, into a slice of as many.
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Stored for f32 {
    fn get(self) -> f32 {
        self
    }
    fn put(value: f32) -> Self {
        value
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Stored for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Stored for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
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

/// The elements as f32; f32 elements are borrowed, others are converted.
pub fn floats<E: Stored>(elements: &[E]) -> Cow<'_, [f32]> {
    match bytemuck::try_cast_slice(elements) {
        Ok(floats) if E::dtype() == DType::F32 => Cow::Borrowed(floats),
        _ => Cow::Owned(converted(elements, E::widen)),
    }
}

/// A contiguous tensor of the numbers of type `E` that are nearest to these.
pub fn rounded<E: Stored>(numbers: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    if E::dtype() == DType::F32 {
        return tensor(numbers, shape);
    }
    tensor(converted(&numbers, E::narrow), shape)
}

/// Elements that one thread converts at a time.
const SHARE: usize = 1 << 15;

/// Elements of another type, by a function that converts slices.
fn converted<A: Stored, B: Stored>(from: &[A], convert: fn(&[A], &mut [B])) -> Vec<B> {
    let mut to = bytemuck::zeroed_vec(from.len());
    match from.len() <= SHARE {
        true => convert(from, &mut to),
        false => from
            .par_chunks(SHARE)
            .zip(to.par_chunks_mut(SHARE))
            .for_each(|(from, to)| convert(from, to)),
    }
    to
}

pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
