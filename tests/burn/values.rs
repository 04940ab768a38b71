//! Numbers that are the same in every run, and tensors of them on every backend.

use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorPrimitive};
use butterfly::AttentionBackend;
use half::{bf16, f16};

/// Bits that look random, for each seed.
pub(crate) fn bits(seed: usize) -> u64 {
    let mixed = (seed as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number in -1..1.
pub(crate) fn number(seed: usize) -> f32 {
    (bits(seed) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// The number of this type that is nearest to `x`.
pub(crate) fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

pub(crate) fn floats<B: Backend>(
    values: &[f32],
    shape: &[usize],
    dtype: DType,
    device: &B::Device,
) -> FloatTensor<B> {
    let data = TensorData::new(values.to_vec(), shape.to_vec()).convert_dtype(dtype);
    B::float_from_data(data, device)
}

/// Integers of 32 bits, as an input of operations.
pub(crate) fn integers<B: AttentionBackend>(
    values: &[i32],
    shape: &[usize],
    device: &B::Device,
) -> FloatTensor<B> {
    let data = TensorData::new(values.to_vec(), shape.to_vec());
    B::integers(B::int_from_data(data, device))
}

/// What a tensor of three dimensions holds, in the type that it has.
pub(crate) fn data<B: Backend>(x: FloatTensor<B>) -> TensorData {
    Tensor::<B, 3>::from_primitive(TensorPrimitive::Float(x)).into_data()
}
