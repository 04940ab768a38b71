//! The operations on CubeCL's runtimes: small kernels that work on whole rows, written once in CubeCL
//! for all runtimes.
//!
//! In CubeCL's terms a *unit* is a thread, a *plane* a warp or subgroup, a *cube* a workgroup.

pub(crate) mod join;
pub(crate) mod launch;
pub(crate) mod square;
pub(crate) mod unit;

pub use launch::{capability, empty, first_elements};
pub use square::multiply_square;

use crate::pool;
use crate::{Limits, Operation, OperationError};
use crate::{absorb, argmax, delta, expand, experts, gate, heads, latents, linear, norm, normed};
use ::cubecl::client::ComputeClient;
use ::cubecl::ir::DeviceProperties;
use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;
use half::{bf16, f16};

/// Whether a device runs the generated kernels for Hopper in `dtype`.
pub fn has_hopper_kernels<R: CubeRuntime + Launches>(
    dtype: DType,
    client: &ComputeClient<R>,
) -> bool {
    // A device that cannot be asked runs none.
    linear::hopper::of_type(dtype, client).is_ok_and(|dtype| dtype.is_some())
}

/// Checks that a device can run `operation` on `inputs`, which fit it and give `outputs`.
///
/// # Errors
/// [`OperationError::Limit`] if a tensor is too large; [`OperationError::Argument`] for an element
/// type, a number of heads or a head size that the device has no kernels for.
pub fn check(
    operation: &Operation,
    inputs: &[(Shape, DType)],
    outputs: &[(Shape, DType)],
    device: &DeviceProperties,
) -> Result<(), OperationError> {
    let limits = Limits {
        inputs: operation.named(inputs),
        device,
    };
    // Outputs that need new memory: caches and the means of `Pool` are updated in place.
    let mut new = outputs;
    match operation {
        Operation::Append(op) => {
            op.limits(&limits)?;
            new = &outputs[..1];
        }
        Operation::Latents(op) => {
            op.limits(&limits)?;
            new = &outputs[..outputs.len() - 1];
        }
        Operation::Pool(op) => {
            op.limits(&limits)?;
            new = &[];
        }
        Operation::Absorb(op) => op.limits(&limits)?,
        Operation::Unabsorb(op) => op.limits(&limits)?,
        Operation::Rotate(op) => op.limits(&limits)?,
        Operation::Expand(op) => op.limits(&limits)?,
        Operation::Delta(op) => op.limits(&limits)?,
        // Norms run a workgroup for each row.
        Operation::Norm(_) | Operation::AddNorm(_) => limits.rows()?,
        Operation::Gated(_) | Operation::GateOutput(_) => limits.counted(0..inputs.len())?,
        Operation::Embed(op) => op.limits(&limits)?,
        Operation::Project(op) => op.limits(&limits)?,
        Operation::Route(op) => op.limits(&limits)?,
        Operation::Choose(op) => op.limits(&limits)?,
        Operation::Experts(op) => op.limits(&limits)?,
        Operation::Combine => limits.rows()?,
        Operation::Normed(op) => op.limits(&limits)?,
        Operation::ArgMax(op) => op.limits(&limits)?,
    }
    limits.element_types(outputs)?;
    limits.memory(new)
}

/// Runs `operation` on inputs that fit it, on a device for which [`check`] has passed.
///
/// # Errors
/// If a kernel for a matrix product cannot be made or launched.
pub fn run<R: CubeRuntime + Launches>(
    operation: &Operation,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let dtypes: Vec<_> = inputs.iter().map(|x| x.dtype).collect();
    match operation.element(&dtypes) {
        DType::F16 => typed::<R, f16>(operation, inputs),
        DType::BF16 => typed::<R, bf16>(operation, inputs),
        _ => typed::<R, f32>(operation, inputs),
    }
}

fn typed<R: CubeRuntime + Launches, F: FloatElement>(
    operation: &Operation,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    Ok(match operation {
        Operation::Embed(op) => linear::cube::embed::<R, F>(op, inputs),
        Operation::Project(op) => linear::cube::project::<R, F>(op, inputs)?,
        Operation::Append(op) => heads::cube::append::<R, F>(op, inputs),
        Operation::Latents(op) => latents::cube::latents::<R, F>(op, inputs),
        Operation::Absorb(op) => absorb::cube::absorb::<R, F>(op, inputs)?,
        Operation::Unabsorb(op) => absorb::cube::unabsorb::<R, F>(op, inputs)?,
        Operation::Rotate(op) => expand::cube::rotated::<R, F>(op, inputs),
        Operation::Expand(op) => expand::cube::expand::<R, F>(op, inputs)?,
        Operation::Pool(op) => pool::cube::pool::<R, F>(op, inputs),
        Operation::Norm(op) => norm::cube::norm::<R, F>(inputs, op.epsilon),
        Operation::AddNorm(op) => norm::cube::add_norm::<R, F>(inputs, op.epsilon),
        Operation::Gated(activation) => gate::cube::gated::<R, F>(inputs, *activation),
        Operation::GateOutput(op) => gate::cube::gate_output::<R, F>(inputs, op.head_dim),
        Operation::Delta(op) => delta::cube::delta::<R, F>(op, inputs)?,
        Operation::Route(op) => experts::cube::route(op, inputs),
        Operation::Choose(op) => experts::cube::choose::<R, F>(op, inputs)?,
        Operation::Experts(op) => experts::cube::experts::<R, F>(op, inputs)?,
        Operation::Combine => {
            let [rows, factors] = norm::cube::take(inputs);
            vec![experts::cube::combine::<R, F>(rows, &factors)]
        }
        Operation::Normed(op) => normed::cube::normed::<R, F>(op, inputs)?,
        Operation::ArgMax(op) => argmax::cube::argmax::<R, F>(*op, inputs),
    })
}
