//! Artifacts on disk, devices, and launching.
//!
//! Owns: every device but the CPU, and the artifact folder. In: a manifest and files to
//! write, or a folder to read; kernels to launch, on host memory or on tensors of a server
//! that others use too. Out: a folder that is whole or absent, kernels that match their
//! digests, results where they were asked for.
//!
//! Invariants: works without the compiler and the emitters; nothing of a folder is used
//! before its digest holds; a kernel that is not there is an error, never compiled.

#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod artifacts;
mod launch;

pub use launch::{
    Adapter, Arguments, Call, Device, Found, LaunchError, Loaded, Output, Ready, adapters, find,
    launch,
};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use launch::{DeviceTable, Launches, Multiply, ReadyProduct, Tensors, enqueue};
#[cfg(feature = "cuda")]
pub use launch::{seed, seed_folder};
