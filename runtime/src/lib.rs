//! Artifacts on disk, devices, and launching.
//!
//! Owns: every device but the CPU, and the artifact folder. In: a manifest and files to
//! write, or a folder to read; kernels and host memory to launch. Out: a folder that is
//! whole or absent, kernels that match their digests, results in host memory.
//!
//! Invariants: works without the compiler and the emitters; nothing of a folder is used
//! before its digest holds; a kernel that is not there is an error, never compiled.

pub mod artifacts;
mod launch;

pub use launch::{
    Adapter, Arguments, Device, Found, LaunchError, Loaded, Output, adapters, launch,
};
