//! The content key of a kernel.

use butterfly_ir::{KernelSpec, Target};

/// Changes whenever the emitters write other kernels for the same plan.
pub const CODEGEN_VERSION: u32 = 1;

/// 32 hexadecimal digits of the BLAKE3 of the canonical plan, the version of the
/// emitters and the target: equal keys mean interchangeable kernels.
pub fn of(spec: &KernelSpec, target: Target) -> Result<String, serde_json::Error> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(serde_json::to_string(spec)?.as_bytes());
    hasher.update(format!("\ncodegen {CODEGEN_VERSION}\ntarget {target}\n").as_bytes());
    Ok(hasher.finalize().to_hex()[..32].to_string())
}
