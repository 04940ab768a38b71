//! KernelSpec × target → which kernel is emitted, and the reason.

use crate::EmitError;
use crate::emit::check;
use crate::portable::uses_matrix_units;
use butterfly_ir::{Dtype, Geometry, KernelSpec, Role, Target};

/// The kernel that [`emit`](crate::emit()) would make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How the kernel is launched.
    pub geometry: Geometry,
    /// Which kernel it is and why, in one line for users.
    pub reason: String,
}

/// Makes the same choice as [`emit`](crate::emit()), without emitting.
///
/// # Errors
/// [`EmitError::Limit`] and [`EmitError::Unsupported`], as from [`emit`](crate::emit()).
pub fn choose(spec: &KernelSpec, target: Target) -> Result<Choice, EmitError> {
    check(spec, target)?;
    let reason = match (spec.role, hopper(spec, target)) {
        (Role::Decode, Ok(())) => "Hopper decode: copies by tensor maps; a cluster of workgroups takes one query of all heads of a group, whose keys it splits and reads once, or a workgroup alone where there are many; one launch, merged in shared memory".to_string(),
        (Role::Prefill, Ok(())) if spec.is_wide() => "Hopper prefill: copies by tensor maps, wgmma, resident workgroups; two warpgroups share the columns of an output that is too wide for the registers of one".to_string(),
        (Role::Prefill, Ok(())) => "Hopper prefill: copies by tensor maps, wgmma, resident workgroups; the heads of a group share tiles of k and v".to_string(),
        (Role::Decode, Err(why_not)) => format!(
            "portable decode: few queries, so a workgroup takes one query of all heads of a group, and splits its keys; no Hopper instructions: {why_not}"
        ),
        (Role::Prefill, Err(why_not)) if uses_matrix_units(spec, target) => format!(
            "portable prefill on matrix units, 16x8x16: {} with a v head size of at most 256; no Hopper instructions: {why_not}",
            spec.dtype.name()
        ),
        (Role::Prefill, Err(_)) => format!(
            "portable prefill on scalar units: {}",
            why_scalar(spec, target)
        ),
    };
    Ok(Choice {
        geometry: crate::geometry(spec, target),
        reason,
    })
}

#[cfg(feature = "cuda")]
fn hopper(spec: &KernelSpec, target: Target) -> Result<(), &'static str> {
    crate::emit::hopper(spec, target).map(|_| ())
}

#[cfg(not(feature = "cuda"))]
fn hopper(_: &KernelSpec, _: Target) -> Result<(), &'static str> {
    Err("this build has no CUDA")
}

fn why_scalar(spec: &KernelSpec, target: Target) -> &'static str {
    match (target, spec.dtype) {
        (Target::Cuda(_), Dtype::F32) => "matrix units would round f32 to 10 bits",
        (Target::Cuda(_), Dtype::F16 | Dtype::Bf16) if spec.v_head_dim > 256 => {
            "a v head size above 256 leaves no registers for matrix units"
        }
        (Target::Cuda(_), Dtype::F16 | Dtype::Bf16) => "no matrix units for this element type",
        (Target::Vulkan | Target::Webgpu | Target::Metal | Target::Cpu, _) => {
            "the matrix units of this target are not used yet"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::{Rows, Sm};

    #[test]
    fn the_reason_follows_the_kernel() {
        let mut spec = KernelSpec {
            score: Default::default(),
            role: Role::Prefill,
            head_dim: 128,
            v_head_dim: 128,
            group: 4,
            dtype: Dtype::F16,
            block: 128,
            rows: Rows::Table,
        };
        let sm_80 = Target::Cuda(Sm {
            version: 80,
            arch_specific: false,
        });
        let reason = |spec: &KernelSpec, target| choose(spec, target).expect("a choice").reason;
        assert!(reason(&spec, sm_80).contains("matrix units, 16x8x16"));
        assert!(reason(&spec, "cuda:sm_90a".parse().expect("a target")).contains("wgmma"));
        assert!(reason(&spec, Target::Vulkan).contains("scalar units"));
        spec.dtype = Dtype::F32;
        assert!(reason(&spec, sm_80).contains("f32"));
        spec.dtype = Dtype::Bf16;
        assert!(choose(&spec, Target::Webgpu).is_err());
        spec.role = Role::Decode;
        assert!(reason(&spec, sm_80).contains("decode"));
    }
}
