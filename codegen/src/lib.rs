//! Emits kernels for every target from their specifications.
//!
//! Owns: the attention kernels, and how they become the text or binary of a target. In:
//! [`KernelSpec`]. Out: [`Kernel`]. No device is needed or opened; the only external input is
//! the NVRTC library, where it is installed.
//!
//! Preconditions of a launch: a kernel takes the arguments that
//! [`signature`](butterfly_ir::kernel::signature) lists, in that order and nothing else (no buffer
//! of lengths); every buffer starts at a multiple of 16 bytes. [`Kernel::geometry`] gives the grid
//! and, on CUDA, the dynamic shared memory, for which the launch has to raise the function's limit
//! where it exceeds 48 KiB. Keys from `kv_len` on are never read.
//!
//! Invariants: [`emit`] is a pure function of its arguments and of the NVRTC that is found; it
//! gives the same bytes in every process and on every thread. A spec that the target cannot run is
//! refused before emission.

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
pub use emit::{assemble, emit, write};
#[cfg(feature = "cuda")]
pub use emit::{assemble_text, delta_rule, grouped, product, scorer};
pub use error::EmitError;
