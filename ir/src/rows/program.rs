//! The closed form of a pattern: bands whose limits are computed from the row number.
//!
//! A kernel evaluates the atoms of its row once, in registers, and from them the limits of each
//! band. So it reads no index from memory, and nothing is prepared for a sequence length. Artifacts
//! hold this form; [`RowProgram::lower`] turns it into expressions.

use super::stage::PartnerRule;
use crate::Indices;
use serde::{Deserialize, Serialize};

/// A key range `[start, stop)` that depends only on the query block `b` and run-time scalars.
///
/// Starts and stops are in tokens; an absent partner is the range `[0, 0)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Atom {
    /// Blocks `b - before ..= b + after`.
    Local {
        /// Blocks before.
        before: u32,
        /// Blocks after.
        after: u32,
    },
    /// One partner block.
    Partner {
        /// The rule.
        rule: PartnerRule,
        /// The radix.
        radix: u32,
        /// Which of the consecutive digits of the stage, from 0.
        offset: u32,
        /// Multiple of the digit's weight, in `1..radix`.
        step: u32,
    },
    /// The first `blocks` blocks up to `b`.
    Sink {
        /// Number of blocks.
        blocks: u32,
    },
    /// The first `tokens` keys.
    Tokens {
        /// Number of tokens.
        tokens: u32,
    },
    /// The first `blocks` blocks.
    Columns {
        /// Number of blocks.
        blocks: u32,
    },
    /// Every key if `b < blocks`, else nothing.
    Rows {
        /// Number of blocks.
        blocks: u32,
    },
    /// Every key if block `b` holds one of the last `tokens` tokens of the prompt or comes after
    /// them, else nothing.
    Tail {
        /// Number of tokens; at least 1.
        tokens: u32,
    },
}

/// One end of an atom's range; the number is the atom's position in [`RowProgram::atoms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// First key of the atom.
    Start(u32),
    /// One past its last key.
    Stop(u32),
}

/// A [`Band`](super::band::Band) with symbolic limits: its `lo` is the largest of the bounds in `lo` and 0, its `hi`
/// the smallest of the bounds in `hi` and `kv_len`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SymbolicBand {
    /// Lower limits, sorted, without repeats.
    pub lo: Vec<Bound>,
    /// Upper limits, sorted, without repeats.
    pub hi: Vec<Bound>,
    /// As in [`Band::first`](super::band::Band::first).
    pub first: i32,
    /// As in [`Band::end`](super::band::Band::end).
    pub end: i32,
    /// The kv heads that the band applies to.
    #[serde(default, skip_serializing_if = "Indices::is_all")]
    pub heads: Indices,
}

/// The closed form of a pattern: the bands of every row, for any sequence length and stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowProgram {
    /// The ranges to compute, each once.
    pub atoms: Vec<Atom>,
    /// The bands, which may overlap; a row sees their union.
    pub bands: Vec<SymbolicBand>,
}
