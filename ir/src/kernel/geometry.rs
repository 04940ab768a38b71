//! How a kernel divides its work, and the grid of a launch.

use super::{KernelSpec, LaunchScalars, Role};
use serde::{Deserialize, Serialize};

/// How a kernel divides its work, and thereby how it is launched.
///
/// Grid of prefill kernels: x = q tile, y = q head, z = sequence. Tiles are counted from
/// the start of row `q_offset / block`, the first one that has a query. Each row has
/// `ceil(block / q_tile)` tiles, of which the last may be short; tiles without a query of
/// the launch do nothing. Grid of decode kernels: x = query, y = kv head, z = sequence.
/// Persistent kernels and clusters change these grids, see [`Launch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Geometry {
    /// Threads of a workgroup: x, y, z.
    pub threads: [u32; 3],
    /// Queries in a tile, in tokens.
    pub q_tile: u32,
    /// Keys in a tile, in tokens.
    pub k_tile: u32,
    /// Shared memory of a workgroup in bytes.
    pub shared_bytes: u32,
    /// Boxes of the tensor maps; `None` for a kernel that takes no tensor maps.
    pub boxes: Option<Boxes>,
    /// How workgroups share the work.
    pub launch: Launch,
}

/// How workgroups share the work of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Launch {
    /// One tile for each workgroup.
    #[default]
    Grid,
    /// A persistent kernel: each workgroup takes one item of work after the other.
    Resident(Resident),
    /// Split-KV: the workgroups of a cluster share the keys of a query.
    Split(Split),
}

/// The JSON form of a geometry: has `resident`, or `split`, or neither.
#[derive(Serialize, Deserialize)]
struct Stored {
    threads: [u32; 3],
    q_tile: u32,
    k_tile: u32,
    shared_bytes: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boxes: Option<Boxes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resident: Option<Resident>,
}

impl TryFrom<Stored> for Geometry {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        Ok(Self {
            threads: stored.threads,
            q_tile: stored.q_tile,
            k_tile: stored.k_tile,
            shared_bytes: stored.shared_bytes,
            boxes: stored.boxes,
            launch: match (stored.resident, stored.split) {
                (None, None) => Launch::Grid,
                (Some(resident), None) => Launch::Resident(resident),
                (None, Some(split)) => Launch::Split(split),
                (Some(_), Some(_)) => return Err("a geometry has `resident` or `split`, not both"),
            },
        })
    }
}

impl From<Geometry> for Stored {
    fn from(geometry: Geometry) -> Self {
        let (resident, split) = match geometry.launch {
            Launch::Grid => (None, None),
            Launch::Resident(resident) => (Some(resident), None),
            Launch::Split(split) => (None, Some(split)),
        };
        Self {
            threads: geometry.threads,
            q_tile: geometry.q_tile,
            k_tile: geometry.k_tile,
            shared_bytes: geometry.shared_bytes,
            boxes: geometry.boxes,
            split,
            resident,
        }
    }
}

/// The boxes that a kernel copies by tensor maps (TMA) of q, k, v and o.
///
/// The tensor maps have rank 4 and shape `[B, H, length, D]`. A box has 64 elements of each vector.
/// The maps swizzle by 128 bytes and fill with zero outside the tensor. Strides and addresses must
/// be multiples of 16 bytes. Such a kernel takes its scalars by value
/// ([`LaunchScalars::by_value`]) and the logits of sinks in a buffer of their own; the order of
/// arguments is that of [`signature::of`](super::signature::of).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boxes {
    /// Heads and tokens of a box of q. A box of o has the same number of tokens, but one head.
    pub q: [u32; 2],
    /// Tokens of a box of k or v, which has one head.
    pub k: u32,
}

/// A persistent prefill kernel, whose clusters of workgroups take one item of work after the
/// other.
///
/// An item is a part of one row, for one kv head of one sequence. It has at most `q_tile` queries,
/// and not necessarily all q heads of the GQA group for each of them. The grid has as many
/// workgroups as the device runs at once, but no more than one cluster for each item, and is a
/// multiple of the cluster size. The scale must be positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resident {
    /// Items of a row, for each kv head.
    pub items_per_row: u32,
    /// Workgroups of a cluster, which share the copies of k and v: 1 or 2.
    pub cluster: u32,
}

/// A split-KV decode kernel, which has two entry points.
///
/// A job is one query with one kv head of one sequence. At the first entry point, a cluster of
/// workgroups shares the keys of a job, and x of the grid is multiplied by the cluster size. At
/// the second one ([`second_entry`]), each job has one workgroup, and the grid is that of other
/// decode kernels; this is faster if there are enough jobs to fill the device. The results differ
/// only in the order of summation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Split {
    /// Workgroups of a cluster: 1, 2, 4 or 8.
    pub cluster: u32,
}

/// Name of the second entry point of a [`Split`] kernel whose first one is `entry`.
pub fn second_entry(entry: &str) -> String {
    format!("{entry}_alone")
}

/// The first line of a kernel's text: a comment with its geometry as JSON, so that a file can be
/// compared with its entry in a manifest.
pub(crate) fn heading(launched: &impl Serialize) -> String {
    let launched = serde_json::to_string(launched).expect("numbers and names have a JSON form");
    format!("// Launched by {launched}\n")
}

/// The launch of a kernel on a given device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitted {
    /// Number of workgroups: x, y, z.
    pub grid: [u32; 3],
    /// Whether to launch the [`second_entry`].
    pub alone: bool,
}

impl Geometry {
    /// The geometry of a kernel without tensor maps that has one workgroup for each tile; `tile`
    /// is `[q_tile, k_tile]`.
    pub fn new(threads: [u32; 3], tile: [u32; 2], shared_bytes: u32) -> Self {
        let [q_tile, k_tile] = tile;
        Self {
            threads,
            q_tile,
            k_tile,
            shared_bytes,
            boxes: None,
            launch: Launch::Grid,
        }
    }

    /// The first line of the kernel's text: a comment that records this geometry.
    pub fn heading(&self) -> String {
        heading(self)
    }

    /// The launch on a device with `processors` SMs; `grid` is the result of [`Geometry::grid`].
    pub fn fitted(&self, grid: [u32; 3], processors: u32) -> Fitted {
        let [x, y, z] = grid;
        let fitted = |grid, alone| Fitted { grid, alone };
        match self.launch {
            Launch::Grid => fitted(grid, false),
            Launch::Resident(Resident { cluster, .. }) => {
                let at_once = processors / cluster * cluster;
                fitted([x.min(at_once.max(cluster)), y, z], false)
            }
            Launch::Split(Split { cluster }) => {
                let jobs = x.saturating_mul(y).saturating_mul(z);
                // The workgroups of a cluster run within one GPC, and clusters rarely fill a GPC:
                // with 132 SMs, about a tenth of them was seen to stay idle. More clusters than
                // fit would have to wait until others end.
                match jobs.saturating_mul(cluster) >= processors * 9 / 10 {
                    true => fitted(grid, true),
                    false => fitted([x.saturating_mul(cluster), y, z], false),
                }
            }
        }
    }

    /// Number of workgroups for `spec` with these scalars and `batch` sequences, on any device:
    /// x, y, z, each saturated at `u32::MAX`.
    ///
    /// For a [`Resident`] kernel this is the maximum, for a [`Split`] one the grid of its second
    /// entry point; [`Geometry::fitted`] makes the grid of a device from it.
    pub fn grid(&self, spec: &KernelSpec, scalars: &LaunchScalars, batch: u32) -> [u32; 3] {
        match (spec.role, self.launch) {
            (Role::Prefill, Launch::Resident(resident)) => {
                let items = rows(spec, scalars)
                    .saturating_mul(resident.items_per_row)
                    .saturating_mul(scalars.kv_heads)
                    .saturating_mul(batch);
                [resident.cluster.saturating_mul(items), 1, 1]
            }
            (Role::Prefill, Launch::Grid | Launch::Split(_)) => {
                let tiles = rows(spec, scalars).saturating_mul(spec.block.div_ceil(self.q_tile));
                [tiles, scalars.kv_heads.saturating_mul(spec.group), batch]
            }
            (Role::Decode, _) => [scalars.q_len, scalars.kv_heads, batch],
        }
    }
}

/// Number of rows that have a query.
fn rows(spec: &KernelSpec, scalars: &LaunchScalars) -> u32 {
    let end = scalars.q_offset.saturating_add(scalars.q_len);
    end.div_ceil(spec.block) - scalars.q_offset / spec.block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a tenth left out, 132 SMs have room for clusters of 4 up to 29 jobs.
    #[test]
    fn few_jobs_take_clusters_and_many_a_workgroup_each() {
        let split = Geometry {
            launch: Launch::Split(Split { cluster: 4 }),
            ..Geometry::new([128, 1, 1], [1, 16], 0)
        };
        for (grid, expected) in [
            ([1, 4, 1], ([4, 4, 1], false)),
            ([1, 29, 1], ([4, 29, 1], false)),
            ([2, 5, 3], ([2, 5, 3], true)),
            ([1, 4, 32], ([1, 4, 32], true)),
        ] {
            let Fitted { grid, alone } = split.fitted(grid, 132);
            assert_eq!((grid, alone), expected);
        }
    }

    #[test]
    fn workgroups_that_stay_all_run_at_once() {
        let resident = Geometry {
            launch: Launch::Resident(Resident {
                items_per_row: 4,
                cluster: 2,
            }),
            ..Geometry::new([128, 1, 1], [1, 16], 0)
        };
        for (x, expected) in [(6, 6), (4000, 130)] {
            let fitted = resident.fitted([x, 1, 1], 131);
            assert_eq!((fitted.grid, fitted.alone), ([expected, 1, 1], false));
        }
    }
}
