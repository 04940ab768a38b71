//! The operations on Burn's CPU backend.
//!
//! Sums are f32 for every element type. Work is divided among threads by rows or heads, and no sum
//! is split between threads, so results do not depend on the number of threads.

pub(crate) mod elements;

pub use elements::{Stored, elements, floats, rounded, tensor};

use crate::Operation;
use crate::pool;
use crate::{absorb, argmax, delta, expand, experts, gate, heads, latents, linear, norm, normed};
use burn::tensor::DType;
use burn_flex::FlexTensor;
use half::{bf16, f16};

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
        Operation::Embed(op) => linear::flex::embed::<E>(op, inputs),
        Operation::Project(op) => linear::flex::project::<E>(op, inputs),
        Operation::Append(op) => heads::flex::append::<E>(op, inputs),
        Operation::Latents(op) => latents::flex::latents::<E>(op, inputs),
        Operation::Absorb(op) => absorb::flex::absorb::<E>(op, &inputs),
        Operation::Unabsorb(op) => absorb::flex::unabsorb::<E>(op, &inputs),
        Operation::Rotate(op) => expand::flex::rotated::<E>(op, &inputs),
        Operation::Expand(op) => expand::flex::expand::<E>(op, &inputs),
        Operation::Pool(op) => pool::flex::pool::<E>(op, inputs),
        Operation::Norm(op) => norm::flex::norm::<E>(&inputs, op.epsilon),
        Operation::AddNorm(op) => norm::flex::add_norm::<E>(&inputs, op.epsilon),
        Operation::Gated(activation) => gate::flex::gated::<E>(&inputs, *activation),
        Operation::GateOutput(op) => gate::flex::gate_output::<E>(&inputs, op.head_dim),
        Operation::Delta(op) => delta::flex::delta::<E>(op, &inputs),
        Operation::Route(op) => experts::flex::route(op, &inputs),
        Operation::Choose(op) => experts::flex::choose_by_norm::<E>(op, inputs),
        Operation::Experts(op) => experts::flex::experts::<E>(op, &inputs),
        Operation::Combine => experts::flex::combine::<E>(&inputs),
        Operation::Normed(op) => normed::flex::normed::<E>(op, inputs),
        Operation::ArgMax(op) => argmax::flex::argmax::<E>(*op, &inputs),
    }
}
