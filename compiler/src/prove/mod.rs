//! What a stack of layers reaches.
//!
//! In:  a pattern and the stage index of each swapped layer, first layer first.
//! Out: for each depth the share of causal block pairs that information can cross, and
//! the bounds every layer keeps.
//!
//! Block `c` below a layer is joined to block `b` above it when row `b` reads `c`; the
//! residual stream joins each block to itself. Block `b` after `d` layers knows exactly
//! the blocks from which a path leads to it. Three ways to compose layers, all exact: by
//! distances (`shifts`), by bits (`bits`), and pair by pair (`strips`). The first two take
//! layers that have a form (`form`), at any length.

mod bits;
pub(crate) mod form;
mod shifts;
mod strips;

use crate::classify;
use crate::stretch::{self, EVERY, Stretch};
use butterfly_ir::plan::Proof;
use butterfly_ir::{Context, Pattern, rows};
use form::Form;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Most rows that are made, over all stages, where layers have no form.
const ROWS: u64 = 1 << 23;
/// Most words of 64 pairs that are joined there, over all layers.
const WORDS: u64 = 1 << 33;

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// The layers have no form, and the pairs of blocks are too many.
    #[error(
        "{tokens} tokens are too many to prove: the layers of this pattern have no form that holds for all rows, and going through all pairs of blocks would take too long; at most {longest} tokens can be proved with this block size, more with a larger `block`"
    )]
    TooLong {
        /// What was asked for.
        tokens: u32,
        /// The longest sequence that can be proved.
        longest: u32,
    },
}

/// Composes the layers whose stage indices are `indices` and proves what they reach.
///
/// # Errors
/// [`ProveError`], which says the longest sequence that can be proved.
pub fn lower(pattern: &Pattern, context: &Context, indices: &[u32]) -> Result<Proof, ProveError> {
    let count = pattern.stage_count(context.blocks()).max(1);
    let stages: BTreeSet<u32> = indices.iter().map(|index| index % count).collect();
    let stages: Vec<u32> = stages.into_iter().collect();
    let place = |index: &u32| stages.partition_point(|stage| *stage < index % count);
    let order: Vec<usize> = indices.iter().map(place).collect();
    let rows = context.rows();

    if rows > EVERY
        && let Some(proof) = by_form(pattern, context, &stages, &order)
    {
        return Ok(proof);
    }
    if !is_short(pattern, context, order.len(), stages.len()) {
        let tokens = context.kv_len;
        let mut blocks = rows.next_power_of_two() / 2;
        let context = |blocks: u32| {
            let kv_len = blocks * context.block;
            Context::new(context.block, kv_len, context.index)
        };
        while blocks > 1 && !is_short(pattern, &context(blocks), order.len(), stages.len()) {
            blocks /= 2;
        }
        return Err(ProveError::TooLong {
            tokens,
            longest: context(blocks).kv_len,
        });
    }
    Ok(by_pairs(pattern, context, &stages, &order))
}

fn at(context: &Context, stage: u32) -> Context {
    Context {
        index: stage,
        ..*context
    }
}

/// Pairs (b, c) with c <= b.
fn all_pairs(rows: u32) -> u64 {
    u64::from(rows) * (u64::from(rows) + 1) / 2
}

fn by_form(pattern: &Pattern, context: &Context, stages: &[u32], order: &[usize]) -> Option<Proof> {
    let rows = context.rows();
    let forms = stages.par_iter().map(|stage| {
        let context = at(context, *stage);
        let (form, stretches) = form::lower(pattern, &context)?;
        let mut bounds = Bounds::default();
        for stretch in stretches {
            bounds.add(pattern, &context, &stretch);
        }
        bounds.in_degree = form.max_in_degree(rows);
        Some((form, bounds))
    });
    let forms: Vec<(Form, Bounds)> = forms.collect::<Option<_>>()?;
    let (forms, bounds): (Vec<Form>, Vec<Bounds>) = forms.into_iter().unzip();
    let pairs = match forms.iter().all(|form| form.bits.is_empty()) {
        true => shifts::pairs(&forms, order, rows)?,
        false => bits::pairs(&forms, order, rows)?,
    };
    Some(proof(context, &pairs, &bounds, order))
}

fn by_pairs(pattern: &Pattern, context: &Context, stages: &[u32], order: &[usize]) -> Proof {
    let rows = context.rows();
    let made = stages
        .iter()
        .map(|stage| layer(pattern, &at(context, *stage)));
    let (layers, bounds): (Vec<strips::Layer>, Vec<Bounds>) = made.unzip();
    let backward = layers.iter().all(|layer| {
        let mut rows = layer.offsets.windows(2).enumerate();
        rows.all(|(b, row)| {
            layer.ranges[row[0]..row[1]]
                .iter()
                .all(|x| x.1 as usize <= b + 1)
        })
    });
    let pairs = strips::pairs(&layers, order, rows, backward);
    proof(context, &pairs, &bounds, order)
}

/// Whether going through all pairs takes a few seconds at most, as a few rows tell.
fn is_short(pattern: &Pattern, context: &Context, layers: usize, stages: usize) -> bool {
    let rows = u64::from(context.rows());
    if rows * stages as u64 > ROWS || stretch::one_by_one(pattern, context).is_err() {
        return false;
    }
    let samples = rows.min(64);
    let columns = (0..samples).map(|sample| {
        let b = ((sample + 1) * rows / samples - 1) as u32;
        let columns = classify::columns(&rows::row(pattern, context, b), context, b);
        columns.iter().map(|x| u64::from(x.1 - x.0)).sum::<u64>()
    });
    let edges = columns.sum::<u64>() * rows / samples;
    // Half of the words, since few rows read later blocks.
    let words = edges.saturating_mul(rows.div_ceil(128));
    words.saturating_mul(layers as u64) <= WORDS
}

/// One layer's columns and bounds, row by row.
fn layer(pattern: &Pattern, context: &Context) -> (strips::Layer, Bounds) {
    let rows = context.rows();
    let of = |b: u32| {
        let mut bounds = Bounds::default();
        let columns = bounds.add_row(pattern, context, b, 1);
        (columns, bounds)
    };
    let made: Vec<(Vec<(u32, u32)>, Bounds)> = (0..rows).into_par_iter().map(of).collect();
    let mut bounds = Bounds::default();
    let mut layer = strips::Layer {
        offsets: vec![0],
        ranges: Vec::new(),
    };
    // Rows that begin, and that end, to read each block.
    let mut changes = vec![0i64; rows as usize + 1];
    for (columns, of_row) in made {
        bounds.join(&of_row);
        for (start, stop) in &columns {
            changes[*start as usize] += 1;
            changes[*stop as usize] -= 1;
        }
        layer.ranges.extend(columns);
        layer.offsets.push(layer.ranges.len());
    }
    let degrees = changes.iter().scan(0, |degree, change| {
        *degree += change;
        Some(*degree)
    });
    bounds.in_degree = degrees.max().unwrap_or_default() as u32;
    (layer, bounds)
}

/// What a layer keeps.
#[derive(Debug, Default)]
struct Bounds {
    degree: u32,
    in_degree: u32,
    leaks: bool,
    empty_queries: u64,
}

impl Bounds {
    /// Every row of a stretch.
    fn add(&mut self, pattern: &Pattern, context: &Context, stretch: &Stretch) {
        for (end, b) in stretch.ends().enumerate() {
            // The degree has its maximum at one of the ends; what else there is holds for
            // each row alike.
            self.add_row(pattern, context, b, if end == 0 { stretch.rows } else { 0 });
        }
    }

    /// Row `b`, for `rows` rows like it; its columns.
    fn add_row(
        &mut self,
        pattern: &Pattern,
        context: &Context,
        b: u32,
        rows: u64,
    ) -> Vec<(u32, u32)> {
        let bands = rows::row(pattern, context, b);
        let columns = classify::columns(&bands, context, b);
        self.join(&Self {
            degree: columns.iter().map(|x| x.1 - x.0).sum(),
            in_degree: 0,
            leaks: classify::leak(&bands, context, b).is_some(),
            empty_queries: rows * classify::empty_queries(&bands, context, b),
        });
        columns
    }

    fn join(&mut self, other: &Self) {
        self.degree = self.degree.max(other.degree);
        self.in_degree = self.in_degree.max(other.in_degree);
        self.leaks |= other.leaks;
        self.empty_queries += other.empty_queries;
    }
}

fn proof(context: &Context, pairs: &[u64], bounds: &[Bounds], order: &[usize]) -> Proof {
    let all = all_pairs(context.rows());
    let full = pairs.iter().position(|reached| *reached == all);
    Proof {
        tokens: context.kv_len,
        coverage: pairs
            .iter()
            .map(|reached| *reached as f64 / all as f64)
            .collect(),
        full_at: full.map(|depth| depth + 1),
        max_degree: bounds.iter().map(|x| x.degree).max().unwrap_or_default(),
        max_in_degree: bounds.iter().map(|x| x.in_degree).max().unwrap_or_default(),
        causal: !bounds.iter().any(|x| x.leaks),
        empty_queries: order.iter().map(|stage| bounds[*stage].empty_queries).sum(),
    }
}

/// Goes through layers until all pairs are reached, or none of them adds any; the pairs
/// after each layer, or `None` as soon as `through` gives none.
///
/// `through` puts the layer of a stage on top: the pairs then reached, and whether what is
/// reached changed.
fn compose(
    order: &[usize],
    all: u64,
    mut through: impl FnMut(usize) -> Option<(u64, bool)>,
) -> Option<Vec<u64>> {
    let stages = order.iter().collect::<BTreeSet<_>>().len();
    let mut pairs = Vec::with_capacity(order.len());
    // Stages that add nothing to what is reached now.
    let mut idle = BTreeSet::new();
    for stage in order {
        let (reached, changed) = through(*stage)?;
        pairs.push(reached);
        if changed {
            idle.clear();
        } else {
            idle.insert(stage);
        }
        if reached == all || idle.len() == stages {
            pairs.resize(order.len(), reached);
            break;
        }
    }
    Some(pairs)
}

#[cfg(test)]
mod tests;
