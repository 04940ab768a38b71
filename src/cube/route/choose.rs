//! The scores of a row's earlier blocks, the best of them, and the row's bands.

use super::logits::{OPERAND, logits};
use super::row::{has_choice, is_whole, row_of, write_keys};
use super::{Extent, SIDE, Shape, TILE};
use cubecl::prelude::*;

/// A workgroup computes one row: its entries of `offsets` and `bands`, [lists, rows, width, 4].
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
pub(super) fn choose<F: Float>(
    q: &Array<F>,
    means: &Array<f32>,
    wanted: &Array<u32>,
    fixed_offsets: &Array<u32>,
    fixed_bands: &Array<u32>,
    sums: &Array<f32>,
    offsets: &mut Array<u32>,
    bands: &mut Array<u32>,
    extent: &Extent,
    #[comptime] shape: Shape,
) {
    let rows = comptime!(shape.rows());
    let per_block = comptime!(shape.means());
    let most = comptime!(shape.blocks);
    let mut shared = SharedMemory::<f32>::new(comptime!((2 * OPERAND) as usize));
    let mut counts = SharedMemory::<u32>::new(comptime!((SIDE * SIDE) as usize));
    let row = row_of(CUBE_POS_X, CUBE_POS_Y, fixed_offsets, extent, shape);
    let blocks = wanted[row.kv_head as usize];
    let scored = has_choice(&row, fixed_bands, blocks, &mut counts, shape);
    let count = row.block * per_block;

    // The best blocks so far, best first; only unit 0 keeps them.
    let mut best = Array::<u32>::new(comptime!(most as usize));
    let mut scores = Array::<f32>::new(comptime!(most as usize));
    let mut found = 0u32;
    if scored {
        let mut s = Array::<f32>::new(16usize);
        // The score of the block that the walk over means has reached.
        let mut score = 0.0f32;
        let mut mean = 0u32;
        while mean < count {
            let mut column = Array::<f32>::new(4usize);
            #[unroll]
            for j in 0..4usize {
                column[j] = 0.0f32;
            }
            for tile in 0..comptime!(rows.div_ceil(TILE)) {
                let first = tile * TILE;
                logits(
                    q,
                    means,
                    &mut shared,
                    &mut s,
                    &row,
                    first,
                    mean,
                    count,
                    extent,
                    shape,
                );
                #[unroll]
                for i in 0..4u32 {
                    let r = first + 4u32 * UNIT_POS_Y + i;
                    if r < rows {
                        let sum = sums[(row.entry * rows + r) as usize];
                        #[unroll]
                        for j in 0..4u32 {
                            let at = comptime!((4 * i + j) as usize);
                            column[comptime!(j as usize)] += (s[at] * extent.scale - sum).exp();
                        }
                    }
                }
            }
            sync_cube();
            #[unroll]
            for j in 0..4u32 {
                let at = (4u32 * UNIT_POS_X + j) * SIDE + UNIT_POS_Y;
                shared[at as usize] = column[comptime!(j as usize)];
            }
            sync_cube();
            if UNIT_POS < TILE {
                let mut total = 0.0f32;
                for i in 0..SIDE {
                    total += shared[(UNIT_POS * SIDE + i) as usize];
                }
                shared[(OPERAND + UNIT_POS) as usize] = total;
            }
            sync_cube();
            if UNIT_POS == 0u32 {
                for at in 0..min(TILE, count - mean) {
                    score += shared[(OPERAND + at) as usize];
                    let next = mean + at + 1u32;
                    if next % per_block == 0u32 {
                        let c = next / per_block - 1u32;
                        if !is_whole(&row, fixed_bands, c, shape) {
                            found = keep(&mut best, &mut scores, found, c, score, blocks);
                        }
                        score = 0.0f32;
                    }
                }
            }
            mean += TILE;
        }
    } else if UNIT_POS == 0u32 && blocks > 0u32 {
        for c in 0..row.block {
            if !is_whole(&row, fixed_bands, c, shape) {
                best[found as usize] = c;
                found += 1u32;
            }
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

/// Puts a block among the best `wanted`, if its score is among theirs; of equal scores the earlier block
/// stays before. Returns how many there are then.
#[cube]
pub(super) fn keep(
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
pub(super) fn write_row(
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
