//! The best of the blocks before a row, by their scores, and the bands of the row.

use super::row::{has_choice, is_whole, row_of};
use super::single::{score_block, sum_blocks};
use super::weigh::LEAST;
use super::{Extent, SIDE, Shape};
use butterfly_ir::band::UNBOUNDED;
use cubecl::prelude::*;

/// A workgroup computes one row: its entries of `offsets` and `bands`, [lists, rows, width, 4], from `scores`
/// [lists, rows, tiles, stride], or, of a single query, from its weights [lists, stride, group, 2].
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
    let mut logs = SharedMemory::<f32>::new(comptime!(shape.group as usize));
    if comptime!(shape.single) && scored {
        sum_blocks(scores, &mut logs, &mut heads, &row, stride, shape);
    }
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
                if comptime!(shape.single) {
                    score = score_block(scores, &logs, &row, c, stride, shape);
                } else {
                    for tile in 0..comptime!(shape.tiles) {
                        let part = row.entry * comptime!(shape.tiles) + tile;
                        score += scores[(part * stride + c) as usize];
                    }
                }
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
        let mut step = comptime!(SIDE * SIDE / 2).runtime();
        while step > 0u32 {
            sync_cube();
            if UNIT_POS < step {
                let (own, other) = (UNIT_POS as usize, (UNIT_POS + step) as usize);
                let (score, block) = (heads[other], counts[other]);
                // Units without a block have a score below all others.
                if score > heads[own] || (score == heads[own] && block < counts[own]) {
                    heads[own] = score;
                    counts[own] = block;
                }
            }
            step /= 2u32;
        }
        sync_cube();
        let at = counts[0];
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
            row.of_table,
            row.from,
            row.to,
            shape,
        );
    }
}

/// Puts a block among the best `wanted`, if its score is among theirs; of equal scores the earlier block
/// stays before. Returns how many there are then.
#[cube]
fn keep(
    best: &mut Array<u32>,
    scores: &mut Array<f32>,
    found: u32,
    c: u32,
    score: f32,
    wanted: u32,
) -> u32 {
    let mut at = found;
    let mut searching = true;
    while searching {
        searching = false;
        if at > 0u32 {
            let before = scores[(at - 1u32) as usize];
            if score > before {
                if at < wanted {
                    scores[at as usize] = before;
                    best[at as usize] = best[(at - 1u32) as usize];
                }
                at -= 1u32;
                searching = true;
            }
        }
    }
    if at < wanted {
        scores[at as usize] = score;
        best[at as usize] = c;
    }
    min(found + 1u32, wanted)
}

/// Writes the fixed bands of a row, its chosen blocks, and empty bands where it has fewer than others.
#[cube]
#[allow(clippy::too_many_arguments)]
fn write_row(
    fixed_bands: &Array<u32>,
    offsets: &mut Array<u32>,
    bands: &mut Array<u32>,
    best: &Array<u32>,
    found: u32,
    entry: u32,
    from: u32,
    to: u32,
    #[comptime] shape: Shape,
) {
    let width = comptime!(shape.width());
    let size = comptime!(shape.block);
    let start = entry * width;
    offsets[entry as usize] = start;
    offsets[(entry + 1u32) as usize] = start + width;
    let fixed = to - from;
    for i in 0..fixed * 4u32 {
        bands[(start * 4u32 + i) as usize] = fixed_bands[(from * 4u32 + i) as usize];
    }
    for i in 0..found {
        let c = best[i as usize];
        write_keys(bands, start + fixed + i, c * size, (c + 1u32) * size);
    }
    for i in fixed + found..width {
        write_keys(bands, start + i, 0u32, 0u32);
    }
}

/// Writes the band of the keys `lo..hi`, which no position of a query limits.
#[cube]
fn write_keys(bands: &mut Array<u32>, entry: u32, lo: u32, hi: u32) {
    let at = (entry * 4u32) as usize;
    bands[at] = lo;
    bands[at + 1] = hi;
    bands[at + 2] = comptime!((-UNBOUNDED).cast_unsigned()).runtime();
    bands[at + 3] = comptime!(UNBOUNDED.cast_unsigned()).runtime();
}
