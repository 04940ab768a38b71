//! What every row of blocks reads, for one sequence length and one stage.

use crate::{Band, Context};

/// Whether a block needs a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Every query of the row sees every key of the block.
    Full,
    /// Some pairs are seen, some are not.
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

/// One row of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// kv blocks of which at least one pair is seen, strictly increasing.
    pub blocks: Vec<RowBlock>,
    /// The residual predicate: limits that cannot bind in this row are left out.
    pub bands: Vec<Band>,
}

/// Rows of blocks; row `b` holds queries `b * block ..`, the last may be ragged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// What the rows were made for.
    pub context: Context,
    /// One for each block that holds a token.
    pub rows: Vec<Row>,
}

impl Topology {
    /// First and last query of row `b`.
    pub fn queries(&self, b: u32) -> (u32, u32) {
        queries(&self.context, b)
    }

    /// The columns: `transposed()[c]` lists the rows that read block `c`, with the class.
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

/// First and last query of row `b` in `context`.
pub fn queries(context: &Context, b: u32) -> (u32, u32) {
    (
        b * context.block,
        ((b + 1) * context.block).min(context.kv_len) - 1,
    )
}
