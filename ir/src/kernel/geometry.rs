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

/// A split-KV decode kernel, which has two entry points or, with [`Spread`], four.
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
    /// How the keys of long rows are spread over the device; `None` if they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

/// Decode of long rows: the workgroups of a whole device share the keys of each job.
///
/// At a third entry point ([`spread_entry`]) each workgroup has a part of the keys of one job, and
/// leaves its result in memory. At a fourth one ([`merge_entry`]), a second launch merges them in a
/// fixed order. The number of parts follows from the shape and the device, so that results are the
/// same in every run.
///
/// # Source
/// Flash-Decoding, Dao, Haziza, Massa and Sizov, 2023.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Keys of a query from which on launches are spread.
    pub from: u32,
    /// Keys for which there is one workgroup, until all that run at once have a part.
    pub part: u32,
    /// Workgroups that an SM runs at once.
    pub per_processor: u32,
    /// Shared memory of a workgroup in bytes.
    pub shared_bytes: u32,
    /// Whether the third entry point takes the first elements of the keys as their values, and does
    /// not read v.
    pub v_in_k: bool,
    /// Keys of a query up to which a cluster of [`CLUSTER`](Self::CLUSTER) workgroups computes a job and merges its results,
    /// at a fifth entry point ([`cluster_entry`]); 0 if there is none.
    pub within: u32,
}

impl Spread {
    /// Workgroups of a cluster that has a job by itself.
    pub const CLUSTER: u32 = 8;

    /// Columns of a row that a workgroup of the second launch merges.
    pub const MERGED_COLUMNS: u32 = 32;

    /// Floats of a part's result for one q head, beside its output: logit and sum, and two that
    /// align the next one.
    pub const BESIDE_OUTPUT: u32 = 4;

    /// Whether clusters take `jobs` jobs whose queries see at most `keys` keys: where they are not too long, and all
    /// clusters run at once. About a tenth of the SMs is not reached by clusters.
    fn is_clustered(&self, jobs: u32, keys: u32, processors: u32) -> bool {
        let at_once = jobs.saturating_mul(Self::CLUSTER) <= processors * 9 / 10;
        at_once && (self.from..=self.within).contains(&keys)
    }

    /// Parts of each of `jobs` jobs whose queries see at most `keys` keys, on a device with
    /// `processors` SMs; `None` if that is too few keys to spread.
    fn parts(&self, jobs: u32, keys: u32, processors: u32) -> Option<u32> {
        let at_once = processors.saturating_mul(self.per_processor);
        let parts = keys.div_ceil(self.part.max(1)).min(at_once / jobs.max(1));
        (keys >= self.from).then_some(parts.max(1))
    }

    /// The grid of the second launch; `grid` is the result of [`Geometry::grid`].
    pub fn merge_grid(spec: &KernelSpec, grid: [u32; 3]) -> [u32; 3] {
        let [x, y, z] = grid;
        let of_query = spec.v_head_dim.div_ceil(Self::MERGED_COLUMNS) * spec.group;
        [x.saturating_mul(of_query), y, z]
    }

    /// Bytes of the results of all parts, f32 `[B, Hkv, q_len, parts, group, Dv + 4]`; `grid` as for
    /// [`Spread::merge_grid`].
    pub fn partial_bytes(spec: &KernelSpec, grid: [u32; 3], parts: u32) -> u64 {
        let of_head = 4 * u64::from(spec.v_head_dim + Self::BESIDE_OUTPUT);
        let jobs = grid.map(u64::from).into_iter();
        jobs.chain([parts.into(), spec.group.into()])
            .fold(of_head, u64::saturating_mul)
    }
}

/// Name of the second entry point of a [`Split`] kernel whose first one is `entry`.
pub fn second_entry(entry: &str) -> String {
    format!("{entry}_alone")
}

/// Name of the entry point of a [`Spread`] kernel that computes parts.
pub fn spread_entry(entry: &str) -> String {
    format!("{entry}_spread")
}

/// Name of the entry point of a [`Spread`] kernel that merges parts.
pub fn merge_entry(entry: &str) -> String {
    format!("{entry}_merge")
}

/// Name of the entry point of a [`Spread`] kernel at which a cluster has a job.
pub fn cluster_entry(entry: &str) -> String {
    format!("{entry}_cluster")
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
    /// Where the kernel is entered.
    pub entry: Entry,
}

/// Where a launch enters a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The first entry point.
    First,
    /// The [`second_entry`].
    Alone,
    /// The [`cluster_entry`].
    Cluster,
    /// The [`spread_entry`], with so many parts of each job, and then the [`merge_entry`].
    Spread(u32),
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
    /// Queries see at most `keys` keys; 0 stands for a number that is not known, or for arguments
    /// that a [`Spread`] does not take.
    pub fn fitted(&self, grid: [u32; 3], processors: u32, keys: u32) -> Fitted {
        let [x, y, z] = grid;
        let fitted = |grid, entry| Fitted { grid, entry };
        match self.launch {
            Launch::Grid => fitted(grid, Entry::First),
            Launch::Resident(Resident { cluster, .. }) => {
                let at_once = processors / cluster * cluster;
                fitted([x.min(at_once.max(cluster)), y, z], Entry::First)
            }
            Launch::Split(Split { cluster, spread }) => {
                let jobs = x.saturating_mul(y).saturating_mul(z);
                // The workgroups of a cluster run within one GPC, and clusters rarely fill a GPC:
                // with 132 SMs, about a tenth of them was seen to stay idle. More clusters than
                // fit would have to wait until others end.
                let alone = jobs.saturating_mul(cluster) >= processors * 9 / 10;
                let together = if alone { 1 } else { cluster };
                let parts = spread.and_then(|spread| {
                    let parts = spread.parts(jobs, keys, processors);
                    // Without room for more workgroups than without it, spreading only pays where the
                    // keys are then read once, not twice.
                    parts.filter(|parts| spread.v_in_k || *parts > together)
                });
                if spread.is_some_and(|spread| spread.is_clustered(jobs, keys, processors)) {
                    return fitted([x.saturating_mul(Spread::CLUSTER), y, z], Entry::Cluster);
                }
                match (parts, alone) {
                    (Some(parts), _) => {
                        fitted([x.saturating_mul(parts), y, z], Entry::Spread(parts))
                    }
                    (None, true) => fitted(grid, Entry::Alone),
                    (None, false) => fitted([x.saturating_mul(cluster), y, z], Entry::First),
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
            launch: Launch::Split(Split {
                cluster: 4,
                spread: None,
            }),
            ..Geometry::new([128, 1, 1], [1, 16], 0)
        };
        for (grid, expected) in [
            ([1, 4, 1], ([4, 4, 1], Entry::First)),
            ([1, 29, 1], ([4, 29, 1], Entry::First)),
            ([2, 5, 3], ([2, 5, 3], Entry::Alone)),
            ([1, 4, 32], ([1, 4, 32], Entry::Alone)),
        ] {
            let Fitted { grid, entry } = split.fitted(grid, 132, 1 << 20);
            assert_eq!((grid, entry), expected);
        }
    }

    /// Long rows have as many parts as there is room for, and none has too few keys.
    #[test]
    fn long_rows_fill_the_device() {
        let spread = |v_in_k| Spread {
            from: 4096,
            part: 256,
            per_processor: 2,
            shared_bytes: 0,
            v_in_k,
            within: if v_in_k { 8192 } else { 0 },
        };
        let geometry = |v_in_k| Geometry {
            launch: Launch::Split(Split {
                cluster: 4,
                spread: Some(spread(v_in_k)),
            }),
            ..Geometry::new([128, 1, 1], [1, 16], 0)
        };
        for (grid, keys, expected) in [
            ([1, 8, 1], 4095, ([4, 8, 1], Entry::First)),
            ([1, 8, 1], 4097, ([17, 8, 1], Entry::Spread(17))),
            ([1, 8, 1], 1 << 20, ([33, 8, 1], Entry::Spread(33))),
            ([2, 8, 2], 1 << 20, ([16, 8, 2], Entry::Spread(8))),
            ([1, 8, 16], 1 << 20, ([2, 8, 16], Entry::Spread(2))),
            ([1, 8, 17], 1 << 20, ([1, 8, 17], Entry::Alone)),
        ] {
            let Fitted { grid, entry } = geometry(false).fitted(grid, 132, keys);
            assert_eq!((grid, entry), expected, "{keys}");
        }
        // Clusters of 8 take rows that are not too long, if all of them run at once.
        for (jobs, keys, expected) in [
            (500, 4096, ([1, 1, 500], Entry::Spread(1))),
            (15, 4096, ([16, 1, 15], Entry::Spread(16))),
            (14, 4096, ([8, 1, 14], Entry::Cluster)),
            (14, 4095, ([4, 1, 14], Entry::First)),
            (1, 8193, ([33, 1, 1], Entry::Spread(33))),
        ] {
            let Fitted { grid, entry } = geometry(true).fitted([1, 1, jobs], 132, keys);
            assert_eq!((grid, entry), expected, "{jobs} {keys}");
        }
    }

    #[test]
    fn results_of_parts_are_counted() {
        let spec = KernelSpec {
            score: Default::default(),
            role: Role::Decode,
            head_dim: 576,
            v_head_dim: 512,
            group: 20,
            dtype: crate::Dtype::Bf16,
            block: 128,
            rows: crate::Rows::Table,
        };
        assert_eq!(Spread::merge_grid(&spec, [1, 1, 2]), [320, 1, 2]);
        let bytes = Spread::partial_bytes(&spec, [1, 1, 2], 66);
        assert_eq!(bytes, 2 * 66 * 20 * 516 * 4);
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
            let fitted = resident.fitted([x, 1, 1], 131, 0);
            assert_eq!(
                (fitted.grid, fitted.entry),
                ([expected, 1, 1], Entry::First)
            );
        }
    }
}
