//! KernelSpec × target → which kernel is emitted, and the reason. Nothing else chooses a kernel:
//! emission, geometries and reports start from the [`Blueprint`] that is made here.

use crate::EmitError;
use crate::portable;
use butterfly_ir::{Dtype, Geometry, KernelSpec, Role, Target};

/// The kernel that was chosen, with the numbers that it is specialised by.
pub(crate) enum Blueprint {
    /// A kernel with Hopper's own instructions.
    #[cfg(feature = "cuda")]
    Hopper(crate::hopper::Blueprint),
    /// The portable kernel.
    Portable {
        /// Its numbers.
        blueprint: portable::Blueprint,
        /// Why it uses none of Hopper's own instructions.
        why_not: &'static str,
    },
}

/// Chooses the kernel of `spec` on `target`.
///
/// # Errors
/// [`EmitError::Limit`] and [`EmitError::Unsupported`] for specs that the target cannot run.
pub(crate) fn blueprint(spec: &KernelSpec, target: Target) -> Result<Blueprint, EmitError> {
    check(spec, target)?;
    #[cfg(feature = "cuda")]
    let why_not = match target == crate::hopper::TARGET {
        true => match crate::hopper::Blueprint::new(spec) {
            Ok(blueprint) => return Ok(Blueprint::Hopper(blueprint)),
            Err(why_not) => why_not,
        },
        false => "they are of sm_90a",
    };
    #[cfg(not(feature = "cuda"))]
    let why_not = "this build has no CUDA";
    Ok(Blueprint::Portable {
        blueprint: portable::Blueprint::new(spec, target),
        why_not,
    })
}

impl Blueprint {
    /// How the kernel of `spec` is launched.
    pub(crate) fn geometry(&self, spec: &KernelSpec) -> Geometry {
        match self {
            #[cfg(feature = "cuda")]
            Self::Hopper(blueprint) => blueprint.geometry(),
            Self::Portable { blueprint, .. } => blueprint.geometry(spec.role),
        }
    }

    /// The portable kernel, on targets that have no other.
    #[cfg(any(feature = "wgpu", feature = "metal"))]
    pub(crate) fn portable(&self) -> &portable::Blueprint {
        match self {
            #[cfg(feature = "cuda")]
            Self::Hopper(_) => unreachable!("chosen on NVIDIA only"),
            Self::Portable { blueprint, .. } => blueprint,
        }
    }

    /// Which kernel it is and why, in one line.
    fn reason(&self, spec: &KernelSpec, target: Target) -> String {
        match (spec.role, self) {
            #[cfg(feature = "cuda")]
            (Role::Decode, Self::Hopper(_)) => "Hopper decode: copies by tensor maps; a cluster of workgroups takes one query of all heads of a group, whose keys it splits and reads once, or a workgroup alone where there are many; one launch, merged in shared memory, or for long rows a launch of the whole device and one that merges".into(),
            #[cfg(feature = "cuda")]
            (Role::Prefill, Self::Hopper(_)) if spec.is_wide() => "Hopper prefill: copies by tensor maps, wgmma, resident workgroups; two warpgroups share the columns of an output that is too wide for the registers of one".into(),
            #[cfg(feature = "cuda")]
            (Role::Prefill, Self::Hopper(_)) => "Hopper prefill: copies by tensor maps, wgmma, resident workgroups; the heads of a group share tiles of k and v".into(),
            (Role::Decode, Self::Portable { why_not, .. }) => format!(
                "portable decode: few queries, so a workgroup takes one query of all heads of a group, and splits its keys; no Hopper instructions: {why_not}"
            ),
            (Role::Prefill, Self::Portable { blueprint, why_not }) => {
                match blueprint.uses_matrix_units() {
                    true => format!(
                        "portable prefill on matrix units, 16x8x16: {} with a v head size of at most 256; no Hopper instructions: {why_not}",
                        spec.dtype.name()
                    ),
                    false => {
                        let why = why_scalar(spec, target);
                        format!("portable prefill on scalar units: {why}")
                    }
                }
            }
        }
    }
}

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
    let blueprint = blueprint(spec, target)?;
    Ok(Choice {
        geometry: blueprint.geometry(spec),
        reason: blueprint.reason(spec, target),
    })
}

/// Refuses specs that cannot be emitted.
fn check(spec: &KernelSpec, target: Target) -> Result<(), EmitError> {
    let limit = |what, given: u32, ok: bool, limit| match ok {
        true => Ok(()),
        false => Err(EmitError::Limit {
            what,
            given: u64::from(given),
            limit,
        }),
    };
    let dim = |d: u32| d > 0 && d <= 576 && d.is_multiple_of(8);
    let dims = "a multiple of 8, at most 576";
    limit("head_dim", spec.head_dim, dim(spec.head_dim), dims)?;
    limit("v_head_dim", spec.v_head_dim, dim(spec.v_head_dim), dims)?;
    limit("group", spec.group, spec.group > 0, "at least 1")?;
    let block = (1..=1 << 24).contains(&spec.block);
    limit("block", spec.block, block, "between 1 and 16777216")?;
    if !portable::rows_fit(spec) {
        return Err(EmitError::Unsupported {
            target,
            what: "room in registers for more than 64 bands a row".to_string(),
            instead: "use rows from a table".to_string(),
        });
    }
    match (target, spec.dtype) {
        (Target::Vulkan | Target::Webgpu, Dtype::Bf16) => Err(EmitError::Unsupported {
            target,
            what: "bf16 arithmetic".to_string(),
            instead: "use f16 or f32".to_string(),
        }),
        (Target::Cuda(_) | Target::Metal, Dtype::Bf16)
        | (_, Dtype::F16 | Dtype::F32)
        | (Target::Cpu, Dtype::Bf16) => Ok(()),
    }
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
