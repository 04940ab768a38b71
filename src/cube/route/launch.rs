//! Buffers and grids of a choice.

use super::matrix::Matrix;
use super::{ExtentLaunch, SIDE, Shape, TILE, pick, score, single, weigh};
use crate::{Attend, OperationError};
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_ir::TableLayout;
use butterfly_ir::pattern::Routing;
use butterfly_ops::cube::empty;
use butterfly_runtime::{DeviceTable, Launches};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Scores that are in memory at a time: rows are scored a slab at a time, each within this.
const MOST_SCORES: u64 = 1 << 24;

/// The rows of the queries of `op`, with the blocks that they choose.
pub(in crate::cube) fn route<R: CubeRuntime + Launches, F: FloatElement>(
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
    let table_first = q_offset / block;
    let table_rows = (q_offset + q_len).div_ceil(block) - table_first;
    let group = q_heads / kv_heads;
    let mut shape = Shape {
        head_dim,
        group,
        block,
        pool: routing.pool,
        every: routing.every,
        blocks: routing.blocks,
        fixed: fixed.widest_row(),
        single: q_len == 1,
        tiles: 1,
    };
    let matrix = match shape.single {
        true => None,
        false => Matrix::new::<F>(op, &shape, q, &means)?,
    };
    if let Some(matrix) = &matrix {
        shape.tiles = matrix.tiles();
    }
    let lists = batch * kv_heads;
    // One score for each earlier block of any row.
    let stride = (op.capacity as u32).div_ceil(block).max(1);
    let of_row = u64::from(lists) * u64::from(shape.tiles) * u64::from(stride);
    let slab = (MOST_SCORES / of_row).clamp(1, table_rows.into()) as u32;
    let (of_sums, of_scores) = match shape.single {
        true => (1, of_row * u64::from(2 * group)),
        false => {
            let rows = u64::from(lists) * u64::from(slab);
            (rows * u64::from(shape.rows()), u64::from(slab) * of_row)
        }
    };
    check(
        &shape,
        client,
        [lists, table_first, table_rows],
        [of_sums, of_scores],
        &means,
    )?;

    let buffer = |words: u64| client.empty(words as usize * 4);
    let tensor = |elements: u64| empty(q, [elements as usize], DType::F32);
    let sums = tensor(of_sums);
    let scores = tensor(of_scores);
    let rows = u64::from(lists) * u64::from(table_rows);
    let offsets = buffer(rows + 1);
    let bands = buffer(rows * u64::from(shape.width()) * 4);
    let wanted = op.plan.routed_blocks(kv_heads as usize);
    let wanted: Vec<u8> = wanted.into_iter().flat_map(u32::to_le_bytes).collect();
    let wanted = client.create_from_slice(&wanted);
    let layout = fixed.layout();
    let steps = [0, 1, 2].map(|d| q.meta.strides()[d] as u32);
    let [fixed_offsets, fixed_bands] = fixed.buffers();
    // SAFETY: the whole buffers; kernels index within the counts that were checked above, and the table
    // has the rows of all queries.
    let array = |handle: &Handle| unsafe {
        ArrayArg::<R>::from_raw_parts(handle.clone(), handle.size_in_used() as usize / 4)
    };
    // SAFETY: as above.
    let elements = |x: &CubeTensor<R>| unsafe {
        let bytes = x.handle.size_in_used() as usize;
        ArrayArg::<R>::from_raw_parts(x.handle.clone(), bytes / x.dtype.size())
    };
    let address = AddressType::from_len(q.handle.size_in_used() as usize / q.dtype.size());
    let dim = CubeDim::new_2d(SIDE, SIDE);
    for start in (0..table_rows).step_by(slab as usize) {
        let row_count = slab.min(table_rows - start);
        let extent = || {
            ExtentLaunch::new(
                q_len,
                q_offset,
                kv_heads,
                room,
                steps[0],
                steps[1],
                steps[2],
                op.scale,
                table_first + start,
                row_count,
                table_first,
                table_rows,
                layout.head_rows,
                layout.first_row,
            )
        };
        match &matrix {
            // SAFETY: as above; the grid is the blocks before the query, for every kv head and sequence.
            None if shape.single => unsafe {
                let workgroups = table_first.div_ceil(single::blocks_at_once(&shape));
                if workgroups > 0 {
                    single::weigh_blocks::launch_unchecked::<F, R>(
                        client,
                        CubeCount::Static(workgroups, lists, 1),
                        dim,
                        address,
                        single::LANES as usize,
                        elements(q),
                        elements(&means),
                        array(&wanted),
                        array(&fixed_offsets),
                        array(&fixed_bands),
                        elements(&scores),
                        stride,
                        extent(),
                        shape,
                    );
                }
            },
            Some(matrix) => {
                let rows = [table_first + start, row_count];
                matrix.launch(
                    op,
                    q,
                    steps,
                    rows,
                    stride,
                    [&wanted, &sums.handle, &scores.handle],
                )?;
            }
            // SAFETY: as above; the grids are the rows of every kv head and sequence.
            None => unsafe {
                weigh::weigh::launch_unchecked::<F, R>(
                    client,
                    CubeCount::Static(row_count, shape.rows().div_ceil(TILE), lists),
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
                score::score::launch_unchecked::<F, R>(
                    client,
                    CubeCount::Static(row_count, 1, lists),
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
            },
        }
        // SAFETY: as above.
        unsafe {
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
        }
    }
    let layout = TableLayout {
        head_rows: table_rows,
        sequence_rows: table_rows * kv_heads,
        first_row: table_first,
    };
    Ok(DeviceTable::of_buffers(
        rows + 1,
        layout,
        shape.width(),
        [offsets, bands],
    ))
}

/// Checks that kernels can count the rows of `lists` kv heads of all sequences, `table_rows` after `table_first`
/// others, and the sums of queries and scores of blocks of a slab of them.
fn check<R: CubeRuntime>(
    shape: &Shape,
    client: &ComputeClient<R>,
    [lists, table_first, table_rows]: [u32; 3],
    [sums, scores]: [u64; 2],
    means: &CubeTensor<R>,
) -> Result<(), OperationError> {
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
    let rows = u64::from(lists) * u64::from(table_rows);
    let words = rows * u64::from(shape.width()) * 4;
    limit("words of chosen bands", words, most)?;
    limit("scoring queries of a slab of rows", sums, most)?;
    limit("scores of a slab of rows", scores, most)?;
    let (x, y, z) = client.properties().hardware.max_cube_count;
    let x = u64::from(x);
    limit("rows of blocks", table_rows.into(), x)?;
    if shape.single {
        let workgroups = table_first.div_ceil(single::blocks_at_once(shape));
        limit("workgroups of earlier blocks", workgroups.into(), x)?;
    } else {
        let tiles = shape.rows().div_ceil(TILE);
        limit("tiles of scoring queries", tiles.into(), y.into())?;
    }
    limit("kv heads of all sequences", lists.into(), z.min(y).into())
}
