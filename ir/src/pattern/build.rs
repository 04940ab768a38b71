//! Patterns as Rust expressions.
//!
//! In:  plain numbers. Out: leaves, to combine with `|`, `&` and `-`.
//!
//! Invariant: the names are those of the text form, so that an expression means the
//! same in both. Numbers are not checked here; [`Sparsity::check`](super::Sparsity::check)
//! checks the whole pattern.
//!
//! ```
//! use butterfly_ir::{build::*, PartnerRule, Sparsity};
//!
//! let partners = partner(PartnerRule::CausalShift, 2, 1);
//! let pattern = causal() & (local(1) | partners | sink(1));
//! let text = "causal & (local(1) | partner(causal_shift) | sink(1))";
//! assert_eq!(pattern, Sparsity::parse("doc.pattern", text)?.pattern);
//! # Ok::<(), butterfly_ir::Diagnostic>(())
//! ```

use super::{Case, Leaf, PartnerRule, Pattern};
use crate::Indices;

/// Keys at or before the query.
pub fn causal() -> Pattern {
    Leaf::Causal.into()
}

/// The query's own block and `before` blocks before it.
pub fn local(before: u32) -> Pattern {
    local_around(before, 0)
}

/// The query's own block, `before` blocks before it and `after` blocks after it.
pub fn local_around(before: u32, after: u32) -> Pattern {
    Leaf::Local { before, after }.into()
}

/// The last `tokens` keys, the query's own position included.
pub fn window(tokens: u32) -> Pattern {
    Leaf::Window { tokens }.into()
}

/// Long-range partner blocks that change from stage to stage (see [`Leaf::Partner`]). Usual values
/// are radix 2 and count 1.
pub fn partner(rule: PartnerRule, radix: u32, count: u32) -> Pattern {
    Leaf::Partner { rule, radix, count }.into()
}

/// The first `blocks` blocks, except those after the query's own.
pub fn sink(blocks: u32) -> Pattern {
    Leaf::Sink { blocks }.into()
}

/// The first `tokens` keys.
pub fn sink_tokens(tokens: u32) -> Pattern {
    Leaf::SinkTokens { tokens }.into()
}

/// Every query sees the first `blocks` blocks, and the queries in these see every key.
pub fn global(blocks: u32) -> Pattern {
    Leaf::Global { blocks }.into()
}

/// The query blocks that hold one of the last `tokens` tokens of the prompt, and all later ones,
/// see every key.
pub fn tail(tokens: u32) -> Pattern {
    Leaf::Tail { tokens }.into()
}

/// The `blocks` earlier blocks whose means of `pool` keys score highest for every `every`-th query, beside
/// all else (see [`Leaf::Routed`]). Usual values are a pool of 16 and every query.
pub fn routed(blocks: u32, pool: u32, every: u32) -> Pattern {
    Leaf::Routed {
        blocks,
        pool,
        every,
    }
    .into()
}

/// A pattern for each kv head; the first case that names a head counts.
pub fn per_head(cases: impl IntoIterator<Item = (Indices, Pattern)>) -> Pattern {
    Pattern::PerHead(listed(cases))
}

/// A pattern for each layer, by its index in the model; the first case that names a layer counts.
pub fn per_layer(cases: impl IntoIterator<Item = (Indices, Pattern)>) -> Pattern {
    Pattern::PerLayer(listed(cases))
}

fn listed(cases: impl IntoIterator<Item = (Indices, Pattern)>) -> Vec<Case> {
    let cases = cases.into_iter();
    cases.map(|(of, pattern)| Case { of, pattern }).collect()
}

/// `rows[b]` lists the kv blocks of query block `b`.
pub fn table<Row: Into<Vec<u32>>>(rows: impl IntoIterator<Item = Row>) -> Pattern {
    let rows = rows.into_iter().map(Into::into).collect();
    Leaf::Table { rows }.into()
}

/// Every pair.
pub fn all() -> Pattern {
    Leaf::All.into()
}

/// No pair.
pub fn none() -> Pattern {
    Leaf::None.into()
}
