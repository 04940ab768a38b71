//! Artifact folders on disk, GPU devices, and kernel launches.
//!
//! Owns: every device except the CPU, and the artifact folder.
//! In:  a manifest and its files to write, or a folder to read; kernels to launch, on host memory
//! or on tensors of a CubeCL server that other code uses too.
//! Out: a folder that is written completely or not at all; kernels whose digests were checked;
//! results in host memory or in the caller's tensors.
//!
//! Invariants: works without the compiler and the emitters; no file of a folder is used before its
//! digest was checked; a missing kernel is an error, and is never compiled instead.

#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod artifacts;
mod launch;

pub use launch::{
    Adapter, Arguments, Call, Device, Found, LaunchError, Loaded, Output, Ready, adapters, find,
    launch,
};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use launch::{
    DeltaTensors, DeltaTokens, DeviceTable, FewGates, FewPairs, FewSizes, FewTensors, GroupedSizes,
    GroupedTensors, Launches, Multiply, NormedSizes, NormedTensors, QuantisedExperts,
    QuantisedSizes, QuantisedTensors, ReadyDeltaRule, ReadyGrouped, ReadyProduct, ReadyScorer,
    Scoring, ScoringTensors, Tensors, Written, enqueue,
};
#[cfg(feature = "cuda")]
pub use launch::{seed, seed_folder};
