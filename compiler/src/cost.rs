//! Schedule → time: the roofline of a machine over exact counts.
//!
//! In:  what a kernel does, the shapes of one layer, and a machine's constants.
//! Out: the bytes, the FLOP, the time they bound, and which of them does.
//! Constants are measured once for a machine, never fitted to a row of results.

use crate::schedule::Schedule;
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
    /// Queries.
    pub q_len: u32,
    /// Keys.
    pub kv_len: u32,
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

impl Limit {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
            Self::Launch => "launch",
        }
    }
}

/// What one launch must do, whatever the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// FLOP over the tiles that are visited, masked pairs included.
    pub tile_flop: u64,
    /// FLOP over the pairs that are seen.
    pub exact_flop: u64,
    /// Bytes that must cross memory: each query, each key that is read and each output once.
    pub bytes: u64,
}

/// Predicted time of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Predicted seconds.
    pub seconds: f64,
    /// What bounds them.
    pub limit: Limit,
}

/// Counts FLOP and bytes of `schedule` (one q head of one sequence) over all of `shape`.
pub fn count(schedule: &Schedule, shape: &LayerShape) -> Cost {
    let heads = u64::from(shape.batch) * u64::from(shape.q_heads);
    let kv_heads = u64::from(shape.batch) * u64::from(shape.kv_heads);
    let dims = u64::from(shape.head_dim + shape.v_head_dim);
    let (queries, keys) = (
        u64::from(shape.q_len),
        schedule.keys.min(shape.kv_len.into()),
    );
    let elements = dims * (queries * heads + keys * kv_heads);
    Cost {
        tile_flop: 2 * schedule.tile_pairs * heads * dims,
        exact_flop: 2 * schedule.pairs * heads * dims,
        bytes: elements * u64::from(shape.dtype.bytes()) + queries * heads * 4,
    }
}

/// The time that `machine` needs at least for `cost`.
pub fn predict(cost: &Cost, machine: &Machine) -> Prediction {
    let compute = cost.tile_flop as f64 / machine.flop_per_second;
    let memory = cost.bytes as f64 / machine.bytes_per_second;
    let busy = compute.max(memory);
    let limit = match busy {
        _ if busy < machine.launch_seconds => Limit::Launch,
        _ if compute >= memory => Limit::Compute,
        _ => Limit::Memory,
    };
    Prediction {
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
            q_len: 10,
            kv_len: 10,
            dtype: Dtype::F32,
        };
        let work = |tile_pairs| {
            let schedule = Schedule {
                pairs: 50,
                tile_pairs,
                keys: 30,
                ..Schedule::default()
            };
            count(&schedule, &shape)
        };
        let small = work(100);
        assert_eq!(
            (small.tile_flop, small.exact_flop, small.bytes),
            (6400, 3200, 2000)
        );
        let prediction = predict(&small, &machine);
        assert_eq!(prediction.limit, Limit::Compute);
        assert!((prediction.seconds - 7.4e-6).abs() < 1e-12);
        assert_eq!(predict(&work(10), &machine).limit, Limit::Memory);
        let slow = Machine {
            launch_seconds: 1.0,
            ..machine
        };
        assert_eq!(predict(&small, &slow).limit, Limit::Launch);
    }
}
