//! Kernels that score blocks by content ([`Leaf::Routed`](crate::Leaf::Routed)) on matrix units.

use crate::Dtype;
use serde::{Deserialize, Serialize};

/// Rows of logits that a warpgroup computes.
const UNIT_ROWS: u32 = 64;

/// Rows of logits that a warp computes, all of the same row of blocks.
const WARP_ROWS: u32 = 16;

/// What a scorer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScorerPass {
    /// The base-2 logarithm of each scoring query's sum of weights.
    Weigh,
    /// The scores of blocks: weights, summed over scoring queries and over the means of a block.
    Score,
}

/// How a kernel that scores blocks is launched, for q `[B, Hq, q_len, D]` and means of keys `[B, Hkv, room, D]`
/// of the same type.
///
/// Rows of logits are the scoring queries of a group of q heads, by q head and then by position. A row of
/// blocks has [`rows`](Self::rows) of them, and [`padded_rows`](Self::padded_rows) with those that are left
/// empty. A workgroup computes two times 64; the grid is (rows of blocks in so many workgroups, kv
/// heads of all sequences).
///
/// Arguments: a tensor map of the means (rank 4, boxes of 128 means by 64 elements, 128-byte swizzle, zero
/// outside), the buffer behind it, q, the number of blocks that each kv head chooses (u32), sums
/// `[lists, rows of blocks, rows]` (f32), scores `[lists, rows of blocks, tiles, stride]` (f32), and by value
/// q_len, q_offset, kv heads, the strides of q by sequence, head and token, the first row of blocks, their number,
/// stride, and the scale of logits (f32, positive). Both passes take all of them. q starts at multiples of 16 bytes
/// in every row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scorer {
    /// Name of the entry point.
    pub entry: String,
    /// What it finds.
    pub pass: ScorerPass,
    /// Element type of q and means.
    pub dtype: Dtype,
    /// D, a multiple of 8, at most 256.
    pub head_dim: u32,
    /// q heads of a kv head.
    pub group: u32,
    /// Tokens of a block.
    pub block: u32,
    /// Tokens of a mean; a block has 1 to 128 of them, a power of two.
    pub pool: u32,
    /// From one query that scores to the next, which divides the block.
    pub every: u32,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of shared memory, in addition to what the kernel declares.
    pub shared_bytes: u32,
}

/// The sizes of a [`Scorer`], each as its field of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScorerShape {
    /// D.
    pub head_dim: u32,
    /// q heads of a kv head.
    pub group: u32,
    /// Tokens of a block.
    pub block: u32,
    /// Tokens of a mean.
    pub pool: u32,
    /// From one query that scores to the next.
    pub every: u32,
}

impl Scorer {
    /// Rows of logits of a workgroup.
    pub const WORKGROUP_ROWS: u32 = 2 * UNIT_ROWS;

    /// Means in a tile.
    pub const MEANS_TILE: u32 = 128;

    /// A kernel for this shape, of which emitters fill in entry point, threads and shared memory.
    pub fn of(pass: ScorerPass, dtype: Dtype, shape: ScorerShape) -> Self {
        let ScorerShape {
            head_dim,
            group,
            block,
            pool,
            every,
        } = shape;
        Self {
            entry: String::new(),
            pass,
            dtype,
            head_dim,
            group,
            block,
            pool,
            every,
            threads: 0,
            shared_bytes: 0,
        }
    }

    /// Whether both do the same, however they are launched.
    pub fn computes_as(&self, other: &Self) -> bool {
        let bare = |scorer: &Self| Self {
            entry: String::new(),
            threads: 0,
            shared_bytes: 0,
            ..scorer.clone()
        };
        bare(self) == bare(other)
    }

    /// Rows of logits of a row of blocks.
    pub fn rows(&self) -> u32 {
        self.group * (self.block / self.every)
    }

    /// [`rows`](Self::rows) and empty ones, so that every warp, and every warpgroup from 64 on, has those of
    /// one row of blocks.
    pub fn padded_rows(&self) -> u32 {
        match self.rows() {
            rows if rows < UNIT_ROWS => rows.next_power_of_two().max(WARP_ROWS),
            rows => rows.next_multiple_of(UNIT_ROWS),
        }
    }

    /// Parts of a block's score, each of 64 rows of logits at most.
    pub fn tiles(&self) -> u32 {
        self.padded_rows().div_ceil(UNIT_ROWS)
    }

    /// Means of a block.
    pub fn means(&self) -> u32 {
        self.block / self.pool
    }

    /// The first line of the kernel's text: a comment that records how it is launched.
    pub fn heading(&self) -> String {
        crate::kernel::geometry::heading(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_have_rows_of_one_row_of_blocks() {
        let of = |group, block, every| {
            let shape = ScorerShape {
                head_dim: 128,
                group,
                block,
                pool: block,
                every,
            };
            Scorer::of(ScorerPass::Score, Dtype::Bf16, shape)
        };
        for (group, block, every, padded, tiles) in [
            (4, 128, 8, 64, 1),
            (1, 16, 16, 16, 1),
            (3, 64, 8, 32, 1),
            (5, 64, 8, 64, 1),
            (3, 64, 1, 192, 3),
            (9, 32, 4, 128, 2),
        ] {
            let scorer = of(group, block, every);
            assert_eq!((scorer.padded_rows(), scorer.tiles()), (padded, tiles));
            assert!(scorer.rows() <= padded);
        }
    }
}
