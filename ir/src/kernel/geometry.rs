//! How a kernel cuts its work, and the grid of a launch.

use super::{KernelSpec, LaunchScalars, Phase};
use serde::{Deserialize, Serialize};

/// How a kernel cuts its work, hence how it is launched.
///
/// Prefill grid: x = q tiles, y = q head, z = batch. The first row of blocks that
/// holds a query is `q_offset / block`; each row of blocks has `ceil(block / q_tile)`
/// tiles, of which the last may be short; tiles outside the queries do nothing.
/// Decode grid: x = query, y = kv head, z = batch. Others: see [`Launch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Geometry {
    /// Threads of a workgroup: x, y, z.
    pub threads: [u32; 3],
    /// Queries in a tile.
    pub q_tile: u32,
    /// Keys in a tile.
    pub k_tile: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// What it copies at a time, if it copies by tensor maps.
    pub boxes: Option<Boxes>,
    /// How workgroups share the work.
    pub launch: Launch,
}

/// How workgroups share the work of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Launch {
    /// Each has one place of the grid.
    #[default]
    Grid,
    /// They stay for the whole launch.
    Resident(Resident),
    /// They share the keys of a query.
    Split(Split),
}

/// A geometry as JSON has it: `resident` or `split`, or neither.
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

/// What a kernel copies at a time by tensor maps of q, k, v and o, which it takes before its
/// buffers.
///
/// They have rank 4, [B, H, length, D], are swizzled by 128 bytes, zero outside, in boxes of 64
/// elements. Strides and addresses must be multiples of 16 bytes. The buffers of the four tensors
/// come first among its buffers; the scalars come last, by value
/// ([`LaunchScalars::by_value`]), and the logits of sinks in a buffer of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boxes {
    /// Heads and tokens of a box of q; one of o has as many tokens, of one head.
    pub q: [u32; 2],
    /// Tokens of a box of k and v, of one head.
    pub k: u32,
}

/// A kernel whose workgroups stay for the whole launch, and take one item of work after
/// the other.
///
/// An item is a row of blocks, a kv head of a sequence, and `q_tile` queries of the row.
/// Grid: as many workgroups as the device runs at once, a multiple of the cluster, no more
/// than the cluster times the items. The scale must be positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resident {
    /// Items of a row of blocks, for each kv head.
    pub items_per_row: u32,
    /// Workgroups that share their copies.
    pub cluster: u32,
}

/// A decode kernel with two entry points.
///
/// By the one of its name, a cluster of workgroups shares a query and a kv head of a sequence;
/// by that of [`second_entry`] a workgroup has them alone, which suits launches that have
/// enough of them for the whole device. Grid: that of other decode kernels, in x times the
/// cluster. Both give the same sums but for their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Split {
    /// Workgroups of a cluster.
    pub cluster: u32,
}

/// Name of a [`Split`] kernel's second entry point, whose first is `entry`.
pub fn second_entry(entry: &str) -> String {
    format!("{entry}_alone")
}

/// The first line of a kernel's text: a comment that says how it is launched, so that what a manifest
/// says of a file can be held against the file.
pub(crate) fn heading(launched: &impl Serialize) -> String {
    let launched = serde_json::to_string(launched).expect("numbers and names have a JSON form");
    format!("// Launched by {launched}\n")
}

/// A grid for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitted {
    /// Workgroups to launch.
    pub grid: [u32; 3],
    /// Whether by the [`second_entry`].
    pub alone: bool,
}

impl Geometry {
    /// That of a kernel which copies by itself and takes the grid as it is. `tile`: queries and
    /// keys.
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

    /// The first line of the text of a kernel that is launched so.
    pub fn heading(&self) -> String {
        heading(self)
    }

    /// What to launch on a device of so many processors, where [`Geometry::grid`] is `grid`.
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
                // Clusters lie within groups of processors, and do not fill these: of 132 processors
                // a tenth was seen to stay free. More of them would wait for others to end.
                match jobs.saturating_mul(cluster) >= processors * 9 / 10 {
                    true => fitted(grid, true),
                    false => fitted([x.saturating_mul(cluster), y, z], false),
                }
            }
        }
    }

    /// Workgroups to launch for `spec` with these scalars and `batch` sequences; for a
    /// [`Resident`] kernel the most of them, for a [`Split`] one those of its second entry
    /// point, see [`Geometry::fitted`]. More than a `u32` counts are `u32::MAX`.
    pub fn grid(&self, spec: &KernelSpec, scalars: &LaunchScalars, batch: u32) -> [u32; 3] {
        match (spec.phase, self.launch) {
            (Phase::Prefill, Launch::Resident(resident)) => {
                let items = rows(spec, scalars)
                    .saturating_mul(resident.items_per_row)
                    .saturating_mul(scalars.kv_heads)
                    .saturating_mul(batch);
                [resident.cluster.saturating_mul(items), 1, 1]
            }
            (Phase::Prefill, Launch::Grid | Launch::Split(_)) => {
                let tiles = rows(spec, scalars).saturating_mul(spec.block.div_ceil(self.q_tile));
                [tiles, scalars.kv_heads.saturating_mul(spec.group), batch]
            }
            (Phase::Decode, _) => [scalars.q_len, scalars.kv_heads, batch],
        }
    }
}

/// Rows of blocks that hold a query.
fn rows(spec: &KernelSpec, scalars: &LaunchScalars) -> u32 {
    let end = scalars.q_offset.saturating_add(scalars.q_len);
    end.div_ceil(spec.block) - scalars.q_offset / spec.block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 132 processors take clusters of 4 for up to 29 jobs, a tenth of them being out of reach.
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
