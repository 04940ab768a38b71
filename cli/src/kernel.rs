//! Makes kernels by `butterfly-build`, with errors as failures of this command.

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

/// Adds the binaries of a kernel, if it has any and the compiler for them is installed.
pub(crate) fn assemble(kernel: Kernel) -> Result<Kernel, Failure> {
    butterfly_build::assemble(kernel).map_err(Failure::bad)
}

/// The tiles of the kernel that [`make`] makes, and why that kernel was chosen.
pub(crate) fn choice(spec: &KernelSpec, target: Target) -> Result<(Geometry, String), Failure> {
    butterfly_build::choice(spec, target).map_err(Failure::bad)
}
