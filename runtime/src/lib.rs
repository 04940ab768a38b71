//! Artifacts on disk, devices, and launching.

pub mod artifacts;
mod launch;

pub use launch::{Adapter, Arguments, Device, LaunchError, Loaded, Output, adapters, launch};
