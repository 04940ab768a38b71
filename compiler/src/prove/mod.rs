//! Proves which blocks a stack of layers reaches.
//!
//! In:  the pattern and the stage index of each swapped layer, first layer first.
//! Out: after each layer, the share of causal block pairs (b, c), c <= b, in which block `b`
//! *reaches* block `c`, that is, can hold information from it; and bounds for all layers.
//!
//! Layers form a layered graph: block `b` above a layer is joined to block `c` below it if row `b`
//! reads `c`, and the residual stream joins each block to itself. After `d` layers, block `b`
//! reaches exactly the blocks to which a path of `d` steps leads down from it. There are three ways
//! to compose layers, all exact: by distances (`shifts`), by bits of block numbers (`bits`), and
//! pair by pair (`strips`). The first two need layers with a form (`form`) and work at any length.

mod bits;
pub(crate) mod form;
mod shifts;
mod strips;

use crate::classify;
use crate::stretch::{self, EVERY, Stretch};
use butterfly_ir::plan::Proof;
use butterfly_ir::{Context, Leaf, Pattern, rows};
use form::Form;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Most rows that are computed, over all stages, where layers have no form.
const ROWS: u64 = 1 << 23;
/// Most 64-bit words, of 64 pairs each, that are combined there, over all layers.
const WORDS: u64 = 1 << 33;

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// The layers have no form, and there are too many pairs of blocks to go through.
    #[error(
        "{tokens} tokens are too many to prove: the layers of this pattern have no form that holds for all rows, and going through all pairs of blocks would take too long; at most {longest} tokens can be proved with this block size, more with a larger `block`"
    )]
    TooLong {
        /// The requested length.
        tokens: u32,
        /// The longest length, among powers of two of blocks, that can be proved.
        longest: u32,
    },
}

/// Composes the layers with the stage indices `indices`, first layer first, and proves which
/// blocks they reach. All have the pattern `pattern`, in which nothing depends on head or layer.
///
/// # Errors
/// [`ProveError::TooLong`], which names a shorter length that can be proved.
pub fn lower(pattern: &Pattern, context: &Context, indices: &[u32]) -> Result<Proof, ProveError> {
    let layers: Vec<_> = indices.iter().map(|index| (pattern, *index)).collect();
    compose_all(&layers, context)
}

/// Composes layers of `kv_heads` heads, first layer first, each given by its pattern, without
/// `per_layer`, and its index.
///
/// Where rows choose blocks by content, what is reached holds for any choice, and a second list says what
/// the best choice could reach. A block reaches what it reaches through any head of a layer. Degrees are the largest of any head;
/// queries that see no key are counted for each head that differs from those before it.
///
/// # Errors
/// As [`lower`].
pub fn stack(
    layers: &[(Pattern, u32)],
    context: &Context,
    kv_heads: u32,
) -> Result<Proof, ProveError> {
    let classes = layers
        .iter()
        .map(|(pattern, _)| pattern.head_classes(kv_heads));
    let classes: Vec<Vec<Pattern>> = classes
        .map(|classes| classes.into_iter().map(|(pattern, _)| pattern).collect())
        .collect();
    let any = |of: &Vec<Pattern>| {
        of.iter()
            .cloned()
            .reduce(|a, b| a | b)
            .unwrap_or(Leaf::None.into())
    };
    let joined: Vec<Pattern> = classes.iter().map(any).collect();
    let of_layers = joined.iter().zip(layers);
    let of_layers: Vec<_> = of_layers
        .map(|(pattern, (_, index))| (pattern, *index))
        .collect();
    let mut proof = compose_all(&of_layers, context)?;
    if classes.iter().any(|classes| classes.len() > 1) {
        by_heads(&mut proof, &classes, layers, context)?;
    }
    let chosen = layers.iter().filter_map(|(pattern, _)| pattern.routing());
    if let Some(most) = chosen.map(|routing| routing.blocks).max() {
        let anywhere = layers.iter().zip(&joined).map(|((_, index), joined)| {
            let anywhere = match joined.routing() {
                Some(_) => joined.routed_anywhere(),
                None => joined.clone(),
            };
            (anywhere, *index)
        });
        let anywhere: Vec<_> = anywhere.collect();
        let of_layers: Vec<_> = anywhere
            .iter()
            .map(|(pattern, index)| (pattern, *index))
            .collect();
        proof.coverage_at_most = Some(compose_all(&of_layers, context)?.coverage);
        // Any row may choose a block, and chooses no more than there are.
        proof.max_degree = (proof.max_degree + most).min(context.rows());
        proof.max_in_degree = context.rows();
    }
    Ok(proof)
}

/// The degrees and empty queries of layers whose heads differ.
fn by_heads(
    proof: &mut Proof,
    classes: &[Vec<Pattern>],
    layers: &[(Pattern, u32)],
    context: &Context,
) -> Result<(), ProveError> {
    // The n-th kinds of heads of all layers, as a stack of their own: its reach does not matter.
    let most = classes.iter().map(Vec::len).max().unwrap_or_default();
    let nth = |n: usize| {
        let of = classes.iter().zip(layers);
        let of = of.filter_map(|(classes, (_, index))| Some((classes.get(n)?, *index)));
        compose_all(&of.collect::<Vec<_>>(), context)
    };
    let each = (0..most).map(nth).collect::<Result<Vec<_>, _>>()?;
    let largest = |of: fn(&Proof) -> u32| each.iter().map(of).max().unwrap_or_default();
    proof.max_degree = largest(|proof| proof.max_degree);
    proof.max_in_degree = largest(|proof| proof.max_in_degree);
    proof.empty_queries = each.iter().map(|proof| proof.empty_queries).sum();
    Ok(())
}

/// A pattern at one of its stages, for which nothing but the stage is left open.
type Kind<'a> = (&'a Pattern, u32);

fn compose_all(layers: &[Kind<'_>], context: &Context) -> Result<Proof, ProveError> {
    let stage = |(pattern, index): Kind<'_>| index % pattern.stage_count(context.blocks()).max(1);
    let mut kinds: Vec<Kind<'_>> = Vec::new();
    let mut order = Vec::with_capacity(layers.len());
    for layer in layers {
        let kind = (layer.0, stage(*layer));
        let at = kinds.iter().position(|other| *other == kind);
        order.push(at.unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        }));
    }
    let rows = context.rows();
    if rows > EVERY
        && let Some(proof) = by_form(context, &kinds, &order)
    {
        return Ok(proof);
    }
    if !is_short(context, &kinds, order.len()) {
        let tokens = context.kv_len;
        let mut blocks = rows.next_power_of_two() / 2;
        let context = |blocks: u32| {
            let kv_len = blocks * context.block;
            Context::new(context.block, kv_len, context.index)
        };
        while blocks > 1 && !is_short(&context(blocks), &kinds, order.len()) {
            blocks /= 2;
        }
        return Err(ProveError::TooLong {
            tokens,
            longest: context(blocks).kv_len,
        });
    }
    Ok(by_pairs(context, &kinds, &order))
}

fn at(context: &Context, stage: u32) -> Context {
    Context {
        index: stage,
        ..*context
    }
}

/// The number of pairs (b, c) with c <= b.
fn all_pairs(rows: u32) -> u64 {
    u64::from(rows) * (u64::from(rows) + 1) / 2
}

fn by_form(context: &Context, kinds: &[Kind<'_>], order: &[usize]) -> Option<Proof> {
    let rows = context.rows();
    let forms = kinds.par_iter().map(|(pattern, stage)| {
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

fn by_pairs(context: &Context, kinds: &[Kind<'_>], order: &[usize]) -> Proof {
    let rows = context.rows();
    let made = kinds
        .iter()
        .map(|(pattern, stage)| layer(pattern, &at(context, *stage)));
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

/// Whether going through all pairs takes at most a few seconds, estimated from a few rows.
fn is_short(context: &Context, kinds: &[Kind<'_>], layers: usize) -> bool {
    let rows = u64::from(context.rows());
    let few = |(pattern, _): &Kind<'_>| stretch::one_by_one(pattern, context).is_ok();
    if rows * kinds.len() as u64 > ROWS || !kinds.iter().all(few) {
        return false;
    }
    let samples = rows.min(64);
    let columns = |kind: &Kind<'_>, sample: u64| {
        let (b, context) = (
            ((sample + 1) * rows / samples - 1) as u32,
            at(context, kind.1),
        );
        let columns = classify::columns(&rows::row(kind.0, &context, b), &context, b);
        columns.iter().map(|x| u64::from(x.1 - x.0)).sum::<u64>()
    };
    let edges = |kind| {
        (0..samples)
            .map(|sample| columns(kind, sample))
            .sum::<u64>()
            * rows
            / samples
    };
    let edges = kinds.iter().map(edges).max().unwrap_or_default();
    // Half as many words as pairs would need: only few rows read later blocks.
    let words = edges.saturating_mul(rows.div_ceil(128));
    words.saturating_mul(layers as u64) <= WORDS
}

/// The columns and bounds of one layer, computed row by row.
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
    // At each block, by how much the number of rows that read it differs from that of the block
    // before.
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

/// Bounds of one layer.
#[derive(Debug, Default)]
struct Bounds {
    degree: u32,
    in_degree: u32,
    leaks: bool,
    empty_queries: u64,
}

impl Bounds {
    /// Adds all rows of a stretch.
    fn add(&mut self, pattern: &Pattern, context: &Context, stretch: &Stretch) {
        for (end, b) in stretch.ends().enumerate() {
            // The degree is largest at one of the ends. Everything else is the same in all rows,
            // so the first row counts for the whole stretch and the last for none.
            self.add_row(pattern, context, b, if end == 0 { stretch.rows } else { 0 });
        }
    }

    /// Adds row `b`, counted as `rows` equal rows, and returns its columns.
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
        coverage_at_most: None,
        full_at: full.map(|depth| depth + 1),
        max_degree: bounds.iter().map(|x| x.degree).max().unwrap_or_default(),
        max_in_degree: bounds.iter().map(|x| x.in_degree).max().unwrap_or_default(),
        causal: !bounds.iter().any(|x| x.leaks),
        empty_queries: order.iter().map(|stage| bounds[*stage].empty_queries).sum(),
    }
}

/// Adds layer after layer, and returns the number of pairs reached after each. Stops early, with
/// the last number repeated, when all `all` pairs are reached or no stage adds any more.
///
/// `through` puts one layer, named by its entry in `order`, on top of those before it. It returns
/// how many pairs are then reached and whether the set of pairs changed; or `None` to give up.
fn compose(
    order: &[usize],
    all: u64,
    mut through: impl FnMut(usize) -> Option<(u64, bool)>,
) -> Option<Vec<u64>> {
    let stages = order.iter().collect::<BTreeSet<_>>().len();
    let mut pairs = Vec::with_capacity(order.len());
    // Stages that were added since the last change, and changed nothing.
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
