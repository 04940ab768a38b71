//! Scores of blocks by content ([`Leaf::Routed`](butterfly_ir::Leaf::Routed)): what the queries of a row of
//! blocks, those that score, would give to means of earlier keys.
//!
//! Two passes of one kernel. `weigh` finds the sum of each query's weights, with an online softmax; `score`
//! computes the same logits again, and adds the weights relative to that sum up by block, so that memory does not grow with
//! the product of queries and keys. A producer warp fills a ring of tiles of means by TMA. Each of two
//! consumer warpgroups multiplies 64 queries by a tile (wgmma m64n128k16). Two workgroups share an SM, so
//! that the weights of one are computed during the products of the other. All sums have a fixed
//! order.

use super::prefill::instruction;
use super::source;
use butterfly_ir::{Scorer, ScorerPass};

/// The columns of a box of 128 bytes.
const BOX_COLUMNS: u32 = 64;

/// Tiles of means in the ring: more where rows are short. With two, two workgroups of D = 128 fit an SM.
fn slots(chunks: u32) -> u32 {
    match chunks {
        1 => 4,
        _ => 2,
    }
}

/// Fills in how the kernel of `scorer` is launched.
pub(crate) fn launched(scorer: Scorer) -> Scorer {
    let chunks = scorer.head_dim.div_ceil(BOX_COLUMNS);
    let rows = Scorer::WORKGROUP_ROWS + slots(chunks) * Scorer::MEANS_TILE;
    let entry = match scorer.pass {
        ScorerPass::Weigh => "butterfly_weigh",
        ScorerPass::Score => "butterfly_score",
    };
    Scorer {
        entry: entry.into(),
        threads: 2 * 128 + 32,
        // Bytes for alignment, at most, and for the barriers.
        shared_bytes: rows * chunks * BOX_COLUMNS * 2 + 1024 + 2 * slots(chunks) * 8,
        ..scorer
    }
}

/// The text of the kernel.
pub(crate) fn text(scorer: &Scorer) -> String {
    let Scorer { dtype, .. } = *scorer;
    let mut constants = source::Constants::new("Scores of blocks by content, sm_90a.", dtype);
    let chunks = scorer.head_dim.div_ceil(BOX_COLUMNS);
    let padded = scorer.padded_rows();
    for (name, value) in [
        ("CLUSTER", 1),
        ("HEAD_DIM", scorer.head_dim),
        ("CHUNKS", chunks),
        ("STEPS", scorer.head_dim.div_ceil(16)),
        ("GROUP", scorer.group),
        ("BLOCK", scorer.block),
        ("EVERY", scorer.every),
        ("QUERIES", scorer.block / scorer.every),
        ("ROWS", scorer.rows()),
        ("PADDED", padded),
        ("TILES", scorer.tiles()),
        // Rows of blocks of a warpgroup.
        ("ENTRIES", (64 / padded).max(1)),
        ("PER_BLOCK", scorer.means()),
        ("TILE", Scorer::MEANS_TILE),
        // Sums of columns that warps hand on: of pairs of means, unless blocks have a single one.
        ("CELLS", Scorer::MEANS_TILE / scorer.means().min(2)),
        ("SLOTS", slots(chunks)),
        ("SCORES", (scorer.pass == ScorerPass::Score).into()),
    ] {
        constants.add(name, value);
    }
    let parts = [
        constants.finish(""),
        source::ARITHMETIC.to_string(),
        source::COPIES.to_string(),
        source::INSTRUCTIONS.to_string(),
        instruction("mma_rows", dtype, Scorer::MEANS_TILE),
        include_str!("route.cuh").replace("@ENTRY", &scorer.entry),
    ];
    parts.join("\n")
}
