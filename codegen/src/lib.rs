//! Emits kernels for every target from a plan.
//!
//! Owns: the attention kernels, and the way from them to the text or binary of a
//! target. In: [`KernelSpec`]. Out: [`Kernel`]. No device is needed or touched; the
//! only thing read from outside is the NVRTC library, where there is one.
//!
//! Contract with who launches: the buffers of [`Kernel::files`] in their order and
//! nothing else (no buffer of lengths), each at an address that is a multiple of 16
//! bytes; [`Kernel::geometry`] says the grid, and on CUDA the dynamic shared memory,
//! which may exceed 48 KiB and then has to be asked for. Keys at or after `kv_len` are
//! never read.
//!
//! Invariants: [`emit`] is a pure function, the same bytes in every process and on
//! every thread; features that a target lacks are refused before emission.

// Without any emitter everything is refused.
#![cfg_attr(
    not(any(feature = "cuda", feature = "wgpu", feature = "metal")),
    allow(dead_code, unused_imports, unreachable_code)
)]

mod canonical;
mod choice;
#[cfg(feature = "cuda")]
mod cuda;
mod emit;
mod error;
#[cfg(feature = "cuda")]
mod hopper;
#[cfg(feature = "metal")]
mod metal;
mod portable;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use butterfly_ir::{Kernel, KernelSpec, Target};
pub use choice::{Choice, choose};
#[cfg(feature = "cuda")]
pub use cuda::{nvrtc, ptx};
pub use emit::{assemble, emit, geometry, write};
#[cfg(feature = "cuda")]
pub use emit::{assemble_product, product};
pub use error::EmitError;
