//! Kernels for Hopper (sm_90a), with instructions that CubeCL has no name for: CUDA C++ text
//! from a `KernelSpec`.
//!
//! In:  a spec. Out: text and the numbers of its launch, or the reason why this generator does
//! not make it; then the portable kernel is there. Pure functions: the same spec gives the
//! same bytes.
//!
//! `prefill`, `decode` and `product` hold a kernel each, in fragments (`*.cuh`) of CUDA C++ over
//! constants; `rows.rs` writes the evaluation of a pattern's rows, and `source.rs` what else
//! both begin with.

mod decode;
#[cfg(test)]
mod patterns;
mod prefill;
pub(crate) mod product;
mod rows;
mod source;

use butterfly_ir::{Geometry, KernelSpec, Phase, Sm, Target};

/// The architecture whose instructions the kernels use.
pub(crate) const TARGET: Target = Target::Cuda(Sm {
    version: 90,
    arch_specific: true,
});

/// The numbers of a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Prefill(prefill::Plan),
    Decode(decode::Plan),
}

impl Plan {
    /// The plan of `spec`, or why this generator does not make it.
    pub(crate) fn new(spec: &KernelSpec) -> Result<Self, &'static str> {
        match spec.phase {
            Phase::Prefill => prefill::Plan::new(spec).map(Self::Prefill),
            Phase::Decode => decode::Plan::new(spec).map(Self::Decode),
        }
    }

    /// The text of the kernel of `spec`, whose plan this is.
    pub(crate) fn text(&self, spec: &KernelSpec) -> String {
        match self {
            Self::Prefill(plan) => prefill::text(spec, plan),
            Self::Decode(plan) => decode::text(spec, plan),
        }
    }

    /// How the kernel is launched.
    pub(crate) fn geometry(&self) -> Geometry {
        match self {
            Self::Prefill(plan) => plan.geometry(),
            Self::Decode(plan) => plan.geometry(),
        }
    }
}
