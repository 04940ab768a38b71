//! Artifacts on disk, devices, and launching.

pub mod artifacts;
