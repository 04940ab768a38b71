//! Work → time: the roofline of a machine over exact counts.
//!
//! In:  counted work, the shapes of one layer, and a machine's constants.
//! Out: the bytes, the FLOP, the time they bound, and which of them does.
//! Constants are measured once for a machine, never fitted to a row of results.

use crate::work::Work;
use butterfly_ir::{Dtype, Sm, Target};
use serde::Serialize;

/// What a machine reaches, as measured on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Name of the device the constants were measured on.
    pub name: String,
    /// FLOP a second of large matrix products in the kernel's dtype.
    pub flop_per_second: f64,
    /// Bytes read and written a second by a large copy.
    pub bytes_per_second: f64,
    /// Seconds that an empty launch takes.
    pub launch_seconds: f64,
}

/// The shapes of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerShape {
    /// Sequences.
    pub batch: u32,
    /// q heads.
    pub q_heads: u32,
    /// kv heads.
    pub kv_heads: u32,
    /// D.
    pub head_dim: u32,
    /// Dv.
    pub v_head_dim: u32,
    /// Queries and keys.
    pub tokens: u32,
    /// Element type.
    pub dtype: Dtype,
}

/// What bounds a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Arithmetic.
    Compute,
    /// Memory traffic.
    Memory,
    /// The cost of a launch.
    Launch,
}

/// Predicted cost of one launch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// FLOP over the tiles that are visited, masked pairs included.
    pub tile_flop: u64,
    /// FLOP over the pairs that are seen.
    pub exact_flop: u64,
    /// Bytes that must cross memory: each input once, each output once.
    pub bytes: u64,
    /// Predicted seconds.
    pub seconds: f64,
    /// What bounds them.
    pub limit: Limit,
}

/// Predicts one launch over `shape`, whose visited tiles hold `tile_pairs` (query, key)
/// pairs for each q head of each sequence.
pub fn predict(work: &Work, tile_pairs: u64, shape: &LayerShape, machine: &Machine) -> Prediction {
    let heads = u64::from(shape.batch) * u64::from(shape.q_heads);
    let kv_heads = u64::from(shape.batch) * u64::from(shape.kv_heads);
    let dims = u64::from(shape.head_dim + shape.v_head_dim);
    let tokens = u64::from(shape.tokens);
    let tile_flop = 2 * tile_pairs * heads * dims;
    let elements = tokens * dims * (heads + kv_heads);
    let bytes = elements * u64::from(shape.dtype.bytes()) + tokens * heads * 4;
    let compute = tile_flop as f64 / machine.flop_per_second;
    let memory = bytes as f64 / machine.bytes_per_second;
    let (busy, limit) = if compute >= memory {
        (compute, Limit::Compute)
    } else {
        (memory, Limit::Memory)
    };
    let limit = if busy < machine.launch_seconds {
        Limit::Launch
    } else {
        limit
    };
    Prediction {
        tile_flop,
        exact_flop: work.flop(shape.head_dim, shape.v_head_dim) * heads,
        bytes,
        seconds: busy + machine.launch_seconds,
        limit,
    }
}

/// The machine a target is predicted for, where one was measured.
///
/// The figures are those of cuBLAS and of a device copy on that device, so the time is a
/// floor for a kernel, not what a given kernel reaches.
pub fn known(target: Target) -> Option<Machine> {
    match target {
        Target::Cuda(Sm { version: 90, .. }) => Some(Machine {
            name: "NVIDIA H200".into(),
            flop_per_second: 694e12,
            bytes_per_second: 4.3e12,
            launch_seconds: 5e-6,
        }),
        Target::Cuda(_) | Target::Vulkan | Target::Webgpu | Target::Metal | Target::Cpu => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_two_times_bounds() {
        let machine = Machine {
            name: "test".into(),
            flop_per_second: 1e9,
            bytes_per_second: 1e9,
            launch_seconds: 1e-6,
        };
        let shape = LayerShape {
            batch: 1,
            q_heads: 2,
            kv_heads: 1,
            head_dim: 8,
            v_head_dim: 8,
            tokens: 10,
            dtype: Dtype::F32,
        };
        let work = Work {
            pairs: 50,
            ..Work::default()
        };
        let small = predict(&work, 100, &shape, &machine);
        assert_eq!(
            (small.tile_flop, small.exact_flop, small.bytes),
            (6400, 3200, 2000)
        );
        assert_eq!(small.limit, Limit::Compute);
        assert!((small.seconds - 7.4e-6).abs() < 1e-12);
        assert_eq!(predict(&work, 10, &shape, &machine).limit, Limit::Memory);
    }
}
