//! Pattern → closed form: the bands of all rows at once, for any length and stage.
//!
//! In:  a `Pattern`. Out: a [`RowProgram`] if every leaf has a closed form and there are not too
//! many bands. Invariant: in each row its bands hold the same pairs as those of
//! [`butterfly_ir::rows::row`].

use butterfly_ir::band::UNBOUNDED;
use butterfly_ir::{Atom, Band, Bound, Indices, Leaf, Pattern, RowProgram, SymbolicBand};

/// Most bands of a closed form. With more, a kernel loses more by the registers that they take than
/// by reading a table.
pub const MAX_SYMBOLIC_BANDS: usize = 32;

/// The closed form of `pattern`; `None` if a leaf has none (`table`), if the pattern needs more than
/// [`MAX_SYMBOLIC_BANDS`] bands, or if it is still one of several layers (`per_layer`).
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
        Pattern::PerHead(cases) => {
            let (mut bands, mut rest) = (Vec::new(), Indices::All);
            for case in cases {
                let heads = case.of.and(&rest);
                rest = rest.and(&case.of.complement());
                let of_case = symbolic(&case.pattern, atoms)?;
                bands.extend(in_heads(of_case, &heads));
            }
            join_heads(bands)
        }
        // Layers have closed forms of their own.
        Pattern::PerLayer(_) => return None,
    };
    (bands.len() <= MAX_SYMBOLIC_BANDS).then_some(bands)
}

fn symbolic_leaf(leaf: &Leaf, atoms: &mut Vec<Atom>) -> Option<Vec<SymbolicBand>> {
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
            first: Band::window_first(tokens),
            end: 1,
            ..everything()
        }],
        Leaf::Local { before, after } => vec![of(Atom::Local { before, after })],
        Leaf::Partner { rule, radix, count } => {
            // No network has as many stages as this, so further offsets would only repeat.
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
        Leaf::Tail { tokens } => vec![of(Atom::Tail { tokens })],
        // Its rows are known to no kernel beforehand; the fixed part has a form of its own.
        Leaf::Routed { .. } => vec![],
        Leaf::Table { .. } => return None,
        Leaf::All => vec![everything()],
        Leaf::None => vec![],
    })
}

/// The bands, for those of their heads that are among `heads`.
fn in_heads(bands: Vec<SymbolicBand>, heads: &Indices) -> Vec<SymbolicBand> {
    let bands = bands.into_iter().map(|band| SymbolicBand {
        heads: band.heads.and(heads),
        ..band
    });
    bands.filter(|band| !band.heads.is_empty()).collect()
}

/// Joins bands that differ in nothing but their heads.
fn join_heads(bands: Vec<SymbolicBand>) -> Vec<SymbolicBand> {
    let mut joined: Vec<SymbolicBand> = Vec::new();
    for band in bands {
        let same = |other: &&mut SymbolicBand| {
            (&other.lo, &other.hi) == (&band.lo, &band.hi)
                && (other.first, other.end) == (band.first, band.end)
        };
        match joined.iter_mut().find(same) {
            Some(other) => other.heads = other.heads.or(&band.heads),
            None => joined.push(band),
        }
    }
    joined
}

/// The band of all pairs.
fn everything() -> SymbolicBand {
    SymbolicBand {
        lo: vec![],
        hi: vec![],
        first: -UNBOUNDED,
        end: UNBOUNDED,
        heads: Default::default(),
    }
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
        heads: x.heads.and(&y.heads),
    });
    absorb(bands.filter(|band| !never(band)).collect())
}

/// Whether the band is empty in every row: its relative limits cross, or its keys would have to be
/// before and after the same end of an atom, or before its start and after its stop.
fn never(band: &SymbolicBand) -> bool {
    let crossed = |lo: &Bound| match lo {
        Bound::Stop(i) => band
            .hi
            .iter()
            .any(|hi| hi == &Bound::Start(*i) || hi == &Bound::Stop(*i)),
        Bound::Start(i) => band.hi.contains(&Bound::Start(*i)),
    };
    band.first >= band.end || band.heads.is_empty() || band.lo.iter().any(crossed)
}

/// Drops bands that lie within another one, as far as their symbolic limits show it.
fn absorb(bands: Vec<SymbolicBand>) -> Vec<SymbolicBand> {
    let within = |x: &SymbolicBand, y: &SymbolicBand| {
        y.lo.iter().all(|b| x.lo.contains(b))
            && y.hi.iter().all(|b| x.hi.contains(b))
            && x.first >= y.first
            && x.end <= y.end
            && x.heads.within(&y.heads)
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
    if band.heads != Indices::All {
        parts.push(SymbolicBand {
            heads: band.heads.complement(),
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
        ..b.clone()
    });
    RowProgram {
        atoms: kept.iter().map(|i| program.atoms[*i as usize]).collect(),
        bands: bands.collect(),
    }
}
