//! Blocks that a row chooses by content: what `routed` asks for, and patterns in which the choice is
//! made.
//!
//! In:  a pattern with `routed`. Out: how many blocks are chosen and by which means; the pattern with
//! the chosen blocks in its place.
//!
//! Without a choice, `routed` admits nothing. So the pattern itself is what every row sees whatever
//! keys and queries hold: its *fixed part*. What a row sees beside it are at most [`Routing::blocks`]
//! earlier blocks, whole. [`Sparsity::check`] makes sure of that: the chosen blocks are joined to the
//! rest by `|`, under `causal` at most, so that nothing takes away a part of them.

use super::limits::LimitError;
use super::{Case, Leaf, Pattern, Sparsity};

/// What the rows of a pattern choose by content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Routing {
    /// The most blocks that a row chooses, over all kv heads.
    pub blocks: u32,
    /// Tokens of a mean key.
    pub pool: u32,
    /// From one query that scores to the next.
    pub every: u32,
}

impl Pattern {
    /// What rows choose by content; `None` if the pattern alone says what they see.
    pub fn routing(&self) -> Option<Routing> {
        let of = self.leaves().into_iter().filter_map(routing_of);
        of.reduce(|a, b| Routing {
            blocks: a.blocks.max(b.blocks),
            ..a
        })
    }

    /// The most blocks that a row of each of `kv_heads` heads chooses by content.
    pub fn routed_blocks(&self, kv_heads: u32) -> Vec<u32> {
        (0..kv_heads)
            .map(|head| self.routed_blocks_of(head))
            .collect()
    }

    fn routed_blocks_of(&self, head: u32) -> u32 {
        match self {
            Self::Leaf(leaf) => routing_of(leaf).map_or(0, |routing| routing.blocks),
            Self::Or(a, b) | Self::And(a, b) | Self::Minus(a, b) => {
                a.routed_blocks_of(head).max(b.routed_blocks_of(head))
            }
            Self::PerHead(cases) => {
                Case::find(cases, head).map_or(0, |pattern| pattern.routed_blocks_of(head))
            }
            Self::PerLayer(cases) => {
                let blocks = cases.iter().map(|case| case.pattern.routed_blocks_of(head));
                blocks.max().unwrap_or_default()
            }
        }
    }

    /// The pattern of one kv head with its choice made: `rows[b]` lists the blocks that row `b` has
    /// chosen.
    pub fn routed_to(&self, rows: &[Vec<u32>]) -> Self {
        self.choosing(&|| Leaf::Table {
            rows: rows.to_vec(),
        })
    }

    /// All that rows could choose, beside what they see without: every earlier block.
    pub fn routed_anywhere(&self) -> Self {
        self.choosing(&|| Leaf::Causal)
    }

    fn choosing(&self, choice: &dyn Fn() -> Leaf) -> Self {
        self.rewritten(&|pattern| match pattern {
            Self::Leaf(leaf) => routing_of(leaf).map(|_| choice().into()),
            Self::Or(..) | Self::And(..) | Self::Minus(..) => None,
            Self::PerHead(_) | Self::PerLayer(_) => None,
        })
    }

    /// Whether every query sees all keys of the blocks before its own.
    fn admits_earlier_blocks(&self) -> bool {
        match self {
            Self::Leaf(leaf) => matches!(leaf, Leaf::Causal | Leaf::All),
            Self::Or(a, b) => a.admits_earlier_blocks() || b.admits_earlier_blocks(),
            Self::And(a, b) => a.admits_earlier_blocks() && b.admits_earlier_blocks(),
            Self::Minus(..) => false,
            Self::PerHead(cases) | Self::PerLayer(cases) => {
                let mut cases = cases.iter();
                cases.all(|case| case.pattern.admits_earlier_blocks())
            }
        }
    }

    /// Whether a chosen block is seen whole, beside all that is seen without it, and no head chooses
    /// twice.
    fn keeps_choice(&self) -> bool {
        let chooses = |pattern: &Self| pattern.routing().is_some();
        match self {
            Self::Leaf(_) => true,
            Self::Or(a, b) => a.keeps_choice() && b.keeps_choice() && !(chooses(a) && chooses(b)),
            Self::And(a, b) => match (chooses(a), chooses(b)) {
                (false, false) => true,
                (true, false) => a.keeps_choice() && b.admits_earlier_blocks(),
                (false, true) => b.keeps_choice() && a.admits_earlier_blocks(),
                (true, true) => false,
            },
            Self::Minus(..) => !chooses(self),
            Self::PerHead(cases) | Self::PerLayer(cases) => {
                cases.iter().all(|case| case.pattern.keeps_choice())
            }
        }
    }
}

fn routing_of(leaf: &Leaf) -> Option<Routing> {
    match *leaf {
        Leaf::Routed {
            blocks,
            pool,
            every,
        } => Some(Routing {
            blocks,
            pool,
            every,
        }),
        Leaf::Causal
        | Leaf::Local { .. }
        | Leaf::Window { .. }
        | Leaf::Partner { .. }
        | Leaf::Sink { .. }
        | Leaf::SinkTokens { .. }
        | Leaf::Global { .. }
        | Leaf::Tail { .. }
        | Leaf::Table { .. }
        | Leaf::All
        | Leaf::None => None,
    }
}

/// Checks how `routed` stands in a pattern whose numbers are in range.
pub(super) fn check(sparsity: &Sparsity) -> Result<(), LimitError> {
    let leaves = sparsity.pattern.leaves();
    let mut found = leaves.iter().enumerate();
    let mut found = found
        .by_ref()
        .filter_map(|(i, leaf)| Some((i, routing_of(leaf)?)));
    let Some((first, routing)) = found.next() else {
        return Ok(());
    };
    let wrong = |leaf, argument, message: String, given: String| LimitError {
        leaf: Some(leaf),
        argument,
        message,
        given,
    };
    let block = sparsity.block;
    let others: Vec<_> = found.collect();
    for (argument, of) in [
        ("pool", (|routing| routing.pool) as fn(Routing) -> u32),
        ("every", |routing| routing.every),
    ] {
        let given = of(routing);
        if !block.is_multiple_of(given) {
            let message = format!("`{argument}` must divide the block of {block} tokens");
            return Err(wrong(first, argument, message, format!("given {given}")));
        }
        if let Some((leaf, other)) = others.iter().find(|(_, other)| of(*other) != given) {
            let message = format!("every `routed` of a pattern takes the same `{argument}`");
            let given = format!("{} after {given}", of(*other));
            return Err(wrong(*leaf, argument, message, given));
        }
    }
    if !sparsity.pattern.keeps_choice() {
        let message =
            "a head takes one `routed`, joined by `|` to all it sees, under `causal &` at most"
                .into();
        let given = "here it is part of another operator, or there are two".into();
        return Err(wrong(first, "blocks", message, given));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, sees};

    fn pattern(text: &str) -> Result<Sparsity, String> {
        Sparsity::parse("test", text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_choice_stands_beside_the_rest() {
        for good in [
            "causal & (local(1) | routed(4) | sink(1))",
            "causal & per_head { 1 => routed(2, pool=8) | local(0); else => all }",
            "per_head { 0 => causal & (local(1) | routed(1)); else => window(9) | routed(blocks=3) }",
            "tail(64) & causal | causal & (all | sink(1)) & (local(2) | routed(7, 32, every=8))",
            "per_layer { 0 => causal; else => causal & (local(1) | routed(4)) }",
        ] {
            let sparsity = pattern(good).unwrap_or_else(|error| panic!("{good}: {error}"));
            assert!(sparsity.pattern.routing().is_some());
            assert_eq!(sparsity.check(), Ok(()));
            let blocks = sparsity.pattern.routed_blocks(2);
            let most = sparsity
                .pattern
                .routing()
                .map_or(0, |routing| routing.blocks);
            assert_eq!(blocks.into_iter().max(), Some(most), "{good}");
            let json = serde_json::to_string(&sparsity).expect("JSON");
            let read = Sparsity::parse_any("x.json", &json).expect("the same");
            assert_eq!(read.sparsity, sparsity);
        }
        for (bad, says) in [
            ("causal & (local(1) - routed(2))", "one `routed`"),
            ("causal & window(9) & routed(2)", "one `routed`"),
            ("causal & local(1) & (all | routed(2))", "one `routed`"),
            ("routed(1) & routed(2)", "one `routed`"),
            ("causal & (routed(1) | routed(2))", "one `routed`"),
            (
                "block 24 causal & (local(1) | routed(2))",
                "must divide the block of 24",
            ),
            (
                "causal & per_head { 0 => routed(1, 8) | local(0); else => routed(1) | local(0) }",
                "the same `pool`",
            ),
            (
                "block 64 causal & (local(1) | routed(2, every=24))",
                "`every` must divide",
            ),
            ("causal & (local(1) | routed(2, every=0))", "at least 1"),
            ("causal & (local(1) | routed(0))", "at least 1"),
            ("causal & (local(1) | routed(1, pool=0))", "at least 1"),
        ] {
            let error = pattern(bad).expect_err(bad);
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_choice_is_a_table() {
        let sparsity = pattern("block 4 causal & (local(0) | routed(1, 2))").expect("a pattern");
        let context = Context::new(4, 12, 0);
        let free = &sparsity.pattern;
        let chosen = free.routed_to(&[vec![], vec![0], vec![1]]);
        assert_eq!(chosen.routing(), None);
        assert!(!sees(free, &context, 9, 5) && sees(&chosen, &context, 9, 5));
        assert!(!sees(&chosen, &context, 9, 1) && sees(&chosen, &context, 9, 8));
    }
}
