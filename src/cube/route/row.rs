//! The row of blocks of a workgroup: its queries, those that score, and the blocks that it may choose.

use super::{Extent, SIDE, Shape};
use cubecl::prelude::*;

/// A row of blocks of one kv head and sequence.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Row {
    /// The row, and its block of queries.
    pub(super) block: u32,
    /// Its first and last query of the launch.
    pub(super) q0: u32,
    pub(super) q1: u32,
    /// Kv head and sequence.
    pub(super) kv_head: u32,
    pub(super) sequence: u32,
    /// Kv head and sequence as one number.
    pub(super) list: u32,
    /// The number of the row among those of all lists that are scored at a time, and in the table.
    pub(super) entry: u32,
    pub(super) of_table: u32,
    /// Its fixed bands.
    pub(super) from: u32,
    pub(super) to: u32,
}

#[cube]
pub(super) fn row_of(
    at: u32,
    list: u32,
    offsets: &Array<u32>,
    extent: &Extent,
    #[comptime] shape: Shape,
) -> Row {
    let size = comptime!(shape.block);
    let block = extent.first_row + at;
    let kv_head = list % extent.kv_heads;
    let fixed = kv_head * extent.fixed_heads + block - extent.fixed_first;
    Row {
        block,
        q0: max(extent.q_offset, block * size),
        q1: min(extent.q_offset + extent.q_len, (block + 1u32) * size) - 1u32,
        kv_head,
        sequence: list / extent.kv_heads,
        list,
        entry: list * extent.row_count + at,
        of_table: list * extent.table_rows + block - extent.table_first,
        from: offsets[fixed as usize],
        to: offsets[(fixed + 1u32) as usize],
    }
}

/// The position of scoring query number `slot`; `u32::MAX` if the row has none of this number.
///
/// Positions `every - 1`, `2 * every - 1` and so on score, and the last query.
#[cube]
pub(super) fn scoring(row: &Row, slot: u32, #[comptime] shape: Shape) -> u32 {
    let every = comptime!(shape.every);
    let end = row.block * comptime!(shape.block) + (slot + 1u32) * every;
    let regular = end - 1u32;
    // The slot before this one stands for the last query, or lies before the launch.
    let late = slot > 0u32 && end - every > row.q1;
    let inside = regular >= row.q0 && !late;
    select(inside, min(regular, row.q1), u32::MAX.runtime())
}

/// The keys of band `i` that every query of the row sees: the first, and one past the last.
#[cube]
fn seen_by_all(row: &Row, bands: &Array<u32>, i: u32) -> (i32, i32) {
    let at = (i * 4u32) as usize;
    let lo = max(
        i32::cast_from(bands[at]),
        i32::cast_from(row.q1) + i32::cast_from(bands[at + 2]),
    );
    let hi = min(
        i32::cast_from(bands[at + 1]),
        i32::cast_from(row.q0) + i32::cast_from(bands[at + 3]),
    );
    (lo, hi)
}

/// Whether every query of the row sees all keys of block `c` through the fixed bands.
#[cube]
pub(super) fn is_whole(row: &Row, bands: &Array<u32>, c: u32, #[comptime] shape: Shape) -> bool {
    let size = comptime!(shape.block);
    let stop = i32::cast_from((c + 1u32) * size);
    let mut reach = i32::cast_from(c * size);
    // Each round adds a band at least, if any goes on where the others end.
    for _ in row.from..row.to {
        for i in row.from..row.to {
            let (lo, hi) = seen_by_all(row, bands, i);
            reach = select(lo <= reach, max(reach, hi), reach);
        }
    }
    reach >= stop
}

/// The most blocks that the fixed bands can show whole to every query of the row.
#[cube]
fn most_whole(row: &Row, bands: &Array<u32>, #[comptime] shape: Shape) -> u32 {
    let size = comptime!(i32::try_from(shape.block).expect("a block is shorter than 2^31"));
    let mut blocks = 0u32;
    for i in row.from..row.to {
        let (lo, hi) = seen_by_all(row, bands, i);
        // Two bands can share a block: each counts the blocks that it begins.
        blocks += u32::cast_from(max(hi - lo + size - 1, 0i32.runtime()) / size);
    }
    blocks
}

/// Whether the row has more blocks to choose from than it wants, so that scores decide. All units of the
/// workgroup call this.
#[cube]
pub(super) fn has_choice(
    row: &Row,
    bands: &Array<u32>,
    wanted: u32,
    shared: &mut SharedMemory<u32>,
    #[comptime] shape: Shape,
) -> bool {
    // Long rows need not count their blocks.
    let mut chooses = wanted > 0u32 && row.block > wanted + most_whole(row, bands, shape);
    if wanted > 0u32 && !chooses {
        let mut own = 0u32;
        let mut c = UNIT_POS;
        while c < row.block {
            if !is_whole(row, bands, c, shape) {
                own += 1u32;
            }
            c += CUBE_DIM;
        }
        shared[UNIT_POS as usize] = own;
        let mut step = comptime!(SIDE * SIDE / 2).runtime();
        while step > 0u32 {
            sync_cube();
            if UNIT_POS < step {
                shared[UNIT_POS as usize] += shared[(UNIT_POS + step) as usize];
            }
            step /= 2u32;
        }
        sync_cube();
        chooses = shared[0] > wanted;
        sync_cube();
    }
    chooses
}
