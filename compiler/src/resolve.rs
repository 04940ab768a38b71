//! Pattern → bands: in closed form for every row at once, or row by row.
//!
//! In:  a `Pattern`. Out: a [`RowProgram`] if every leaf has a closed form, and for any
//! pattern the bands of one row.
//! Invariant: both say for each (query, key) pair what [`butterfly_ir::sees`] says.

use butterfly_ir::band::UNBOUNDED;
use butterfly_ir::sees::partners;
use butterfly_ir::topology::queries;
use butterfly_ir::{Atom, Band, Bound, Context, Leaf, Pattern, RowProgram, SymbolicBand};

/// Bands above which a closed form costs a kernel more registers than a table costs it
/// reads.
pub const MAX_SYMBOLIC_BANDS: usize = 32;

/// The closed form of `pattern`, or `None` where a leaf has none (`table`) or the
/// expression needs more than [`MAX_SYMBOLIC_BANDS`] bands.
pub fn closed_form(pattern: &Pattern) -> Option<RowProgram> {
    let mut atoms = Vec::new();
    let bands = symbolic(pattern, &mut atoms)?;
    Some(prune(RowProgram { atoms, bands }))
}

fn symbolic(pattern: &Pattern, atoms: &mut Vec<Atom>) -> Option<Vec<SymbolicBand>> {
    let bands = match pattern {
        Pattern::Leaf(leaf) => symbolic_leaf(leaf, atoms)?,
        Pattern::Or(a, b) => {
            let mut bands = symbolic(a, atoms)?;
            bands.extend(symbolic(b, atoms)?);
            absorb(bands)
        }
        Pattern::And(a, b) => product(&symbolic(a, atoms)?, &symbolic(b, atoms)?),
        Pattern::Minus(a, b) => {
            let mut rest = symbolic(a, atoms)?;
            for band in symbolic(b, atoms)? {
                rest = product(&rest, &outside(&band));
                if rest.len() > MAX_SYMBOLIC_BANDS {
                    return None;
                }
            }
            rest
        }
    };
    (bands.len() <= MAX_SYMBOLIC_BANDS).then_some(bands)
}

fn symbolic_leaf(leaf: &Leaf, atoms: &mut Vec<Atom>) -> Option<Vec<SymbolicBand>> {
    let everything = || SymbolicBand {
        lo: vec![],
        hi: vec![],
        first: -UNBOUNDED,
        end: UNBOUNDED,
    };
    let mut of = |atom: Atom| {
        let i = atoms.iter().position(|a| *a == atom).unwrap_or_else(|| {
            atoms.push(atom);
            atoms.len() - 1
        }) as u32;
        SymbolicBand {
            lo: vec![Bound::Start(i)],
            hi: vec![Bound::Stop(i)],
            ..everything()
        }
    };
    Some(match *leaf {
        Leaf::Causal => vec![SymbolicBand {
            end: 1,
            ..everything()
        }],
        Leaf::Window { tokens } => vec![SymbolicBand {
            first: window_first(tokens),
            end: 1,
            ..everything()
        }],
        Leaf::Local { before, after } => vec![of(Atom::Local { before, after })],
        Leaf::Partner { rule, radix, count } => {
            // More digits than a network over any i32 sequence can have only repeat.
            let offsets = 0..count.min(64);
            offsets
                .flat_map(|offset| {
                    (1..radix).map(move |step| Atom::Partner {
                        rule,
                        radix,
                        offset,
                        step,
                    })
                })
                .map(of)
                .take(MAX_SYMBOLIC_BANDS + 1)
                .collect()
        }
        Leaf::Sink { blocks } => vec![of(Atom::Sink { blocks })],
        Leaf::SinkTokens { tokens } => vec![of(Atom::Tokens { tokens })],
        Leaf::Global { blocks } => vec![of(Atom::Columns { blocks }), of(Atom::Rows { blocks })],
        Leaf::Table { .. } => return None,
        Leaf::All => vec![everything()],
        Leaf::None => vec![],
    })
}

fn product(a: &[SymbolicBand], b: &[SymbolicBand]) -> Vec<SymbolicBand> {
    let both = |x: &[Bound], y: &[Bound]| {
        let mut bounds = [x, y].concat();
        bounds.sort_unstable();
        bounds.dedup();
        bounds
    };
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| (x, y)));
    let bands = pairs.map(|(x, y)| SymbolicBand {
        lo: both(&x.lo, &y.lo),
        hi: both(&x.hi, &y.hi),
        first: x.first.max(y.first),
        end: x.end.min(y.end),
    });
    absorb(bands.filter(|band| !never(band)).collect())
}

/// Whether the band is empty in every row: its relative limits cross, or it lies both
/// before and after one atom.
fn never(band: &SymbolicBand) -> bool {
    let crossed = |lo: &Bound| match lo {
        Bound::Stop(i) => band
            .hi
            .iter()
            .any(|hi| hi == &Bound::Start(*i) || hi == &Bound::Stop(*i)),
        Bound::Start(i) => band.hi.contains(&Bound::Start(*i)),
    };
    band.first >= band.end || band.lo.iter().any(crossed)
}

/// Drops bands that lie within another by their limits alone.
fn absorb(bands: Vec<SymbolicBand>) -> Vec<SymbolicBand> {
    let within = |x: &SymbolicBand, y: &SymbolicBand| {
        y.lo.iter().all(|b| x.lo.contains(b))
            && y.hi.iter().all(|b| x.hi.contains(b))
            && x.first >= y.first
            && x.end <= y.end
    };
    let mut kept: Vec<SymbolicBand> = Vec::new();
    for band in bands {
        if !kept.iter().any(|k| within(&band, k)) {
            kept.retain(|k| !within(k, &band));
            kept.push(band);
        }
    }
    kept
}

/// The complement of one band as a union of bands.
fn outside(band: &SymbolicBand) -> Vec<SymbolicBand> {
    let everything = || SymbolicBand {
        lo: vec![],
        hi: vec![],
        first: -UNBOUNDED,
        end: UNBOUNDED,
    };
    let mut parts = Vec::new();
    parts.extend(band.lo.iter().map(|b| SymbolicBand {
        hi: vec![*b],
        ..everything()
    }));
    parts.extend(band.hi.iter().map(|b| SymbolicBand {
        lo: vec![*b],
        ..everything()
    }));
    if band.first > -UNBOUNDED {
        parts.push(SymbolicBand {
            end: band.first,
            ..everything()
        });
    }
    if band.end < UNBOUNDED {
        parts.push(SymbolicBand {
            first: band.end,
            ..everything()
        });
    }
    parts
}

/// Drops atoms that no band reads and renumbers the rest.
fn prune(program: RowProgram) -> RowProgram {
    let index = |bound: &Bound| match *bound {
        Bound::Start(i) | Bound::Stop(i) => i,
    };
    let used = |i: &u32| {
        program
            .bands
            .iter()
            .any(|b| b.lo.iter().chain(&b.hi).any(|x| index(x) == *i))
    };
    let kept: Vec<u32> = (0..program.atoms.len() as u32).filter(used).collect();
    let renumber = |bound: &Bound| {
        let at = |i: &u32| kept.iter().position(|k| k == i).unwrap_or_default() as u32;
        match bound {
            Bound::Start(i) => Bound::Start(at(i)),
            Bound::Stop(i) => Bound::Stop(at(i)),
        }
    };
    let bands = program.bands.iter().map(|b| SymbolicBand {
        lo: b.lo.iter().map(renumber).collect(),
        hi: b.hi.iter().map(renumber).collect(),
        ..*b
    });
    RowProgram {
        atoms: kept.iter().map(|i| program.atoms[*i as usize]).collect(),
        bands: bands.collect(),
    }
}

fn window_first(tokens: u32) -> i32 {
    1 - i64::from(tokens).min(i64::from(UNBOUNDED) + 1) as i32
}

/// The bands of row `b`: disjoint in no particular sense, none within another, and
/// without limits that cannot bind for a query of the row.
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
            Pattern::Minus(x, y) => self.bands(y).iter().fold(self.bands(x), |rest, band| {
                self.product(&rest, &self.outside(band))
            }),
        }
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
        let block = |c: u32| {
            of(Atom::Columns { blocks: c + 1 }).intersect(&Band::keys(self.start_of(c), UNBOUNDED))
        };
        match leaf {
            Leaf::Causal => vec![Band {
                end: 1,
                ..everything
            }],
            Leaf::Window { tokens } => vec![Band {
                first: window_first(*tokens),
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

    /// Tightens to the row's queries, then drops what is empty or within another band
    /// and joins neighbours.
    fn simplify(&self, bands: Vec<Band>) -> Vec<Band> {
        let mut kept: Vec<Band> = Vec::with_capacity(bands.len());
        for band in bands {
            let Some(mut band) = self.tighten(band) else {
                continue;
            };
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

/// The union of two bands where that is one band.
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
