//! Pattern → Topology: which blocks exist, and which of them need a mask.
//!
//! In:  a pattern and a context with at least one key.
//! Out: columns strictly increase in each row; a block is in a row exactly when one of
//! its pairs is seen, and full exactly when all of them are.
//! Interval arithmetic on the bands; no T×T mask is ever made.

use butterfly_ir::band::{keys_of_query, merge};
use butterfly_ir::topology::queries;
use butterfly_ir::{Band, Class, Context, Leaf, Pattern, Row, RowBlock, Topology, rows};

/// Why a pattern has no usable topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyError {
    /// A query sees nothing.
    #[error("query {query} (block {block}) attends to no key, with {kv_len} keys at stage {stage}")]
    EmptyQuery {
        /// First such query.
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
        /// First such query.
        query: u32,
        /// The last key that it sees.
        key: u32,
    },
    /// A table names a block that does not exist, or has too few rows.
    #[error("table row {row}: {what}")]
    Table {
        /// The row.
        row: u32,
        /// What is wrong with it.
        what: String,
    },
}

/// Lowers a pattern to block rows.
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

/// The blocks in row `b`, by number only: what [`lower`] lists, without the classes.
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
    // Bands may cover a block together though none does for every query. Which end of
    // which band comes first changes only at the crossings below, so coverage can only
    // change there or next to it.
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

/// Checks one topology: no query without a key, and no later key.
///
/// # Errors
/// The first violation found, in row order; tables are judged by [`check_tables`].
pub fn check(topology: &Topology) -> Result<(), ClassifyError> {
    let context = &topology.context;
    for (b, row) in topology.rows.iter().enumerate() {
        let (q0, q1) = topology.queries(b as u32);
        let q = (q0 as i32, q1 as i32);
        for band in &row.bands {
            // The last query that lies before this band's last key, if any.
            let leaks = |query: i32| {
                band.of_query(query).0 < band.of_query(query).1
                    && band.of_query(query).1 > query + 1
            };
            if (band.end > 1 && band.hi > q.0 + 1)
                && let Some(query) = (q.0..=q.1).find(|query| leaks(*query))
            {
                return Err(ClassifyError::CausalLeak {
                    query: query as u32,
                    key: band.of_query(query).1 as u32 - 1,
                });
            }
        }
        if let Some(query) = first_empty(&row.bands, q) {
            return Err(ClassifyError::EmptyQuery {
                query,
                block: b as u32,
                kv_len: context.kv_len,
                stage: context.index,
            });
        }
    }
    Ok(())
}

/// First of the queries `q.0..=q.1` that sees nothing.
pub fn first_empty(bands: &[Band], q: (i32, i32)) -> Option<u32> {
    // Queries that a band serves are one range, since its limits are monotone in q.
    let served = bands.iter().filter(|band| !band.is_empty()).map(|band| {
        let first = if band.end >= butterfly_ir::band::UNBOUNDED {
            q.0
        } else {
            q.0.max(band.lo - band.end + 1)
        };
        let last = if band.first <= -butterfly_ir::band::UNBOUNDED {
            q.1
        } else {
            q.1.min(band.hi - band.first - 1)
        };
        (first, last + 1)
    });
    let served = merge(served.filter(|r| r.0 < r.1).collect());
    match served.first() {
        Some(range) if range.0 <= q.0 && range.1 > q.1 => None,
        Some(range) if range.0 <= q.0 => Some(range.1 as u32),
        _ => Some(q.0 as u32),
    }
}

/// Checks every `table` leaf against the number of blocks.
///
/// # Errors
/// [`ClassifyError::Table`] for a missing row or a block out of range.
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

/// The leaf to blame for `error`, by its position in [`Pattern::leaves`], and why.
///
/// For a query without a key the first leaf that offers it none, for a later key the
/// first leaf that shows it, for a table the table.
pub fn culprit(
    pattern: &Pattern,
    context: &Context,
    error: &ClassifyError,
) -> Option<(usize, &'static str)> {
    let leaves = pattern.leaves();
    let keys = |leaf: &Leaf, query: u32| {
        let context = Context {
            kv_len: context.kv_len.max(query + 1),
            ..*context
        };
        keys_of_query(
            &rows::row(
                &Pattern::from(leaf.clone()),
                &context,
                query / context.block,
            ),
            query as i32,
        )
    };
    match *error {
        ClassifyError::EmptyQuery { query, .. } => {
            let leaf = leaves
                .iter()
                .position(|leaf| keys(leaf, query).is_empty())?;
            Some((leaf, "admits no block"))
        }
        ClassifyError::CausalLeak { query, key } => {
            let sees = |leaf: &&Leaf| {
                keys(leaf, query)
                    .iter()
                    .any(|r| r.0 <= key as i32 && (key as i32) < r.1)
            };
            Some((leaves.iter().position(sees)?, "sees later keys"))
        }
        ClassifyError::Table { .. } => {
            let leaf = leaves
                .iter()
                .position(|leaf| matches!(leaf, Leaf::Table { .. }))?;
            Some((leaf, "does not fit the sequence"))
        }
    }
}
