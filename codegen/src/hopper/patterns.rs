//! Patterns for the tests of the Hopper kernels.

use butterfly_ir::{Atom, Bound, PartnerRule, RowProgram, SymbolicBand, band::UNBOUNDED};

/// `causal & (local(1) | partner(causal_shift) | sink(1))`.
pub(super) fn butterfly() -> RowProgram {
    let band = |i: u32| SymbolicBand {
        lo: vec![Bound::Start(i)],
        hi: vec![Bound::Stop(i)],
        first: -UNBOUNDED,
        end: 1,
        heads: Default::default(),
    };
    RowProgram {
        atoms: vec![
            Atom::Local {
                before: 1,
                after: 0,
            },
            Atom::Partner {
                rule: PartnerRule::CausalShift,
                radix: 2,
                offset: 0,
                step: 1,
            },
            Atom::Sink { blocks: 1 },
        ],
        bands: (0..3).map(band).collect(),
    }
}

/// `window(1 - first)`, or `causal` where `first` is minus `UNBOUNDED`.
pub(super) fn relative(first: i32) -> RowProgram {
    RowProgram {
        atoms: vec![],
        bands: vec![SymbolicBand {
            lo: vec![],
            hi: vec![],
            first,
            end: 1,
            heads: Default::default(),
        }],
    }
}

/// A pattern with every kind of atom and every partner rule.
pub(super) fn everything() -> RowProgram {
    let partner = |rule, radix| Atom::Partner {
        rule,
        radix,
        offset: 1,
        step: 1,
    };
    let atoms = vec![
        Atom::Local {
            before: 2,
            after: 1,
        },
        partner(PartnerRule::Xor, 2),
        partner(PartnerRule::Benes, 2),
        partner(PartnerRule::BitReversal, 2),
        partner(PartnerRule::CausalShift, 3),
        partner(PartnerRule::FixedStride, 2),
        partner(PartnerRule::Random, 2),
        Atom::Sink { blocks: 2 },
        Atom::Tokens { tokens: 5 },
        Atom::Columns { blocks: 1 },
        Atom::Rows { blocks: 1 },
    ];
    let band = |i: u32| SymbolicBand {
        lo: vec![Bound::Start(i), Bound::Start(0)],
        hi: vec![Bound::Stop(i)],
        first: -100,
        end: 1,
        heads: Default::default(),
    };
    RowProgram {
        bands: (0..atoms.len() as u32).map(band).collect(),
        atoms,
    }
}
