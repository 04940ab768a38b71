//! The blocks that rows choose by content, counted: how many a row chooses is known before any kernel
//! runs, which ones is not.
//!
//! In:  the pattern of one head and a context. Out: for groups of equal rows, the number of blocks that
//! they choose. A chosen block may have been seen in part before, so counts that add both are upper
//! bounds.

use crate::stretch::{self, TooManyRows};
use butterfly_ir::rows::{self, chosen};
use butterfly_ir::topology::queries;
use butterfly_ir::{Context, Pattern};

/// Rows with the same number of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Queries of the launch in each row.
    pub(crate) queries: u64,
    /// Blocks that all rows choose, together.
    pub(crate) blocks: u64,
    /// Means of keys that each scoring query of a row is multiplied by, over all rows; 0 for rows that
    /// choose without a score, since they take all there is.
    pub(crate) means: u64,
    /// The most blocks that a row chooses.
    pub(crate) most: u64,
}

/// The chosen blocks of the rows of the queries from position `from` on; empty if the pattern has no
/// choice to make.
///
/// # Errors
/// [`TooManyRows`] if rows would have to be counted one by one and are too many for that.
pub(crate) fn count(
    pattern: &Pattern,
    context: &Context,
    from: u32,
) -> Result<Vec<Chosen>, TooManyRows> {
    let Some(routing) = pattern.routing() else {
        return Ok(Vec::new());
    };
    let most = u64::from(routing.blocks);
    let per_block = u64::from(context.block / routing.pool);
    let candidates = |b: u32| {
        let (q0, q1) = queries(context, b);
        let fixed = rows::row(pattern, context, b);
        let of = (q0.max(from), q1);
        chosen::candidates(&fixed, of, context.block, b).len() as u64
    };
    let group = |first: u32, last: u32, rows: u64| {
        let (q0, q1) = queries(context, first);
        let ends = [candidates(first), candidates(last)];
        Chosen {
            queries: u64::from(q1 + 1 - q0.max(from)),
            blocks: sum_of_least(ends, rows, most),
            means: match ends.into_iter().max() > Some(most) {
                true => rows * (u64::from(first) + u64::from(last)) / 2 * per_block,
                false => 0,
            },
            most: ends
                .map(|count| count.min(most))
                .into_iter()
                .max()
                .unwrap_or_default(),
        }
    };
    if from > 0 {
        let rows = from / context.block..context.rows();
        return Ok(rows.map(|b| group(b, b, 1)).collect());
    }
    let stretches = stretch::lower(pattern, context)?;
    let of = stretches
        .iter()
        .map(|stretch| group(stretch.first, stretch.last, stretch.rows));
    Ok(of.collect())
}

/// The sum of `min(most, x)` over `count` numbers x that go from the first to the second of `ends` in
/// equal steps.
fn sum_of_least(ends: [u64; 2], count: u64, most: u64) -> u64 {
    let [low, high] = [ends[0].min(ends[1]), ends[0].max(ends[1])];
    if low >= most || count <= 1 {
        return count * low.min(most);
    }
    let step = (high - low) as f64 / (count - 1) as f64;
    if step == 0.0 {
        return count * low;
    }
    // Few numbers are below `most`, which is small.
    let below = (((most - low) as f64 / step).ceil() as u64).min(count);
    let first: u64 = (0..below).map(|i| low + (i as f64 * step) as u64).sum();
    first + (count - below) * most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{schedule, work};
    use butterfly_ir::{Geometry, Role, Sparsity};

    fn pattern(text: &str) -> Sparsity {
        Sparsity::parse("test", text).expect("a pattern")
    }

    /// Counted row by row and by stretches.
    #[test]
    fn counts_are_those_of_the_rows() {
        for text in [
            "block 16 causal & (local(2) | sink(1) | routed(4))",
            "block 16 causal & (window(40) | sink(1) | routed(3, pool=8, every=4) | tail(70))",
            "block 16 causal & (window(1) | routed(9))",
        ] {
            let sparsity = pattern(text);
            for kv_len in [1, 16, 77, 16 * 300, 16 * 1500 + 5] {
                let context = Context::new(16, kv_len, 0);
                let of = |b: u32| {
                    let fixed = rows::row(&sparsity.pattern, &context, b);
                    let most = sparsity
                        .pattern
                        .routing()
                        .map_or(0, |routing| routing.blocks);
                    let could = chosen::candidates(&fixed, queries(&context, b), 16, b);
                    (could.len() as u64).min(most.into())
                };
                let want: u64 = (0..context.rows()).map(of).sum();
                let got = count(&sparsity.pattern, &context, 0).expect("few rows");
                let got: u64 = got.iter().map(|chosen| chosen.blocks).sum();
                assert_eq!(got, want, "{text}, {kv_len} tokens");
            }
        }
    }

    /// Chosen blocks count as whole blocks, in work and in tiles, for prefill and for decode.
    #[test]
    fn chosen_blocks_are_work() {
        let with = pattern("block 64 causal & (local(1) | sink(1) | routed(4))");
        let without = pattern("block 64 causal & (local(1) | sink(1))");
        let context = Context::new(64, 64 * 100, 0);
        let work =
            |sparsity: &Sparsity| work::count(&sparsity.pattern, &context).expect("few rows");
        let (a, b) = (work(&with), work(&without));
        // Rows 3 to 6 choose 1 to 4 blocks, all later ones 4.
        let chosen = 1 + 2 + 3 + 4 * (100 - 6);
        assert_eq!(a.blocks - b.blocks, chosen);
        assert_eq!(a.full_blocks - b.full_blocks, chosen);
        assert_eq!(a.pairs - b.pairs, chosen * 64 * 64);
        assert_eq!(a.max_degree, b.max_degree + 4);
        assert_eq!(a.max_in_degree, 100);
        let geometry = Geometry::new([128, 1, 1], [64, 64], 0);
        for (role, from, tiles) in [(Role::Prefill, 0, chosen), (Role::Decode, 64 * 100 - 1, 4)] {
            let lower = |sparsity: &Sparsity| {
                schedule::lower(&sparsity.pattern, &context, role, &geometry, from)
                    .expect("few rows")
            };
            let (a, b) = (lower(&with), lower(&without));
            assert_eq!(a.tiles - b.tiles, tiles, "{role:?}");
            assert_eq!(a.masked_tiles, b.masked_tiles);
        }
    }
}
