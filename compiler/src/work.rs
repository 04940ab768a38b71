//! Pattern → the exact amount of work in one attention layer.
//!
//! In:  a pattern and a context. Out: counts over all rows, added up stretch by stretch.
//! The counts are exact and known before any kernel runs, so predictions need no sampling.

use crate::chosen::{self, Chosen};
use crate::classify;
use crate::prove::form;
use crate::stretch::{self, EVERY, Stretch, TooManyRows};
use butterfly_ir::band::keys_of_query;
use butterfly_ir::topology::queries;
use butterfly_ir::{Band, Context, Pattern, rows};
use serde::Serialize;

/// The exact work of one q head of one sequence; an upper bound where rows choose blocks by content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// (query, key) pairs of which the query sees the key.
    pub pairs: u64,
    /// (query, key) pairs with key <= query: the work of dense causal attention.
    pub causal_pairs: u64,
    /// Blocks in all rows, full and partial together.
    pub blocks: u64,
    /// Those of them that need no mask.
    pub full_blocks: u64,
    /// Most blocks in any row.
    pub max_degree: u32,
    /// Most rows that read the same block.
    pub max_in_degree: u32,
}

impl Work {
    /// Mean number of blocks per row, over `rows` rows.
    pub fn mean_degree(&self, rows: usize) -> f64 {
        self.blocks as f64 / rows.max(1) as f64
    }

    /// FLOP of QK^T and PV over the pairs that are seen; head sizes in elements.
    pub fn flop(&self, head_dim: u32, v_head_dim: u32) -> u64 {
        2 * self.pairs * u64::from(head_dim + v_head_dim)
    }
}

/// Counts the work of `pattern`. Of patterns that choose blocks by content, what is counted is the most
/// that it can be.
///
/// # Errors
/// [`TooManyRows`] if rows have to be counted one by one and are too many for that.
pub fn count(pattern: &Pattern, context: &Context) -> Result<Work, TooManyRows> {
    let kv_len = u64::from(context.kv_len);
    let mut work = Work {
        causal_pairs: kv_len * (kv_len + 1) / 2,
        max_in_degree: in_degree(pattern, context)?,
        ..Work::default()
    };
    for (rows, first, last) in counted(pattern, context)? {
        work.pairs += rows * (first.pairs + last.pairs) / 2;
        work.blocks += rows * (first.blocks + last.blocks) / 2;
        work.full_blocks += rows * (first.full_blocks + last.full_blocks) / 2;
        let most = first.blocks.max(last.blocks) as u32;
        work.max_degree = work.max_degree.max(most);
    }
    let chosen = chosen::count(pattern, context, 0)?;
    for Chosen {
        queries, blocks, ..
    } in &chosen
    {
        work.pairs += blocks * queries * u64::from(context.block);
        work.blocks += blocks;
        work.full_blocks += blocks;
    }
    if let Some(most) = chosen.iter().map(|chosen| chosen.most).max() {
        work.max_degree += most as u32;
        // All later rows may choose the same block.
        work.max_in_degree = context.rows();
    }
    Ok(work)
}

/// The mean work of `kv_heads` heads, each of which may see other keys; the degrees are the largest.
///
/// # Errors
/// As [`count`].
pub fn of_heads(pattern: &Pattern, context: &Context, kv_heads: u32) -> Result<Work, TooManyRows> {
    let mut mean = Work::default();
    for (pattern, heads) in pattern.head_classes(kv_heads) {
        let work = count(&pattern, context)?;
        let times = heads.len() as u64;
        mean.pairs += times * work.pairs;
        mean.blocks += times * work.blocks;
        mean.full_blocks += times * work.full_blocks;
        mean.causal_pairs = work.causal_pairs;
        mean.max_degree = mean.max_degree.max(work.max_degree);
        mean.max_in_degree = mean.max_in_degree.max(work.max_in_degree);
    }
    let kv_heads = u64::from(kv_heads.max(1));
    for sum in [&mut mean.pairs, &mut mean.blocks, &mut mean.full_blocks] {
        *sum /= kv_heads;
    }
    Ok(mean)
}

/// Mean number of blocks per row of `kv_heads` heads, over the rows from number `from` to the last.
///
/// # Errors
/// As [`count`], where `from` is 0.
pub fn mean_degree(
    pattern: &Pattern,
    context: &Context,
    kv_heads: u32,
    from: u32,
) -> Result<f64, TooManyRows> {
    let rows = context.rows() - from;
    if from == 0 {
        return Ok(of_heads(pattern, context, kv_heads)?.mean_degree(rows as usize));
    }
    let mut blocks = 0;
    for (pattern, heads) in pattern.head_classes(kv_heads) {
        let row = |b: u32| RowWork::of(&rows::row(&pattern, context, b), context, b).blocks;
        let mut of_head = (from..context.rows()).map(row).sum::<u64>();
        let chosen = chosen::count(&pattern, context, from * context.block)?;
        of_head += chosen.iter().map(|chosen| chosen.blocks).sum::<u64>();
        blocks += heads.len() as u64 * of_head;
    }
    Ok(blocks as f64 / f64::from(rows) / f64::from(kv_heads.max(1)))
}

/// Pairs of a scoring query and a mean of keys, for one q head, by which the rows of the queries from
/// position `from` on choose blocks.
///
/// # Errors
/// As [`count`].
pub fn score_products(pattern: &Pattern, context: &Context, from: u32) -> Result<u64, TooManyRows> {
    let every = pattern
        .routing()
        .map_or(1, |routing| u64::from(routing.every));
    let chosen = chosen::count(pattern, context, from)?;
    let pairs = chosen
        .iter()
        .map(|chosen| chosen.means * chosen.queries.div_ceil(every));
    Ok(pairs.sum())
}

/// Groups of rows: the number of rows, and the work of the first and the last of them. The work
/// of a whole group is its number of rows times the mean of these two.
fn counted(
    pattern: &Pattern,
    context: &Context,
) -> Result<Vec<(u64, RowWork, RowWork)>, TooManyRows> {
    let row = |b: u32| RowWork::of(&rows::row(pattern, context, b), context, b);
    let stretches = stretch::lower(pattern, context)?;
    let ends = |stretch: &Stretch| (stretch.rows, row(stretch.first), row(stretch.last));
    let counted: Vec<_> = stretches.iter().map(ends).collect();
    // Counts are affine in the row number. So the mean over a stretch is the mean of its two
    // ends, provided that the stretch has no holes or that both ends are equal.
    let mut pairs = stretches.iter().zip(&counted);
    if pairs.all(|(stretch, (_, first, last))| stretch.is_whole() || first == last) {
        return Ok(counted);
    }
    stretch::one_by_one(pattern, context)?;
    let rows = context.rows();
    // Callers take half of the sum of both ends: twice (row + nothing) / 2 is the row itself.
    let alone = (0..rows).map(row).map(|row| (2, row, RowWork::default()));
    Ok(alone.collect())
}

/// Most rows that read the same block.
fn in_degree(pattern: &Pattern, context: &Context) -> Result<u32, TooManyRows> {
    let rows = context.rows();
    if rows > EVERY
        && let Some((form, _)) = form::lower(pattern, context)
    {
        return Ok(form.max_in_degree(rows));
    }
    stretch::one_by_one(pattern, context)?;
    let mut changes = vec![0i64; rows as usize + 1];
    for b in 0..rows {
        for (start, stop) in classify::columns(&rows::row(pattern, context, b), context, b) {
            changes[start as usize] += 1;
            changes[stop as usize] -= 1;
        }
    }
    let degrees = changes.iter().scan(0, |degree, change| {
        *degree += change;
        Some(*degree)
    });
    Ok(degrees.max().unwrap_or_default() as u32)
}

/// The work of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RowWork {
    pairs: u64,
    blocks: u64,
    full_blocks: u64,
}

impl RowWork {
    fn of(bands: &[Band], context: &Context, b: u32) -> Self {
        let (blocks, full_blocks) = classify::counts(bands, context, b);
        let (q0, q1) = queries(context, b);
        Self {
            pairs: pairs(bands, (q0 as i32, q1 as i32)),
            blocks,
            full_blocks,
        }
    }
}

/// Most bands that are counted by inclusion and exclusion, whose cost doubles with each band.
const FEW: usize = 8;

/// The number of (query, key) pairs that the bands contain for the queries `q.0..=q.1`; pairs in
/// several bands count once.
pub(crate) fn pairs(bands: &[Band], q: (i32, i32)) -> u64 {
    let bands: Vec<Band> = bands
        .iter()
        .copied()
        .filter(|band| area(band, q) > 0)
        .collect();
    if bands.len() > FEW {
        let of = |q: i32| {
            keys_of_query(&bands, q)
                .iter()
                .map(|x| (x.1 - x.0) as u64)
                .sum::<u64>()
        };
        return (q.0..=q.1).map(of).sum();
    }
    let Some((first, rest)) = bands.split_first() else {
        return 0;
    };
    let shared: Vec<Band> = rest.iter().map(|band| band.intersect(first)).collect();
    area(first, q) + pairs(rest, q) - pairs(&shared, q)
}

/// The number of (query, key) pairs in one band for the queries `q.0..=q.1`.
fn area(band: &Band, q: (i32, i32)) -> u64 {
    let [lo, hi, first, end] = [band.lo, band.hi, band.first, band.end].map(i64::from);
    let (q0, q1) = (i64::from(q.0), i64::from(q.1) + 1);
    // The queries at which the formula for the number of keys changes: where a limit switches
    // between fixed and moving with the query, and where the band starts or ceases to show keys.
    let mut turns = [q0, q1, hi - end, lo - first, lo - end, hi - first].map(|x| x.clamp(q0, q1));
    turns.sort_unstable();
    let keys = |q: i64| (hi.min(q + end) - lo.max(q + first)).max(0);
    let between = turns.windows(2).map(|turn| {
        let (from, to) = (turn[0], turn[1]);
        // The number of keys is affine over from..to.
        let (n, at, last) = (to - from, keys(from), keys((to - 1).max(from)));
        n * (at + last) / 2
    });
    if band.is_empty() {
        0
    } else {
        between.sum::<i64>() as u64
    }
}
