//! Schedule → predicted time, from exact counts and a few measured rates.
//!
//! In:  a kernel's schedule, the shape of one layer, and a machine's rates.
//! Out: the bytes, the FLOP, the time predicted from them, and what bounds it.
//! Rates are measured once for a machine and a kind of kernel; they are never fitted to the
//! results that they are meant to predict.

use crate::schedule::Schedule;
use butterfly_ir::{Dtype, Geometry, Launch, Role};
use serde::Serialize;

/// The rates of a machine, as measured or as given by the user.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Name of the device.
    pub name: String,
    /// FLOP per second of matrix products.
    pub flop_per_second: f64,
    /// Bytes per second to and from memory, reads plus writes.
    pub bytes_per_second: f64,
    /// Seconds that a launch takes before and after its work.
    pub launch_seconds: f64,
    /// The rates of the kernel's other work, where they were measured. Without them a prediction
    /// is the roofline: a lower bound of the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Pace>,
}

/// The rates of a kind of kernel on a whole machine, for its work other than products.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// (query, key) pairs per second, for the part of the softmax that products do not hide.
    pub pairs_per_second: f64,
    /// Bytes of q and o per second, for the part of loading q and storing o that nothing hides.
    pub row_bytes_per_second: f64,
    /// Number of SMs; a kernel with fewer workgroups leaves some of them idle.
    pub processors: u64,
}

/// The sizes of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerShape {
    /// Sequences.
    pub batch: u32,
    /// q heads.
    pub q_heads: u32,
    /// kv heads.
    pub kv_heads: u32,
    /// Head size of q and k, in elements.
    pub head_dim: u32,
    /// Head size of v, in elements.
    pub v_head_dim: u32,
    /// Number of queries.
    pub q_len: u32,
    /// Number of keys.
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

/// The work of one launch, whatever the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// FLOP of QK^T and PV over all visited tiles, masked pairs included.
    pub tile_flop: u64,
    /// FLOP of QK^T and PV over the pairs that are seen.
    pub exact_flop: u64,
    /// Bytes that must pass between device memory and the SMs: every query, every key and value
    /// that is read, every output and log-sum-exp, each once.
    pub bytes: u64,
    /// (query, key) pairs in all visited tiles.
    pub tile_pairs: u64,
    /// The part of `bytes` that is q and o.
    pub row_bytes: u64,
    /// Workgroups; for a persistent kernel, the work items that its workgroups take.
    pub workgroups: u64,
}

/// The predicted time of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Seconds, the cost of the launch included.
    pub seconds: f64,
    /// What bounds the time.
    pub limit: Limit,
}

/// Counts the work of one launch: `schedule` is that of one q head of one sequence, `shape` says
/// how many of these there are.
pub fn count(schedule: &Schedule, shape: &LayerShape, role: Role, geometry: &Geometry) -> Cost {
    let heads = u64::from(shape.batch) * u64::from(shape.q_heads);
    let kv_heads = u64::from(shape.batch) * u64::from(shape.kv_heads);
    let dims = u64::from(shape.head_dim + shape.v_head_dim);
    let (queries, keys) = (
        u64::from(shape.q_len),
        schedule.keys.min(shape.kv_len.into()),
    );
    let dtype = u64::from(shape.dtype.bytes());
    let row_bytes = dims * queries * heads * dtype;
    let tile_pairs = schedule.tile_pairs * heads;
    Cost {
        tile_flop: 2 * tile_pairs * dims,
        exact_flop: 2 * schedule.pairs * heads * dims,
        bytes: row_bytes + dims * keys * kv_heads * dtype + queries * heads * 4,
        tile_pairs,
        row_bytes,
        workgroups: match (role, geometry.launch) {
            (Role::Prefill, Launch::Resident(resident)) => {
                schedule.rows * u64::from(resident.items_per_row) * kv_heads
            }
            (Role::Prefill, Launch::Grid | Launch::Split(_)) => schedule.workgroups * heads,
            (Role::Decode, _) => schedule.workgroups * kv_heads,
        },
    }
}

/// Predicts the time that `machine` takes for `cost`. Without a [`Pace`] this is the roofline, a
/// lower bound.
pub fn predict(cost: &Cost, machine: &Machine) -> Prediction {
    let mut compute = cost.tile_flop as f64 / machine.flop_per_second;
    if let Some(pace) = &machine.kernel {
        compute += cost.tile_pairs as f64 / pace.pairs_per_second;
        compute += cost.row_bytes as f64 / pace.row_bytes_per_second;
        // Workgroups run in rounds of one per SM, and the last round may leave SMs idle.
        let rounds = cost.workgroups.div_ceil(pace.processors);
        if rounds <= FEW_ROUNDS {
            compute *= (rounds * pace.processors) as f64 / cost.workgroups.max(1) as f64;
        }
    }
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

/// With more rounds than this, workgroups differ enough in length for the last round to be full.
const FEW_ROUNDS: u64 = 8;

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
            kernel: None,
        };
        let geometry = Geometry::new([1; 3], [1, 1], 0);
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
                workgroups: 1,
                ..Schedule::default()
            };
            count(&schedule, &shape, Role::Prefill, &geometry)
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
        // Two workgroups on four SMs: half of them idle. The softmax takes as long as the products.
        let half = Machine {
            kernel: Some(Pace {
                pairs_per_second: 200.0 / 6.4e-6,
                row_bytes_per_second: f64::INFINITY,
                processors: 4,
            }),
            ..machine.clone()
        };
        let busy = predict(&small, &half).seconds - half.launch_seconds;
        assert!((busy - 4.0 * 6.4e-6).abs() < 1e-9, "{busy}");
        let slow = Machine {
            launch_seconds: 1.0,
            ..machine
        };
        assert_eq!(predict(&small, &slow).limit, Limit::Launch);
    }
}
