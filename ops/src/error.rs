//! The error of operations.

use butterfly_ir::LimitError;
use butterfly_runtime::LaunchError;
use butterfly_runtime::artifacts::ArtifactError;

/// Why an operation was not run.
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
    /// An argument has a value that the operation cannot take.
    #[error("{operation}: {what}")]
    Argument {
        /// The operation.
        operation: &'static str,
        /// The value, and what was expected.
        what: String,
    },
    /// More elements, tokens or sequences than a kernel can index or a device has memory for.
    #[error(
        "{operation}: `{tensor}` has {given} {what}, but this device takes at most {limit}; give fewer tokens at a time (--chunk)"
    )]
    Limit {
        /// The operation.
        operation: &'static str,
        /// The tensor.
        tensor: &'static str,
        /// The quantity that is too large, such as `tokens`.
        what: &'static str,
        /// The tensor's value of it.
        given: u64,
        /// The largest value that is accepted.
        limit: u64,
    },
    /// There are no kernels for an element type.
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
    /// The artifacts are not valid, or hold no kernel for the operation.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The kernel could not be generated.
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
