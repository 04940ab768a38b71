//! The closed form of a pattern: bands whose limits are computed from the row number.
//!
//! A kernel evaluates the atoms of its row once, in registers, and from them the
//! limits of each band: no index bytes, no planning time, at any sequence length.

use crate::{PartnerRule, band::Band, sees::Context, stage};
use serde::{Deserialize, Serialize};

/// A key range `[start, stop)` that depends on the query block `b` and run-time scalars only.
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
        /// Which of the consecutive digits.
        offset: u32,
        /// Multiple of the digit's weight, `1..radix`.
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
}

impl Atom {
    /// The range in tokens for query block `b`; `start <= stop`, both within `0..=i32::MAX/2`.
    pub fn range(&self, b: u32, context: &Context) -> (i32, i32) {
        let limit = i64::from(crate::band::UNBOUNDED);
        let tokens = |blocks: u64| (blocks * u64::from(context.block)).min(limit as u64) as i32;
        match *self {
            Atom::Local { before, after } => (
                tokens(u64::from(b.saturating_sub(before))),
                tokens(u64::from(b) + u64::from(after) + 1),
            ),
            Atom::Partner {
                rule,
                radix,
                offset,
                step,
            } => {
                let blocks = context.blocks();
                let width = stage::width(blocks, radix);
                let at = context.index % stage::stage_count(rule, blocks, radix);
                let digit = stage::digit(rule, at, offset, width);
                match stage::partner(rule, b, digit, step, radix, width, blocks) {
                    Some(p) => (tokens(u64::from(p)), tokens(u64::from(p) + 1)),
                    None => (0, 0),
                }
            }
            Atom::Sink { blocks } => (0, tokens(u64::from(blocks.min(b + 1)))),
            Atom::Tokens { tokens } => (0, i64::from(tokens).min(limit) as i32),
            Atom::Columns { blocks } => (0, tokens(u64::from(blocks))),
            Atom::Rows { blocks } => (0, if b < blocks { context.kv_len as i32 } else { 0 }),
        }
    }
}

/// One end of an atom's range, by the atom's position in [`RowProgram::atoms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// First key of the atom.
    Start(u32),
    /// One past its last key.
    Stop(u32),
}

/// A [`Band`] whose `lo` is the largest of `lo` (at least 0) and whose `hi` is the
/// smallest of `hi` (at most `kv_len`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SymbolicBand {
    /// Lower limits, sorted, without repeats.
    pub lo: Vec<Bound>,
    /// Upper limits, sorted, without repeats.
    pub hi: Vec<Bound>,
    /// As in [`Band::first`].
    pub first: i32,
    /// As in [`Band::end`].
    pub end: i32,
}

/// What every row sees, for any sequence length and stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowProgram {
    /// The ranges to compute, each once.
    pub atoms: Vec<Atom>,
    /// Their union is what the row sees; bands may overlap.
    pub bands: Vec<SymbolicBand>,
}

impl RowProgram {
    /// The bands of row `b`, empty ones left out.
    pub fn bands(&self, b: u32, context: &Context) -> Vec<Band> {
        let ranges: Vec<_> = self
            .atoms
            .iter()
            .map(|atom| atom.range(b, context))
            .collect();
        let value = |bound: &Bound| match *bound {
            Bound::Start(i) => ranges[i as usize].0,
            Bound::Stop(i) => ranges[i as usize].1,
        };
        let concrete = |band: &SymbolicBand| Band {
            lo: band.lo.iter().map(value).fold(0, i32::max),
            hi: band
                .hi
                .iter()
                .map(value)
                .fold(context.kv_len as i32, i32::min),
            first: band.first,
            end: band.end,
        };
        self.bands
            .iter()
            .map(concrete)
            .filter(|band| !band.is_empty())
            .collect()
    }
}
