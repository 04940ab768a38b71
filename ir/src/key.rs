//! The content key of a kernel.

use crate::{KernelSpec, Target};

/// Changes whenever the emitters write other kernels for the same plan.
pub const CODEGEN_VERSION: u32 = 11;

/// 32 hexadecimal digits of the BLAKE3 of the canonical plan, the version of the
/// emitters and the target: equal keys mean interchangeable kernels.
pub fn of(spec: &KernelSpec, target: Target) -> String {
    let mut hasher = blake3::Hasher::new();
    let canonical = serde_json::to_vec(spec).expect("numbers, names and lists have a JSON form");
    hasher.update(&canonical);
    hasher.update(format!("\ncodegen {CODEGEN_VERSION}\ntarget {target}\n").as_bytes());
    hasher.finalize().to_hex()[..32].to_string()
}
