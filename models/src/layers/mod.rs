//! The parts of which layers are built, one per file.

mod attention;
mod delta;
mod experts;
mod latent;
mod linear;
mod mlp;
mod program;
mod unnormed;
mod weight;

pub(crate) use attention::Attention;
pub(crate) use delta::LinearAttention;
pub(crate) use experts::Experts;
pub(crate) use latent::{LatentAttention, Programs as LatentPrograms};
pub(crate) use linear::Projection;
pub(crate) use mlp::GatedMlp;
pub(crate) use unnormed::Unnormed;
pub(crate) use weight::Weight;

use crate::ModelError;
use burn::prelude::*;
use burn::tensor::{DType, TensorPrimitive};
use butterfly::ops::{Activation, AddNorm, ArgMax, Norm, Operation};
use butterfly::{AttentionBackend, OperationError, run};
use butterfly_ir::model::{FeedForwardGate, ModelConfig};

/// The program that the attention layers of a model execute.
///
/// # Errors
/// [`ModelError::Layer`] if a part of the layer has no step yet.
pub(crate) fn program(config: &ModelConfig) -> Result<program::Program, ModelError> {
    program::of(config).map_err(ModelError::Layer)
}

/// The gate of a model's feed-forward layers.
pub(crate) fn activation(gate: FeedForwardGate) -> Activation {
    match gate {
        FeedForwardGate::Silu => Activation::Silu,
        FeedForwardGate::Gelu => Activation::Gelu,
        FeedForwardGate::Clamped { alpha, limit } => Activation::Clamped {
            alpha: alpha as f32,
            limit: limit as f32,
            alternate: false,
        },
    }
}

/// A float tensor as operations take it.
fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> burn::tensor::ops::FloatTensor<B> {
    x.into_primitive().tensor()
}

/// Runs an operation around attention and returns its outputs.
fn around<B: AttentionBackend>(
    operation: Operation,
    inputs: Vec<burn::tensor::ops::FloatTensor<B>>,
) -> Result<Vec<burn::tensor::ops::FloatTensor<B>>, OperationError> {
    run::<B>(&operation.into(), inputs)
}

/// `x / rms(x) * weight` of the residual stream, in `dtype`.
pub(crate) fn norm<B: AttentionBackend>(
    x: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    epsilon: f32,
    dtype: DType,
) -> Result<Tensor<B, 3>, OperationError> {
    let inputs = vec![primitive(x), primitive(weight.clone())];
    one(around::<B>(
        Operation::Norm(Norm { epsilon, dtype }),
        inputs,
    )?)
}

/// `x + y`, and its norm.
pub(crate) fn add_norm<B: AttentionBackend>(
    x: Tensor<B, 3>,
    y: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    epsilon: f32,
) -> Result<(Tensor<B, 3>, Tensor<B, 3>), OperationError> {
    let inputs = vec![primitive(x), primitive(y), primitive(weight.clone())];
    let outputs = around::<B>(Operation::AddNorm(AddNorm { epsilon }), inputs)?;
    let mut outputs = outputs.into_iter().map(float);
    let mut next = || outputs.next().expect("two outputs");
    Ok((next(), next()))
}

/// The sums of rows [B, T, k, H] times weights [B, T, k].
fn combine<B: AttentionBackend>(
    rows: Tensor<B, 4>,
    weights: Tensor<B, 3>,
) -> Result<Tensor<B, 3>, OperationError> {
    let inputs = vec![primitive(rows), primitive(weights)];
    one(around::<B>(Operation::Combine, inputs)?)
}

/// The largest logit of each part of rows [B, T, V], as [`ArgMax`] describes it: [B, T, parts, 3] in i32.
pub(crate) fn largest<B: AttentionBackend>(
    logits: Tensor<B, 3>,
    part: usize,
) -> Result<Tensor<B, 4>, OperationError> {
    let operation = Operation::ArgMax(ArgMax { part });
    one(around::<B>(operation, vec![primitive(logits)])?)
}

fn float<B: Backend, const D: usize>(x: burn::tensor::ops::FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

fn one<B: Backend, const D: usize>(
    outputs: Vec<burn::tensor::ops::FloatTensor<B>>,
) -> Result<Tensor<B, D>, OperationError> {
    let output = outputs.into_iter().next();
    Ok(float(output.expect("one output")))
}
