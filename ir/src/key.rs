//! The content key of a kernel.

use crate::{KernelSpec, Target};

/// Version of the emitters; to be increased whenever they write a different kernel for the same
/// specification.
pub const CODEGEN_VERSION: u32 = 12;

/// The content key of the kernel of `spec` for `target`; kernels with equal keys are
/// interchangeable.
///
/// The first 32 hexadecimal digits of a BLAKE3 hash over the JSON of the specification,
/// [`CODEGEN_VERSION`] and the target.
pub fn of(spec: &KernelSpec, target: Target) -> String {
    let mut hasher = blake3::Hasher::new();
    let canonical = serde_json::to_vec(spec).expect("numbers, names and lists have a JSON form");
    hasher.update(&canonical);
    hasher.update(format!("\ncodegen {CODEGEN_VERSION}\ntarget {target}\n").as_bytes());
    hasher.finalize().to_hex()[..32].to_string()
}
