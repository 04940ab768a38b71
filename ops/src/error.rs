//! Why an operation was not run.

use butterfly_ir::LimitError;
use butterfly_runtime::LaunchError;
use butterfly_runtime::artifacts::ArtifactError;

/// What is wrong with an operation or its surroundings.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// A tensor does not fit the others, or the operation.
    #[error("{operation}: `{tensor}` has shape {given:?}, expected {expected}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// The tensor.
        tensor: &'static str,
        /// Its shape.
        given: Vec<usize>,
        /// What was expected.
        expected: String,
    },
    /// A number does not fit.
    #[error("{operation}: {what}")]
    Argument {
        /// The operation.
        operation: &'static str,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// More elements, tokens or sequences than a kernel can count or a device has room for.
    #[error(
        "{operation}: `{tensor}` has {given} {what}, but this device takes at most {limit}; give fewer tokens at a time (--chunk)"
    )]
    Limit {
        /// The operation.
        operation: &'static str,
        /// The tensor.
        tensor: &'static str,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        given: u64,
        /// How many there may be.
        limit: u64,
    },
    /// An element type that has no kernels.
    #[error("{operation}: tensors of {given}; cast them to f32, f16 or bf16")]
    Dtype {
        /// The operation.
        operation: &'static str,
        /// The element type.
        given: String,
    },
    /// A pattern with a value out of range.
    #[error("pattern: {0}")]
    Pattern(#[from] LimitError),
    /// There is no such kernel.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The kernel could not be made.
    #[error("{0}")]
    Emit(String),
    /// The kernel could not be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The backend tracks gradients.
    #[error(
        "{0} has no gradients yet: call it on the inner backend (`tensor.inner()`), or train with dense attention"
    )]
    Gradients(&'static str),
}
