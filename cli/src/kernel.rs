//! Kernels as `butterfly-build` makes them, with this command's failures.

use crate::failure::Failure;
use butterfly_ir::manifest::KernelEntry;
use butterfly_ir::{Geometry, Kernel, KernelSpec, Target};

pub(crate) use butterfly_build::{Files, describe};

/// Writes and assembles one kernel and describes it.
pub(crate) fn make(spec: &KernelSpec, target: Target) -> Result<(KernelEntry, Files), Failure> {
    butterfly_build::make(spec, target).map_err(Failure::bad)
}

/// Writes a kernel in the language of its target.
pub(crate) fn write(spec: &KernelSpec, target: Target) -> Result<Kernel, Failure> {
    butterfly_build::write(spec, target).map_err(Failure::bad)
}

/// Adds what a compiler that is here makes of a kernel.
pub(crate) fn assemble(kernel: Kernel) -> Result<Kernel, Failure> {
    butterfly_build::assemble(kernel).map_err(Failure::bad)
}

/// The tiles of the kernel that [`make`] makes, and why it is that kernel.
pub(crate) fn choice(spec: &KernelSpec, target: Target) -> Result<(Geometry, String), Failure> {
    butterfly_build::choice(spec, target).map_err(Failure::bad)
}
