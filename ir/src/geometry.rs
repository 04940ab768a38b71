//! How a kernel cuts its work, and the grid of a launch.

use crate::{KernelSpec, LaunchScalars, Phase};
use serde::{Deserialize, Serialize};

/// How a kernel cuts its work, hence how it is launched.
///
/// Prefill grid: x = q tiles, y = q head, z = batch. The first row of blocks that
/// holds a query is `q_offset / block`; each row of blocks has `ceil(block / q_tile)`
/// tiles, of which the last may be short; tiles outside the queries do nothing.
/// Decode grid: x = query, y = kv head, z = batch. Others: see [`Resident`] and [`Split`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Threads of a workgroup: x, y, z.
    pub threads: [u32; 3],
    /// Queries in a tile.
    pub q_tile: u32,
    /// Keys in a tile.
    pub k_tile: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// How workgroups share the keys of a query, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// How its workgroups share the work, if they stay for the whole launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident: Option<Resident>,
}

/// A kernel whose workgroups stay for the whole launch, and take one item of work after
/// the other; it copies by tensor maps.
///
/// An item is a row of blocks, a kv head of a sequence, and `q_tile` queries of the row.
/// Grid: as many workgroups as the device runs at once, a multiple of the cluster, no more
/// than the cluster times the items. Its parameter buffer has one word more, the number
/// of sequences, and before its buffers it takes tensor maps of q, k, v and o: rank 4,
/// [B, H, length, D], swizzled by 128 bytes, zero outside, in boxes of 64 elements. Strides
/// and addresses must be multiples of 16 bytes, the scale positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// Items of a row of blocks, for each kv head.
    pub items_per_row: u32,
    /// Workgroups that share their copies.
    pub cluster: u32,
    /// Heads and tokens of a box of q; one of o has as many tokens, of one head.
    pub q_box: [u32; 2],
    /// Tokens of a box of k and v, of one head.
    pub k_box: u32,
}

/// A decode kernel whose workgroups come in clusters.
///
/// A *job* is a query and a kv head of a sequence. Grid: x clusters, where a cluster takes
/// one job with all its workgroups, two with half of them each, and so on up to one for
/// each workgroup; every such grid gives the same sums but for their order. Its parameter
/// buffer has one word more, the number of sequences. It copies 16 bytes at a time: strides
/// and addresses must be multiples of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Workgroups of a cluster, a power of two.
    pub cluster: u32,
    /// Workgroups that a processor holds at once.
    pub per_processor: u32,
}

impl Geometry {
    /// Whether the parameter buffer ends with the number of sequences.
    pub fn counts_sequences(&self) -> bool {
        self.resident.is_some() || self.split.is_some()
    }

    /// Workgroups to launch on a device of so many processors, where `grid` has the most of
    /// them: those that run at once.
    pub fn fitted(&self, grid: [u32; 3], processors: u32) -> [u32; 3] {
        let [x, y, z] = grid;
        if let Some(resident) = self.resident {
            let at_once = processors / resident.cluster * resident.cluster;
            return [x.min(at_once.max(resident.cluster)), y, z];
        }
        if let Some(Split {
            cluster,
            per_processor,
        }) = self.split
        {
            let jobs = x / cluster;
            // Clusters lie within groups of processors, and do not fill these: of 132 processors
            // a tenth was seen to stay free.
            let clusters = (processors * per_processor * 9 / 10 / cluster).max(1);
            let jobs_of_one = jobs.div_ceil(clusters).next_power_of_two().min(cluster);
            return [jobs.div_ceil(jobs_of_one) * cluster, y, z];
        }
        grid
    }

    /// Workgroups to launch for `spec` with these scalars and `batch` sequences; for a
    /// [`Resident`] or [`Split`] kernel the most of them, see [`Geometry::fitted`].
    pub fn grid(&self, spec: &KernelSpec, scalars: &LaunchScalars, batch: u32) -> [u32; 3] {
        match (spec.phase, self.resident) {
            (Phase::Prefill, Some(resident)) => {
                let first = scalars.q_offset / spec.block;
                let last = (scalars.q_offset + scalars.q_len).div_ceil(spec.block);
                let items = (last - first) * resident.items_per_row * scalars.kv_heads * batch;
                [resident.cluster * items, 1, 1]
            }
            (Phase::Prefill, None) => {
                let first = scalars.q_offset / spec.block;
                let last = (scalars.q_offset + scalars.q_len).div_ceil(spec.block);
                let tiles = (last - first) * spec.block.div_ceil(self.q_tile);
                [tiles, scalars.kv_heads * spec.group, batch]
            }
            (Phase::Decode, _) => match self.split {
                Some(split) => {
                    let factors = [split.cluster, scalars.q_len, scalars.kv_heads, batch];
                    [factors.into_iter().fold(1, u32::saturating_mul), 1, 1]
                }
                None => [scalars.q_len, scalars.kv_heads, batch],
            },
        }
    }
}
