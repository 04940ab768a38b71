//! How far back the queries of a pattern look, for caches that forget what no query sees again.

use super::{Leaf, Pattern};

/// No limit.
const ALL: u64 = u64::MAX;

impl Pattern {
    /// The number W such that a query sees none but the last W tokens, its own included, wherever
    /// it stands; `block` is the number of tokens in a block.
    ///
    /// `None` if there is no such number, or if the seen keys depend on more than their distance
    /// from the query and the borders of blocks, as with sinks. Otherwise the pattern stays the
    /// same when queries and keys move together by whole blocks: the keys before the last W can be
    /// dropped by whole blocks, and positions counted from the first key that is left.
    pub fn lookback(&self, block: u32) -> Option<u32> {
        let tokens = self.seen(block.into()).filter(|tokens| *tokens < ALL)?;
        u32::try_from(tokens).ok()
    }

    /// As [`Self::lookback`], with [`ALL`] where there is no limit.
    fn seen(&self, block: u64) -> Option<u64> {
        match self {
            Self::Leaf(leaf) => leaf_sees(leaf, block),
            Self::Or(a, b) => Some(a.seen(block)?.max(b.seen(block)?)),
            Self::And(a, b) => Some(a.seen(block)?.min(b.seen(block)?)),
            Self::Minus(a, b) => b.seen(block).and(a.seen(block)),
            Self::PerHead(cases) | Self::PerLayer(cases) => {
                let mut cases = cases.iter();
                cases.try_fold(0, |most, case| Some(case.pattern.seen(block)?.max(most)))
            }
        }
    }
}

fn leaf_sees(leaf: &Leaf, block: u64) -> Option<u64> {
    match leaf {
        Leaf::Causal | Leaf::All => Some(ALL),
        Leaf::None => Some(0),
        Leaf::Window { tokens } => Some((*tokens).into()),
        Leaf::Local { before, after: _ } => Some((u64::from(*before) + 1) * block),
        Leaf::Partner { .. }
        | Leaf::Sink { .. }
        | Leaf::SinkTokens { .. }
        | Leaf::Global { .. }
        | Leaf::Tail { .. }
        | Leaf::Routed { .. }
        | Leaf::Table { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::{Context, Sparsity, sees};

    /// What is claimed holds at every pair of a short sequence, for queries and keys moved by one
    /// and by three blocks, and the limit is the least one.
    #[test]
    fn limits_hold_wherever_a_query_stands() {
        let cases = [
            ("causal & window(5)", Some(5)),
            ("causal & window(1)", Some(1)),
            ("window(20) | window(3)", Some(20)),
            ("causal & local(1)", Some(16)),
            ("causal & (local(0) | window(11))", Some(11)),
            ("causal & local(2) - local(0)", Some(24)),
            ("causal", None),
            ("causal & all", None),
            ("causal & window(5) | causal", None),
            ("causal & (window(5) | sink(1))", None),
            ("causal & window(5) & sink(1)", None),
            ("causal & window(5) - sink(1)", None),
            ("causal & (local(1) | partner(causal_shift))", None),
            ("causal & window(5) & table([[0], [1]])", None),
            ("causal & window(5) | sink_tokens(1)", None),
            ("causal & (window(5) | global(1))", None),
        ];
        for (text, expected) in cases {
            let sparsity = Sparsity::parse("test", &format!("block 8 {text}")).expect(text);
            let pattern = &sparsity.pattern;
            assert_eq!(pattern.lookback(sparsity.block), expected, "{text}");
            let Some(limit) = expected else { continue };
            let context = Context::new(8, 96, 0);
            let mut farthest = 0;
            for q in 0..64 {
                for k in 0..64 {
                    let seen = sees(pattern, &context, q, k);
                    if seen && k <= q {
                        farthest = farthest.max(q - k + 1);
                    }
                    for by in [8, 24] {
                        assert_eq!(sees(pattern, &context, q + by, k + by), seen, "{text}");
                    }
                }
            }
            assert_eq!(farthest, limit, "{text}");
        }
    }
}
