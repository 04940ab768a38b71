//! Choice of blocks by content on a device ([`Leaf::Routed`](butterfly_ir::Leaf::Routed)).
//!
//! In:  queries, means of keys, and the fixed bands of each row. Out: a band table in device memory, in
//! which every kv head of every sequence has rows of its own, as attention kernels read it.
//!
//! Three kernels: `weigh` finds the logarithm of each scoring query's sum of weights, `score` adds the weights
//! relative to it up block by block, `pick` keeps the best blocks. Logits are computed twice, and long launches are
//! scored a slab of rows at a time, so that memory does not grow with the product of queries and keys.
//! On Hopper the first two are generated and run on matrix units (`matrix.rs`). A single query, as in decode, needs
//! one pass over the means (`single.rs`), since the weights of its blocks are few enough to keep.
//! All add in a fixed order: the same inputs give the same bits.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]
// Kernels have neither.
#![allow(clippy::manual_is_multiple_of, clippy::manual_div_ceil)]

mod launch;
mod logits;
mod matrix;
mod pick;
mod row;
mod score;
mod single;
mod weigh;

pub(super) use launch::route;

use cubecl::prelude::*;

/// Units of a workgroup, as a square.
const SIDE: u32 = 16;
/// Rows, and means, of the square of logits that a workgroup computes at a time; each unit has 4 by 4.
const TILE: u32 = 64;

/// The compile-time parameters of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    head_dim: u32,
    /// q heads of a kv head.
    group: u32,
    block: u32,
    pool: u32,
    every: u32,
    /// The most blocks that a row chooses.
    blocks: u32,
    /// The most fixed bands of a row.
    fixed: u32,
    /// Whether there is one query, scored by `single.rs`.
    single: bool,
    /// Parts of a block's score, each of some of the scoring queries.
    tiles: u32,
}

impl Shape {
    /// The most queries of a row that score.
    fn slots(&self) -> u32 {
        self.block / self.every
    }

    /// Rows of logits: the scoring queries of all heads of a group.
    fn rows(&self) -> u32 {
        self.group * self.slots()
    }

    /// Means of a block.
    fn means(&self) -> u32 {
        self.block / self.pool
    }

    /// Bands of a row of the table.
    fn width(&self) -> u32 {
        self.fixed + self.blocks
    }
}

/// What a launch is about, the same for all kernels.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Extent {
    q_len: u32,
    q_offset: u32,
    kv_heads: u32,
    /// Means for which there is room in each head.
    room: u32,
    /// From one sequence, head and token of q to the next.
    q_batch: u32,
    q_head: u32,
    q_token: u32,
    scale: f32,
    /// The first row of blocks that is scored, and the number of such rows.
    first_row: u32,
    row_count: u32,
    /// The first row of blocks that holds a query, and the number of such rows.
    table_first: u32,
    table_rows: u32,
    /// Where the rows of the fixed table lie.
    fixed_heads: u32,
    fixed_first: u32,
}
