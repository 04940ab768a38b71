//! Pattern → Topology: which blocks exist, and which of them need a mask.
//!
//! In:  a pattern and a context with at least one key.
//! Out: rows of blocks. Columns strictly increase in each row; a block is in a row exactly when at
//! least one of its (query, key) pairs is seen, and it is full exactly when all of them are.
//!
//! The pass does interval arithmetic on bands; it never builds a T×T mask.

use crate::stretch::{self, TooManyRows};
use butterfly_ir::band::{UNBOUNDED, keys_of_query, merge};
use butterfly_ir::topology::queries;
use butterfly_ir::{Band, Case, Class, Context, Leaf, Pattern, Row, RowBlock, Topology, rows};

/// Why a pattern has no usable topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyError {
    /// A query sees no key.
    #[error("query {query} (block {block}) attends to no key, with {kv_len} keys at stage {stage}")]
    EmptyQuery {
        /// The first such query.
        query: u32,
        /// Its block.
        block: u32,
        /// Number of keys.
        kv_len: u32,
        /// Stage at which it happens.
        stage: u32,
    },
    /// A query sees a later key.
    #[error("query {query} attends to the later key {key}; combine the pattern with `causal &`")]
    CausalLeak {
        /// The first such query.
        query: u32,
        /// A later key that it sees: the last one of a band.
        key: u32,
    },
    /// The rows are too many to check.
    #[error(transparent)]
    TooManyRows(#[from] TooManyRows),
    /// A table names a block that does not exist, or has too few rows.
    #[error("table row {row}: {what}")]
    Table {
        /// The row.
        row: u32,
        /// What is wrong with it.
        what: String,
    },
}

/// Lowers a pattern to block rows, each with the bands that it came from.
///
/// # Source
/// Full/partial split after FlexAttention, arXiv:2412.05496, section 3.
pub fn lower(pattern: &Pattern, context: &Context) -> Topology {
    let rows = (0..context.rows()).map(|b| {
        let bands = rows::row(pattern, context, b);
        Row {
            blocks: blocks(&bands, context, b),
            bands,
        }
    });
    Topology {
        context: *context,
        rows: rows.collect(),
    }
}

/// The blocks in row `b`, as half-open ranges of block numbers: those that [`lower`] lists,
/// without their classes.
pub fn columns(bands: &[Band], context: &Context, b: u32) -> Vec<(u32, u32)> {
    let (q0, q1) = queries(context, b);
    let block = context.block as i32;
    let ranges = bands
        .iter()
        .map(|band| band.seen_by_any(q0 as i32, q1 as i32))
        .filter(|(start, stop)| start < stop);
    let ranges = ranges
        .map(|(start, stop)| (start / block, (stop - 1) / block + 1))
        .collect();
    merge(ranges)
        .into_iter()
        .map(|(start, stop)| (start as u32, stop as u32))
        .collect()
}

fn blocks(bands: &[Band], context: &Context, b: u32) -> Vec<RowBlock> {
    let columns = columns(bands, context, b);
    let class = |c: u32| RowBlock {
        block: c,
        class: classify(bands, context, b, c),
    };
    columns
        .into_iter()
        .flat_map(|(start, stop)| start..stop)
        .map(class)
        .collect()
}

/// How many blocks row `b` has, and how many of them need no mask.
pub(crate) fn counts(bands: &[Band], context: &Context, b: u32) -> (u64, u64) {
    let (q0, q1) = queries(context, b);
    let all = bands
        .iter()
        .map(|band| band.seen_by_all(q0 as i32, q1 as i32));
    let all = merge(all.filter(|range| range.0 < range.1).collect());
    let block = context.block as i32;
    // Blocks that lie inside one range of keys that all queries see; the last block may be short.
    let whole = all.iter().map(|(start, stop)| {
        let last = match *stop as u32 == context.kv_len {
            true => context.rows(),
            false => (stop / block) as u32,
        };
        (((start - 1).div_euclid(block) + 1) as u32, last)
    });
    let whole: Vec<(u32, u32)> = whole.filter(|range| range.0 < range.1).collect();
    let (mut blocks, mut full) = (0, 0);
    for (start, stop) in columns(bands, context, b) {
        blocks += u64::from(stop - start);
        let mut c = start;
        while c < stop {
            match whole.iter().find(|range| range.0 <= c && c < range.1) {
                Some(range) => {
                    let end = range.1.min(stop);
                    full += u64::from(end - c);
                    c = end;
                }
                None => {
                    full += u64::from(classify(bands, context, b, c) == Class::Full);
                    c += 1;
                }
            }
        }
    }
    (blocks, full)
}

fn classify(bands: &[Band], context: &Context, b: u32, c: u32) -> Class {
    let (q0, q1) = queries(context, b);
    let (q0, q1) = (q0 as i32, q1 as i32);
    let (k0, k1) = queries(context, c);
    let keys = (k0 as i32, k1 as i32 + 1);
    let covers = |ranges: &[(i32, i32)]| ranges.iter().any(|r| r.0 <= keys.0 && keys.1 <= r.1);
    let all = bands
        .iter()
        .map(|band| band.seen_by_all(q0, q1))
        .filter(|r| r.0 < r.1);
    if covers(&merge(all.collect())) {
        return Class::Full;
    }
    // Several bands may cover a block together, although none covers it for every query. The
    // order of the bands' ends changes only at the queries below ("crossings"), so it is enough
    // to test coverage there and at their neighbours.
    let limits: Vec<i32> = bands
        .iter()
        .flat_map(|x| [x.lo, x.hi])
        .chain([keys.0, keys.1])
        .collect();
    let offsets = bands.iter().flat_map(|x| [x.first, x.end]);
    let crossings = offsets.flat_map(|offset| limits.iter().map(move |limit| limit - offset));
    let near = crossings
        .flat_map(|q| [q - 1, q, q + 1])
        .filter(|q| (q0..=q1).contains(q));
    let full = near
        .chain([q0, q1])
        .all(|q| covers(&keys_of_query(bands, q)));
    if full { Class::Full } else { Class::Partial }
}

/// Checks that every query sees at least one key and none sees a later key.
///
/// `table` leaves must fit the context: see [`check_tables`].
///
/// # Errors
/// The first violation, by order of rows, or [`ClassifyError::TooManyRows`].
pub fn check(pattern: &Pattern, context: &Context) -> Result<(), ClassifyError> {
    for stretch in stretch::lower(pattern, context)? {
        // A violation occurs in all rows of a stretch or in none.
        let b = stretch.first;
        let bands = rows::row(pattern, context, b);
        if let Some((query, key)) = leak(&bands, context, b) {
            return Err(ClassifyError::CausalLeak { query, key });
        }
        let (q0, q1) = queries(context, b);
        if let Some(query) = first_empty(&bands, (q0 as i32, q1 as i32)) {
            return Err(ClassifyError::EmptyQuery {
                query,
                block: b,
                kv_len: context.kv_len,
                stage: context.index,
            });
        }
    }
    Ok(())
}

/// The first query of row `b` that sees a later key, and such a key: the last one of a band.
pub(crate) fn leak(bands: &[Band], context: &Context, b: u32) -> Option<(u32, u32)> {
    let (q0, q1) = queries(context, b);
    let (q0, q1) = (q0 as i32, q1 as i32);
    let first = |band: &Band| {
        // The part of the band that lies after the query.
        let later = Band {
            first: band.first.max(1),
            ..*band
        };
        let (start, stop) = later.seen_by_any(q0, q1);
        let query = q0.max(later.lo - later.end + 1);
        (start < stop).then_some((query, band.of_query(query).1 - 1))
    };
    let (query, key) = bands.iter().filter_map(first).min()?;
    Some((query as u32, key as u32))
}

/// The number of queries of row `b` that see no key.
pub(crate) fn empty_queries(bands: &[Band], context: &Context, b: u32) -> u64 {
    let (q0, q1) = queries(context, b);
    let served = served(bands, (q0 as i32, q1 as i32));
    let served = served.iter().map(|x| (x.1 - x.0) as u64).sum::<u64>();
    u64::from(q1 - q0 + 1) - served
}

/// The first of the queries `q.0..=q.1` that sees no key, if any.
pub fn first_empty(bands: &[Band], q: (i32, i32)) -> Option<u32> {
    let first = match served(bands, q).first() {
        Some(range) if range.0 <= q.0 => range.1,
        Some(_) | None => q.0,
    };
    (first <= q.1).then_some(first as u32)
}

/// Those of the queries `q.0..=q.1` that see at least one key, as half-open ranges.
fn served(bands: &[Band], q: (i32, i32)) -> Vec<(i32, i32)> {
    // The queries that see a key of one band form a single range: its limits are monotone in q.
    let served = bands.iter().filter(|band| !band.is_empty()).map(|band| {
        let first = if band.end >= UNBOUNDED {
            q.0
        } else {
            q.0.max(band.lo - band.end + 1)
        };
        let last = if band.first <= -UNBOUNDED {
            q.1
        } else {
            q.1.min(band.hi - band.first - 1)
        };
        (first, last + 1)
    });
    merge(served.filter(|r| r.0 < r.1).collect())
}

/// Checks that every `table` leaf has a row for each query block and names only existing blocks.
///
/// # Errors
/// [`ClassifyError::Table`] for the first missing row or block out of range.
pub fn check_tables(pattern: &Pattern, context: &Context) -> Result<(), ClassifyError> {
    let blocks = context.rows();
    for leaf in pattern.leaves() {
        let Leaf::Table { rows } = leaf else { continue };
        if (rows.len() as u32) < blocks {
            let what = format!("missing: {} rows for {blocks} query blocks", rows.len());
            return Err(ClassifyError::Table {
                row: rows.len() as u32,
                what,
            });
        }
        for (b, row) in rows.iter().enumerate().take(blocks as usize) {
            if let Some(c) = row.iter().find(|c| **c >= blocks) {
                let what = format!("names block {c}, but there are {blocks} blocks");
                return Err(ClassifyError::Table {
                    row: b as u32,
                    what,
                });
            }
        }
    }
    Ok(())
}

/// The leaf that causes `error`, by its index in [`Pattern::leaves`], and the reason in words.
///
/// For a query without keys, this is the leaf that shows it none or that removes the last one;
/// for a later key, the first leaf that shows it; for a table, the first table; for too many
/// rows, the first leaf that fails the same way by itself.
pub fn culprit(
    pattern: &Pattern,
    context: &Context,
    error: &ClassifyError,
) -> Option<(usize, &'static str)> {
    match *error {
        ClassifyError::EmptyQuery { query, .. } => Some(emptied(pattern, context, query)),
        ClassifyError::CausalLeak { query, key } => {
            let sees = |leaf: &&Leaf| {
                let pattern = Pattern::from((*leaf).clone());
                let keys = keys(&pattern, context, query);
                keys.iter().any(|r| r.0 <= key as i32 && (key as i32) < r.1)
            };
            Some((pattern.leaves().iter().position(sees)?, "sees later keys"))
        }
        ClassifyError::Table { .. } => {
            let leaves = pattern.leaves();
            let leaf = leaves
                .iter()
                .position(|leaf| matches!(leaf, Leaf::Table { .. }))?;
            Some((leaf, "does not fit the sequence"))
        }
        ClassifyError::TooManyRows(_) => {
            let leaves = pattern.leaves();
            let leaf = leaves.iter().position(|leaf| {
                let pattern = Pattern::from((*leaf).clone());
                stretch::lower(&pattern, context).is_err()
            })?;
            Some((leaf, "differs from row to row"))
        }
    }
}

/// The keys that `query` sees through `pattern`, as half-open ranges.
fn keys(pattern: &Pattern, context: &Context, query: u32) -> Vec<(i32, i32)> {
    let context = Context {
        kv_len: context.kv_len.max(query + 1),
        ..*context
    };
    let bands = rows::row(pattern, &context, query / context.block);
    keys_of_query(&bands, query as i32)
}

/// The leaf because of which `query` sees no key through `pattern`, and the reason in words.
fn emptied(pattern: &Pattern, context: &Context, query: u32) -> (usize, &'static str) {
    let sees_none = |side: &Pattern| keys(side, context, query).is_empty();
    let right = |a: &Pattern, (leaf, why)| (a.leaves().len() + leaf, why);
    let case = |cases: &[Case], index: u32| {
        let Some(at) = cases.iter().position(|case| case.of.contains(index)) else {
            return (0, "is in no case for this head or layer");
        };
        let before = cases[..at].iter().map(|case| case.pattern.leaves().len());
        let (leaf, why) = emptied(&cases[at].pattern, context, query);
        (before.sum::<usize>() + leaf, why)
    };
    match pattern {
        Pattern::PerHead(cases) => case(cases, context.kv_head),
        Pattern::PerLayer(cases) => case(cases, context.layer),
        Pattern::Leaf(_) => (0, "admits no block"),
        Pattern::Or(a, _) => emptied(a, context, query),
        Pattern::And(a, b) => match (sees_none(a), sees_none(b)) {
            (true, _) => emptied(a, context, query),
            (false, true) => right(a, emptied(b, context, query)),
            (false, false) => right(a, (0, "has no key in common with what stands before")),
        },
        Pattern::Minus(a, _) if sees_none(a) => emptied(a, context, query),
        Pattern::Minus(a, b) => {
            let taken = keys(a, context, query);
            let takes = |leaf: &&Leaf| {
                let keys = keys(&Pattern::from((*leaf).clone()), context, query);
                keys.iter()
                    .any(|x| taken.iter().any(|y| x.0 < y.1 && y.0 < x.1))
            };
            let leaf = b.leaves().iter().position(takes).unwrap_or_default();
            right(a, (leaf, "takes the last key away"))
        }
    }
}
