//! The blocks that every row reads, for one sequence length and one stage.

use crate::{Band, Context};

/// Whether a block needs a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Every query of the row sees every key of the block.
    Full,
    /// At least one pair of the row and the block is seen, at least one is not.
    Partial,
}

/// One kv block in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowBlock {
    /// The kv block.
    pub block: u32,
    /// Whether it needs a mask.
    pub class: Class,
}

/// One row: what the queries of one block read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// kv blocks in which at least one pair is seen, strictly increasing.
    pub blocks: Vec<RowBlock>,
    /// Bands whose union is the set of seen pairs; `first` and `end` are unbounded where they
    /// exclude no pair of this row.
    pub bands: Vec<Band>,
}

/// All rows of a sequence. Row `b` belongs to the `block` queries from `b * block` on; the last row
/// may have fewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The sizes and the stage that the rows were made for.
    pub context: Context,
    /// One row for each block that holds a token.
    pub rows: Vec<Row>,
}

impl Topology {
    /// First and last query of row `b`, both inclusive.
    pub fn queries(&self, b: u32) -> (u32, u32) {
        queries(&self.context, b)
    }

    /// The transposed matrix of blocks: `transposed()[c]` lists the rows that read block `c`, each
    /// as a [`RowBlock`] whose `block` is the number of the row.
    pub fn transposed(&self) -> Vec<Vec<RowBlock>> {
        let mut columns = vec![Vec::new(); self.rows.len()];
        for (b, row) in self.rows.iter().enumerate() {
            for entry in &row.blocks {
                columns[entry.block as usize].push(RowBlock {
                    block: b as u32,
                    class: entry.class,
                });
            }
        }
        columns
    }
}

/// First and last query of row `b` in `context`, both inclusive.
pub fn queries(context: &Context, b: u32) -> (u32, u32) {
    (
        b * context.block,
        ((b + 1) * context.block).min(context.kv_len) - 1,
    )
}
