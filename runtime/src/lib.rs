//! Artifacts on disk, devices, and launching.
