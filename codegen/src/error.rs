//! The errors of emission.

use butterfly_ir::Target;

/// Why a kernel could not be emitted.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// The target cannot run such a kernel.
    #[error("{target} has no {what}; {instead}")]
    Unsupported {
        /// The target asked for.
        target: Target,
        /// What it lacks.
        what: String,
        /// What to ask for instead.
        instead: String,
    },
    /// A field exceeds a limit of this crate's kernels.
    #[error("{what} is {given}, must be {limit}")]
    Limit {
        /// Which field.
        what: &'static str,
        /// Its value.
        given: u64,
        /// What is allowed.
        limit: &'static str,
    },
    /// The target's kernels are Rust code of the `cpu` crate, so there is no text to emit.
    #[error("{0} kernels are not emitted; they are part of the program")]
    NotHere(Target),
    /// This build has no emitter for the target.
    #[error("built without the `{feature}` feature of butterfly-codegen, which {target} needs")]
    NotBuilt {
        /// The target asked for.
        target: Target,
        /// The cargo feature.
        feature: &'static str,
    },
    /// NVRTC rejected a text: a bug of this crate, or an architecture that this NVRTC does not
    /// know.
    #[error("NVRTC {version} for {target}: {log}")]
    Nvrtc {
        /// The target asked for.
        target: Target,
        /// Version of the library.
        version: String,
        /// The compiler's log.
        log: String,
    },
    /// A bug of this crate, or a panic in a printer of CubeCL.
    #[error("internal error while emitting for {target}: {message}")]
    Internal {
        /// The target asked for.
        target: Target,
        /// What happened.
        message: String,
    },
}
