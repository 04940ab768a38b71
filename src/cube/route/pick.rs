//! The best of the blocks before a single query, by their scores, and the row's bands.

use super::choose::{keep, write_row};
use super::row::{has_choice, is_whole, row_of};
use super::weigh::LEAST;
use super::{Extent, SIDE, Shape};
use cubecl::prelude::*;

/// A workgroup computes one row: its entries of `offsets` and `bands`, [lists, rows, width, 4], from `scores`
/// [lists, stride].
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn pick(
    wanted: &Array<u32>,
    fixed_offsets: &Array<u32>,
    fixed_bands: &Array<u32>,
    scores: &Array<f32>,
    offsets: &mut Array<u32>,
    bands: &mut Array<u32>,
    stride: u32,
    extent: &Extent,
    #[comptime] shape: Shape,
) {
    let units = comptime!((SIDE * SIDE) as usize);
    let most = comptime!(shape.blocks as usize);
    let mut heads = SharedMemory::<f32>::new(units);
    let mut counts = SharedMemory::<u32>::new(units);
    let row = row_of(CUBE_POS_X, CUBE_POS_Y, fixed_offsets, extent, shape);
    let blocks = wanted[row.kv_head as usize];
    let scored = has_choice(&row, fixed_bands, blocks, &mut counts, shape);
    // Each unit keeps the best of its blocks; all units have the same list of the best of all.
    let mut own = Array::<u32>::new(most);
    let mut own_scores = Array::<f32>::new(most);
    let mut best = Array::<u32>::new(most);
    let mut kept = 0u32;
    let mut found = 0u32;
    let mut c = UNIT_POS;
    while c < row.block {
        if blocks > 0u32 && !is_whole(&row, fixed_bands, c, shape) {
            let mut score = 0.0f32;
            if scored {
                score = scores[(row.entry * stride + c) as usize];
            }
            kept = keep(&mut own, &mut own_scores, kept, c, score, blocks);
        }
        c += CUBE_DIM;
    }
    let mut next = 0u32;
    let mut searching = blocks > 0u32;
    while searching {
        let mut score = LEAST.runtime();
        let mut block = u32::MAX.runtime();
        if next < kept {
            score = own_scores[next as usize];
            block = own[next as usize];
        }
        heads[UNIT_POS as usize] = score;
        counts[UNIT_POS as usize] = block;
        sync_cube();
        let mut top = LEAST.runtime();
        let mut at = u32::MAX.runtime();
        for i in 0..comptime!(SIDE * SIDE) {
            let (score, block) = (heads[i as usize], counts[i as usize]);
            if block != u32::MAX && (score > top || (score == top && block < at)) {
                top = score;
                at = block;
            }
        }
        // No unit proposes its next block before all have seen this one.
        sync_cube();
        if at == u32::MAX {
            searching = false;
        } else {
            if at == block {
                next += 1u32;
            }
            best[found as usize] = at;
            found += 1u32;
            searching = found < blocks;
        }
    }
    if UNIT_POS == 0u32 {
        write_row(
            fixed_bands,
            offsets,
            bands,
            &best,
            found,
            row.entry,
            row.from,
            row.to,
            shape,
        );
    }
}
