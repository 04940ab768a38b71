//! Kernels for Hopper (sm_90a), with instructions that CubeCL does not offer, as CUDA C++ text.
//!
//! In:  a `KernelSpec`. Out: the text of a kernel and its launch geometry, or the reason why this
//! generator does not take the spec; the portable kernel is emitted then. Pure functions: the same
//! spec gives the same bytes.
//!
//! `prefill`, `decode`, `product`, `grouped` and `route` hold one kernel each, `delta` four, as
//! fragments of CUDA C++ (`*.cuh`) that refer to constants; these are written before the fragments.
//! `rows.rs` writes the code that evaluates a pattern's rows, and `source.rs` the parts that several
//! kernels share.

mod decode;
pub(crate) mod delta;
pub(crate) mod grouped;
#[cfg(test)]
mod patterns;
mod prefill;
pub(crate) mod product;
pub(crate) mod route;
mod rows;
mod source;

use butterfly_ir::{Geometry, KernelSpec, Role, Sm, Target};

/// The architecture whose instructions the kernels use.
pub(crate) const TARGET: Target = Target::Cuda(Sm {
    version: 90,
    arch_specific: true,
});

/// The compile-time numbers of an attention kernel for Hopper.
#[derive(Clone, Debug)]
pub(crate) enum Blueprint {
    Prefill(prefill::Blueprint),
    Decode(decode::Blueprint),
}

impl Blueprint {
    /// The numbers for `spec`, or the reason why this generator does not take it.
    pub(crate) fn new(spec: &KernelSpec) -> Result<Self, &'static str> {
        match spec.role {
            Role::Prefill => prefill::Blueprint::new(spec).map(Self::Prefill),
            Role::Decode => decode::Blueprint::new(spec).map(Self::Decode),
        }
    }

    /// The text of the kernel of `spec`, from which these numbers were made.
    pub(crate) fn text(&self, spec: &KernelSpec) -> String {
        match self {
            Self::Prefill(blueprint) => prefill::text(spec, blueprint),
            Self::Decode(blueprint) => decode::text(spec, blueprint),
        }
    }

    /// How the kernel is launched.
    pub(crate) fn geometry(&self) -> Geometry {
        match self {
            Self::Prefill(blueprint) => blueprint.geometry(),
            Self::Decode(blueprint) => blueprint.geometry(),
        }
    }
}
