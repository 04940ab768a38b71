//! Choice of blocks by content on a device ([`Leaf::Routed`](butterfly_ir::Leaf::Routed)).
//!
//! In:  queries, means of keys, and the fixed bands of each row. Out: a band table in device memory, in
//! which every kv head of every sequence has rows of its own, as attention kernels read it.
//!
//! Two kernels: `weigh` finds the logarithm of each scoring query's sum of weights, `choose` then adds the
//! weights up block by block and keeps the best. Logits are computed twice, so that memory does not grow
//! with the product of queries and keys. For a single query, as in decode, workgroups share its means: `weigh`
//! and `score` work on parts of them, `pick` keeps the best. All add in a fixed order: the same inputs give
//! the same bits.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]
// Kernels have neither.
#![allow(clippy::manual_is_multiple_of, clippy::manual_div_ceil)]

mod choose;
mod logits;
mod pick;
mod row;
mod score;
mod weigh;

use crate::{Attend, OperationError};
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_ir::TableLayout;
use butterfly_ir::pattern::Routing;
use butterfly_ops::cube::empty;
use butterfly_runtime::DeviceTable;
use cubecl::prelude::*;

/// Units of a workgroup, as a square.
const SIDE: u32 = 16;
/// Rows, and means, of the square of logits that a workgroup computes at a time; each unit has 4 by 4.
const TILE: u32 = 64;

/// Parts in which workgroups share the means of a single query.
const PARTS: u32 = 32;

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
    /// Parts of the means, each of whole blocks, that workgroups share; 1 if none do.
    parts: u32,
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

/// What a launch is about, the same for both kernels.
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
    /// The first row of blocks that holds a query, and the number of such rows.
    first_row: u32,
    row_count: u32,
    /// Where the rows of the fixed table lie.
    fixed_heads: u32,
    fixed_first: u32,
}

/// The rows of the queries of `op`, with the blocks that they choose.
pub(super) fn route<R: CubeRuntime, F: FloatElement>(
    op: &Attend,
    routing: Routing,
    [q, means]: [&CubeTensor<R>; 2],
    fixed: &DeviceTable,
) -> Result<DeviceTable, OperationError> {
    let (client, block) = (&q.client, op.plan.sparsity().block);
    let dims = |x: &CubeTensor<R>| [0, 1, 2, 3].map(|d| x.meta.shape()[d] as u32);
    let [batch, q_heads, q_len, head_dim] = dims(q);
    let means = into_contiguous(means.clone());
    let [_, kv_heads, room, _] = dims(&means);
    let q_offset = op.q_offset as u32;
    let first_row = q_offset / block;
    let row_count = (q_offset + q_len).div_ceil(block) - first_row;
    let group = q_heads / kv_heads;
    let alone = q_len == 1 && group <= TILE;
    let shape = Shape {
        head_dim,
        group,
        block,
        pool: routing.pool,
        // The last query of a block scores in any case.
        every: if alone { block } else { routing.every },
        blocks: routing.blocks,
        fixed: fixed.widest_row(),
        parts: if alone { PARTS } else { 1 },
    };
    let lists = batch * kv_heads;
    let rows = u64::from(lists) * u64::from(row_count);
    let limit = |what, given: u64, limit: u64| match given <= limit {
        true => Ok(()),
        false => Err(OperationError::Limit {
            operation: "attend",
            tensor: "q",
            what,
            given,
            limit,
        }),
    };
    let most = u64::from(u32::MAX);
    let of_means = means.meta.num_elements() as u64;
    limit("means of keys, in elements", of_means, most)?;
    limit(
        "words of chosen bands",
        rows * u64::from(shape.width()) * 4,
        most,
    )?;
    limit("scoring queries", rows * u64::from(shape.rows()), most)?;
    let (x, y, z) = client.properties().hardware.max_cube_count;
    limit("rows of blocks", row_count.into(), x.into())?;
    limit(
        "tiles of scoring queries",
        shape.rows().div_ceil(TILE).into(),
        y.into(),
    )?;
    limit("kv heads of all sequences", lists.into(), z.min(y).into())?;

    let buffer = |words: u64| client.empty(words as usize * 4);
    let sums = rows as usize * shape.rows() as usize;
    let sums = empty(
        q,
        [sums * if alone { 2 * PARTS as usize } else { 1 }],
        DType::F32,
    );
    let offsets = buffer(rows + 1);
    let bands = buffer(rows * u64::from(shape.width()) * 4);
    let wanted = op.plan.routed_blocks(kv_heads as usize);
    let wanted: Vec<u8> = wanted.into_iter().flat_map(u32::to_le_bytes).collect();
    let wanted = client.create_from_slice(&wanted);
    let layout = fixed.layout();
    let steps = q.meta.strides();
    let extent = || {
        ExtentLaunch::new(
            q_len,
            q_offset,
            kv_heads,
            room,
            steps[0] as u32,
            steps[1] as u32,
            steps[2] as u32,
            op.scale,
            first_row,
            row_count,
            layout.head_rows,
            layout.first_row,
        )
    };
    let [fixed_offsets, fixed_bands] = fixed.buffers();
    // SAFETY: the whole buffers; kernels index within the counts that were checked above, and the table
    // has the rows of all queries.
    let array = |handle: &cubecl::server::Handle| unsafe {
        ArrayArg::<R>::from_raw_parts(handle.clone(), handle.size_in_used() as usize / 4)
    };
    // SAFETY: as above.
    let elements = |x: &CubeTensor<R>| unsafe {
        let bytes = x.handle.size_in_used() as usize;
        ArrayArg::<R>::from_raw_parts(x.handle.clone(), bytes / x.dtype.size())
    };
    let address = AddressType::from_len(q.handle.size_in_used() as usize / q.dtype.size());
    let dim = CubeDim::new_2d(SIDE, SIDE);
    // SAFETY: as above; the grids are the rows of every kv head and sequence.
    unsafe {
        weigh::weigh::launch_unchecked::<F, R>(
            client,
            CubeCount::Static(row_count, shape.rows().div_ceil(TILE) * shape.parts, lists),
            dim,
            address,
            elements(q),
            elements(&means),
            array(&wanted),
            array(&fixed_offsets),
            array(&fixed_bands),
            elements(&sums),
            extent(),
            shape,
        );
        if alone {
            // One score for each earlier block.
            let stride = first_row.max(1);
            let scores = empty(q, [lists as usize * stride as usize], DType::F32);
            score::score::launch_unchecked::<F, R>(
                client,
                CubeCount::Static(row_count, PARTS, lists),
                dim,
                address,
                elements(q),
                elements(&means),
                array(&wanted),
                array(&fixed_offsets),
                array(&fixed_bands),
                elements(&sums),
                elements(&scores),
                stride,
                extent(),
                shape,
            );
            pick::pick::launch_unchecked::<R>(
                client,
                CubeCount::Static(row_count, lists, 1),
                dim,
                array(&wanted),
                array(&fixed_offsets),
                array(&fixed_bands),
                elements(&scores),
                array(&offsets),
                array(&bands),
                stride,
                extent(),
                shape,
            );
        } else {
            choose::choose::launch_unchecked::<F, R>(
                client,
                CubeCount::Static(row_count, lists, 1),
                dim,
                address,
                elements(q),
                elements(&means),
                array(&wanted),
                array(&fixed_offsets),
                array(&fixed_bands),
                elements(&sums),
                array(&offsets),
                array(&bands),
                extent(),
                shape,
            );
        }
    }
    let layout = TableLayout {
        head_rows: row_count,
        sequence_rows: row_count * kv_heads,
        first_row,
    };
    Ok(DeviceTable::of_buffers(
        rows + 1,
        layout,
        shape.width(),
        [offsets, bands],
    ))
}
