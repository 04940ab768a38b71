//! Pattern → the bands of one row, for one sequence length and stage.
//!
//! In:  any pattern, a context with at least one key, a row that holds a token.
//! Out: bands whose union holds a (query, key) pair of the row exactly when
//! [`sees`](crate::sees()) is true for it. The code is here and not among the compiler's passes
//! because programs that only run artifacts make tables too, for the native CPU kernel and for
//! patterns without a closed form.

use super::band::UNBOUNDED;
use crate::pattern::Case;
use crate::sees::partners;
use crate::topology::queries;
use crate::{Atom, Band, BandTable, Context, Leaf, Pattern};
use std::ops::Range;

/// The bands of every row for `kv_heads` heads, as kernels without a closed form read them.
pub fn table(pattern: &Pattern, context: &Context, kv_heads: u32) -> BandTable {
    table_of(pattern, context, kv_heads, 0..context.rows())
}

/// A table of the bands of `rows` only. Heads share their rows unless the pattern tells them apart.
pub fn table_of(
    pattern: &Pattern,
    context: &Context,
    kv_heads: u32,
    rows: Range<u32>,
) -> BandTable {
    let heads = match pattern.is_by_head() {
        true => kv_heads.max(1),
        false => 1,
    };
    let mut table = BandTable {
        heads,
        first_row: rows.start,
        offsets: vec![0],
        ..BandTable::default()
    };
    for head in 0..heads {
        let context = context.of_head(head);
        for b in rows.clone() {
            table.bands.extend(row(pattern, &context, b));
            table.offsets.push(table.bands.len() as u32);
        }
    }
    table
}

/// The bands of row `b`. They may overlap. A `first` or `end` that excludes no key for any query of
/// the row is replaced by no limit.
pub fn row(pattern: &Pattern, context: &Context, b: u32) -> Vec<Band> {
    let (q0, q1) = queries(context, b);
    let row = RowOf {
        context,
        b,
        q0: q0 as i32,
        q1: q1 as i32,
    };
    row.bands(pattern)
}

struct RowOf<'a> {
    context: &'a Context,
    b: u32,
    q0: i32,
    q1: i32,
}

impl RowOf<'_> {
    fn bands(&self, pattern: &Pattern) -> Vec<Band> {
        match pattern {
            Pattern::Leaf(leaf) => self.simplify(self.leaf(leaf)),
            Pattern::Or(x, y) => {
                let mut bands = self.bands(x);
                bands.extend(self.bands(y));
                self.simplify(bands)
            }
            Pattern::And(x, y) => self.product(&self.bands(x), &self.bands(y)),
            Pattern::PerHead(cases) => self.case(cases, self.context.kv_head),
            Pattern::PerLayer(cases) => self.case(cases, self.context.layer),
            Pattern::Minus(x, y) => self.bands(y).iter().fold(self.bands(x), |rest, band| {
                self.product(&rest, &self.outside(band))
            }),
        }
    }

    fn case(&self, cases: &[Case], index: u32) -> Vec<Band> {
        Case::find(cases, index).map_or(Vec::new(), |pattern| self.bands(pattern))
    }

    fn kv_len(&self) -> i32 {
        self.context.kv_len as i32
    }

    fn leaf(&self, leaf: &Leaf) -> Vec<Band> {
        let everything = Band::keys(0, self.kv_len());
        let of = |atom: Atom| {
            let (start, stop) = atom.range(self.b, self.context);
            Band::keys(start, stop)
        };
        let block = |c: u32| Band::keys(self.start_of(c), self.start_of(c.saturating_add(1)));
        match leaf {
            Leaf::Causal => vec![Band {
                end: 1,
                ..everything
            }],
            Leaf::Window { tokens } => vec![Band {
                first: Band::window_first(*tokens),
                end: 1,
                ..everything
            }],
            Leaf::Local { before, after } => vec![of(Atom::Local {
                before: *before,
                after: *after,
            })],
            Leaf::Partner { rule, radix, count } => {
                partners(*rule, *radix, *count, self.b, self.context)
                    .into_iter()
                    .map(block)
                    .collect()
            }
            Leaf::Sink { blocks } => vec![of(Atom::Sink { blocks: *blocks })],
            Leaf::SinkTokens { tokens } => vec![of(Atom::Tokens { tokens: *tokens })],
            Leaf::Global { blocks } => {
                vec![
                    of(Atom::Columns { blocks: *blocks }),
                    of(Atom::Rows { blocks: *blocks }),
                ]
            }
            Leaf::Tail { tokens } => vec![of(Atom::Tail { tokens: *tokens })],
            // The fixed part of a row; the chosen blocks are added to it once they are known.
            Leaf::Routed { .. } => vec![],
            Leaf::Table { rows } => rows
                .get(self.b as usize)
                .into_iter()
                .flatten()
                .map(|c| block(*c))
                .collect(),
            Leaf::All => vec![everything],
            Leaf::None => vec![],
        }
    }

    fn start_of(&self, c: u32) -> i32 {
        (u64::from(c) * u64::from(self.context.block)).min(UNBOUNDED as u64) as i32
    }

    fn product(&self, x: &[Band], y: &[Band]) -> Vec<Band> {
        self.simplify(
            x.iter()
                .flat_map(|a| y.iter().map(|b| a.intersect(b)))
                .collect(),
        )
    }

    fn outside(&self, band: &Band) -> [Band; 4] {
        let everything = Band::keys(0, self.kv_len());
        [
            Band {
                hi: band.lo,
                ..everything
            },
            Band {
                lo: band.hi,
                ..everything
            },
            Band {
                end: band.first,
                ..everything
            },
            Band {
                first: band.end,
                ..everything
            },
        ]
    }

    /// Tightens bands to the row's queries, drops empty ones and those within another band, and
    /// joins neighbours.
    fn simplify(&self, bands: Vec<Band>) -> Vec<Band> {
        let bands = bands.into_iter().filter_map(|band| self.tighten(band));
        let bands: Vec<Band> = bands.collect();
        if bands.len() > MANY {
            return sweep(bands);
        }
        let mut kept: Vec<Band> = Vec::with_capacity(bands.len());
        for mut band in bands {
            // A join can make further joins possible; each removes a band, so this ends.
            while let Some(i) = kept.iter().position(|k| join(k, &band).is_some()) {
                let other = kept.swap_remove(i);
                band = join(&other, &band).unwrap_or(band);
            }
            kept.push(band);
        }
        kept.sort_unstable();
        kept
    }

    fn tighten(&self, band: Band) -> Option<Band> {
        if band.is_empty() {
            return None;
        }
        let (lo, hi) = (
            band.lo.max(self.q0 + band.first).max(0),
            band.hi.min(self.q1 + band.end).min(self.kv_len()),
        );
        let first = if self.q1 + band.first <= lo {
            -UNBOUNDED
        } else {
            band.first
        };
        let end = if self.q0 + band.end >= hi {
            UNBOUNDED
        } else {
            band.end
        };
        (lo < hi).then_some(Band { lo, hi, first, end })
    }
}

/// With more bands than this, a band is compared only with its neighbours in sorted order.
const MANY: usize = 64;

/// Sorts bands by relative limits, then by keys, and joins neighbours whose union is a band.
fn sweep(mut bands: Vec<Band>) -> Vec<Band> {
    bands.sort_unstable_by_key(|band| (band.first, band.end, band.lo));
    bands.dedup_by(|next, band| match join(band, next) {
        Some(joined) => {
            *band = joined;
            true
        }
        None => false,
    });
    bands.sort_unstable();
    bands
}

/// The union of two bands, if it is a band.
fn join(a: &Band, b: &Band) -> Option<Band> {
    if a.within(b) {
        return Some(*b);
    }
    if b.within(a) {
        return Some(*a);
    }
    let touch = |x: (i32, i32), y: (i32, i32)| x.0 <= y.1 && y.0 <= x.1;
    if (a.first, a.end) == (b.first, b.end) && touch((a.lo, a.hi), (b.lo, b.hi)) {
        return Some(Band {
            lo: a.lo.min(b.lo),
            hi: a.hi.max(b.hi),
            ..*a
        });
    }
    if (a.lo, a.hi) == (b.lo, b.hi) && touch((a.first, a.end), (b.first, b.end)) {
        return Some(Band {
            first: a.first.min(b.first),
            end: a.end.max(b.end),
            ..*a
        });
    }
    None
}
