//! Emits kernels for every target from a plan.
//!
//! Owns: the attention kernels, and the way from them to the text or binary of a
//! target. In: [`KernelSpec`]. Out: [`Kernel`]. No device is needed or touched; the
//! only thing read from outside is the NVRTC library, where there is one.
//!
//! Invariants: [`emit`] is a pure function, the same bytes in every process and on
//! every thread; features that a target lacks are refused before emission.

// Without any emitter everything is refused.
#![cfg_attr(
    not(any(feature = "cuda", feature = "wgpu", feature = "metal")),
    allow(dead_code, unused_imports, unreachable_code)
)]

mod canonical;
#[cfg(feature = "cuda")]
mod cuda;
mod emit;
mod error;
#[allow(dead_code)] // not launched yet
mod hopper;
#[cfg(feature = "metal")]
mod metal;
mod portable;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use butterfly_ir::{Kernel, KernelSpec, Target};
#[cfg(feature = "cuda")]
pub use cuda::nvrtc;
pub use emit::{emit, geometry};
pub use error::EmitError;
