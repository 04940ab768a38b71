//! Which blocks each row chooses by content ([`Leaf::Routed`](butterfly_ir::Leaf::Routed)).
//!
//! In:  queries, means of keys, and the fixed bands of each row. Out: a band table in which every kv
//! head of every sequence has rows of its own: the fixed bands and the chosen blocks.
//!
//! Invariant: each row is computed by one thread in a fixed order, so the choice does not depend on
//! the number of threads.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`Route::check` holds positions below 2^30"
)]

mod scores;

use crate::{Isa, ProblemError};
use butterfly_ir::BandTable;
use butterfly_ir::rows::chosen;
use rayon::prelude::*;
use scores::{Memory, RowScores};

/// One choice of blocks, for the queries of one launch.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// B, the number of sequences, at least 1.
    pub batch: usize,
    /// Hq, a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Hkv, at least 1.
    pub kv_heads: usize,
    /// Queries of each sequence.
    pub q_len: usize,
    /// D, at least 1.
    pub head_dim: usize,
    /// Absolute position of the first query.
    pub q_offset: usize,
    /// Tokens in a block, a multiple of `pool`.
    pub block: usize,
    /// Tokens of a mean.
    pub pool: usize,
    /// From one query that scores to the next, which divides the block.
    pub every: usize,
    /// Factor on the logits.
    pub scale: f32,
    /// Queries, `[B, Hq, q_len, D]`.
    pub q: &'a [f32],
    /// Means of the keys, `[B, Hkv, room, D]`, for all whole blocks before the last query's.
    pub means: &'a [f32],
    /// Means for which there is room in each head.
    pub room: usize,
    /// The most blocks that a row of each kv head chooses; 0 for heads that do not choose.
    pub blocks: &'a [u32],
    /// The fixed bands of each row, shared by all sequences.
    pub fixed: &'a BandTable,
}

/// The rows of all queries, with the blocks that they choose.
///
/// # Errors
/// [`ProblemError`] if the arguments do not fit one another.
pub fn route(route: &Route<'_>) -> Result<BandTable, ProblemError> {
    route.check()?;
    let (first, last) = route.rows();
    let rows = last - first + 1;
    let isa = Isa::best();
    let choose = |memory: &mut Memory, i: usize| {
        let (list, b) = (i / rows, first + i % rows);
        let kv_head = list % route.kv_heads;
        let fixed = route.fixed.row(kv_head, b);
        let (q0, q1) = route.queries(b);
        let block = route.block as u32;
        let wanted = route.blocks[kv_head];
        let candidates = match wanted {
            0 => Vec::new(),
            _ => chosen::candidates(fixed, (q0 as u32, q1 as u32), block, b as u32),
        };
        let best = match candidates.len() > wanted as usize {
            false => candidates,
            true => {
                let scores = RowScores {
                    route,
                    list,
                    queries: &route.scoring(b),
                    blocks: b,
                };
                // SAFETY: the instruction set is available, and the arguments were checked.
                unsafe { isa.run(scores.into(memory)) };
                chosen::choose(&candidates, &memory.scores, wanted)
            }
        };
        chosen::with_blocks(fixed, &best, block)
    };
    let lists = route.batch * route.kv_heads;
    let rows: Vec<_> = (0..lists * rows)
        .into_par_iter()
        .map_init(Memory::default, choose)
        .collect();
    let mut table = BandTable {
        heads: route.kv_heads as u32,
        sequences: route.batch as u32,
        first_row: first as u32,
        offsets: vec![0],
        bands: Vec::new(),
    };
    for row in rows {
        table.bands.extend(row);
        table.offsets.push(table.bands.len() as u32);
    }
    Ok(table)
}

impl Route<'_> {
    /// The first and the last row that holds a query.
    fn rows(&self) -> (usize, usize) {
        let end = self.q_offset + self.q_len.max(1);
        (self.q_offset / self.block, (end - 1) / self.block)
    }

    /// First and last query of the launch in row `b`.
    fn queries(&self, b: usize) -> (usize, usize) {
        let end = (self.q_offset + self.q_len).min((b + 1) * self.block);
        (self.q_offset.max(b * self.block), end.max(1) - 1)
    }

    /// The queries of row `b` that score.
    fn scoring(&self, b: usize) -> Vec<usize> {
        let (q0, q1) = self.queries(b);
        let regular = (q0..q1).filter(|q| (q + 1).is_multiple_of(self.every));
        regular.chain([q1]).collect()
    }

    fn check(&self) -> Result<(), ProblemError> {
        for (name, count) in [
            ("batch", self.batch),
            ("q_len", self.q_len),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("block", self.block),
            ("pool", self.pool),
            ("every", self.every),
        ] {
            if count == 0 {
                return Err(ProblemError::Zero { name });
            }
        }
        let (q_heads, kv_heads) = (self.q_heads, self.kv_heads);
        if !q_heads.is_multiple_of(kv_heads) || q_heads == 0 {
            return Err(ProblemError::Heads { q_heads, kv_heads });
        }
        let limit = butterfly_ir::band::MAX_TOKENS as usize + 1;
        let given = self.q_offset.saturating_add(self.q_len);
        if given >= limit {
            let name = "queries";
            return Err(ProblemError::TooLong { name, given, limit });
        }
        let length = |name, given: usize, shape: [usize; 4]| {
            let expected = shape.into_iter().fold(1, usize::saturating_mul);
            match given == expected {
                true => Ok(()),
                false => Err(ProblemError::Length {
                    name,
                    shape,
                    expected,
                    given,
                }),
            }
        };
        let d = self.head_dim;
        length("q", self.q.len(), [self.batch, q_heads, self.q_len, d])?;
        length(
            "means",
            self.means.len(),
            [self.batch, kv_heads, self.room, d],
        )?;
        length("blocks", self.blocks.len(), [1, 1, 1, kv_heads])?;
        let (first, last) = self.rows();
        let pools = self.block / self.pool;
        if !self.block.is_multiple_of(self.pool) || self.room < last * pools {
            return Err(ProblemError::Pools {
                pool: self.pool,
                block: self.block,
                room: self.room,
                needed: last * pools,
            });
        }
        let fixed = self.fixed;
        let (start, given) = (fixed.first_row as usize, fixed.rows());
        if first < start || last - start >= given {
            return Err(ProblemError::Rows {
                first,
                last,
                start,
                given,
            });
        }
        let heads = fixed.heads as usize;
        if fixed.sequences != 1 || (heads != 1 && heads != kv_heads) {
            return Err(ProblemError::TableHeads {
                heads,
                sequences: fixed.sequences as usize,
                entries: fixed.offsets.len() - 1,
                kv_heads,
                batch: self.batch,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
