//! The cases with which every backend is tested.

use super::Case;
use butterfly_ir::{
    Atom, Band, BandTable, Bound, Dtype, Indices, KernelSpec, PartnerRule, Role, RowProgram, Rows,
    Score, SymbolicBand, Target, band::UNBOUNDED,
};

/// A program with one band for each atom; `first` and `end` are the limits relative to the query.
pub(crate) fn program(atoms: &[Atom], first: i32, end: i32) -> RowProgram {
    let band = |i: usize| SymbolicBand {
        lo: vec![Bound::Start(i as u32)],
        hi: vec![Bound::Stop(i as u32)],
        first,
        end,
        heads: Default::default(),
    };
    RowProgram {
        atoms: atoms.to_vec(),
        bands: (0..atoms.len()).map(band).collect(),
    }
}

fn partner(rule: PartnerRule, radix: u32, offset: u32, step: u32) -> Atom {
    Atom::Partner {
        rule,
        radix,
        offset,
        step,
    }
}

/// causal & (local(1) | partner(causal_shift) | sink(1))
pub(crate) fn butterfly() -> RowProgram {
    let atoms = [
        Atom::Local {
            before: 1,
            after: 0,
        },
        partner(PartnerRule::CausalShift, 2, 0, 1),
        Atom::Sink { blocks: 1 },
    ];
    program(&atoms, -UNBOUNDED, 1)
}

/// A case from which others are made: one whole sequence of 200 tokens in f32.
pub(crate) fn case(role: Role, head_dim: u32) -> Case {
    Case {
        spec: KernelSpec {
            score: Default::default(),
            role,
            head_dim,
            v_head_dim: head_dim,
            group: 2,
            dtype: Dtype::F32,
            block: 32,
            rows: Rows::ClosedForm(butterfly()),
        },
        target: Target::Vulkan,
        batch: 1,
        kv_heads: 1,
        q_len: 200,
        kv_len: 200,
        q_offset: 0,
        capacity: 200,
        index: 0,
        prompt: 150,
        pad: 8,
        v_in_k: false,
        // Large enough that the weights differ.
        sharpness: 1.0,
        table: BandTable::default(),
    }
}

/// Both kinds of kernel.
pub(crate) const ROLES: [Role; 2] = [Role::Prefill, Role::Decode];

pub(crate) fn head_sizes(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (d, dv) in [
            (64, 64),
            (80, 80),
            (128, 128),
            (256, 256),
            (72, 24),
            (576, 512),
            (8, 8),
        ] {
            let mut case = case(role, d);
            case.spec.v_head_dim = dv;
            (case.q_len, case.kv_len, case.capacity) = (75, 75, 75);
            check(case);
        }
    }
}

pub(crate) fn lengths_and_blocks(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (length, block) in [
            (1, 128),
            (31, 32),
            (129, 128),
            (300, 128),
            (200, 17),
            (100, 8),
        ] {
            let mut case = case(role, 16);
            case.spec.block = block;
            (case.q_len, case.kv_len, case.capacity) = (length, length, length);
            case.index = 1;
            check(case);
        }
    }
}

pub(crate) fn groups_batches_and_offsets(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (group, kv_heads, batch) in [(1, 1, 1), (4, 2, 2), (3, 1, 2), (20, 1, 1)] {
            for (q_len, q_offset, capacity) in [(1, 199, 200), (45, 155, 400), (70, 100, 1000)] {
                let mut case = case(role, 24);
                case.spec.group = group;
                (case.kv_heads, case.batch) = (kv_heads, batch);
                (case.q_len, case.q_offset, case.capacity) = (q_len, q_offset, capacity);
                case.index = 2;
                check(case);
            }
        }
    }
}

pub(crate) fn every_rule_at_every_stage(check: &dyn Fn(Case)) {
    let rules = [
        (PartnerRule::Xor, 2),
        (PartnerRule::BitReversal, 2),
        (PartnerRule::Benes, 2),
        (PartnerRule::CausalShift, 2),
        (PartnerRule::CausalShift, 5),
        (PartnerRule::FixedStride, 2),
        (PartnerRule::Random, 2),
    ];
    for role in ROLES {
        for (rule, radix) in rules {
            for index in 0..7 {
                let mut case = case(role, 8);
                case.spec.block = 8;
                let atoms = [
                    partner(rule, radix, 0, 1),
                    partner(rule, radix, 1, radix - 1),
                ];
                case.spec.rows = Rows::ClosedForm(program(&atoms, -UNBOUNDED, 1));
                case.index = index;
                check(case);
            }
        }
    }
}

pub(crate) fn windows_and_other_leaves(check: &dyn Fn(Case)) {
    let all = (-UNBOUNDED, UNBOUNDED);
    let cases = [
        (vec![Atom::Tokens { tokens: 1 << 29 }], all),
        (vec![Atom::Tokens { tokens: 1 << 29 }], (-99, 1)),
        (
            vec![
                Atom::Tokens { tokens: 5 },
                Atom::Local {
                    before: 0,
                    after: 1,
                },
            ],
            all,
        ),
        (
            vec![Atom::Columns { blocks: 2 }, Atom::Rows { blocks: 1 }],
            all,
        ),
        (
            vec![Atom::Columns { blocks: 2 }, Atom::Rows { blocks: 1 }],
            (-UNBOUNDED, 1),
        ),
        (
            vec![Atom::Local {
                before: u32::MAX,
                after: u32::MAX,
            }],
            (-40, -10),
        ),
        (vec![], all),
    ];
    for role in ROLES {
        for (atoms, (first, end)) in &cases {
            let mut case = case(role, 16);
            case.spec.rows = Rows::ClosedForm(program(atoms, *first, *end));
            check(case);
        }
    }
}

pub(crate) fn tables(check: &dyn Fn(Case)) {
    for role in ROLES {
        let mut case = case(role, 32);
        let mut table = BandTable::default();
        table.offsets.push(0);
        for b in 0..case.kv_len.div_ceil(case.spec.block) as i32 {
            for i in 0..b % 4 {
                let lo = (b * 57 + i * 91) % 180;
                table.bands.push(Band {
                    lo,
                    hi: lo + 20 + i,
                    first: -UNBOUNDED,
                    end: if i % 2 == 0 { 1 } else { UNBOUNDED },
                });
            }
            table.offsets.push(table.bands.len() as u32);
        }
        case.spec.rows = Rows::Table;
        case.table = table;
        check(case);
    }
}

/// Tables in which each kv head has rows of its own.
pub(crate) fn tables_by_head(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (d, group) in [(64, 1), (128, 3)] {
            let mut case = case(role, d);
            (case.kv_heads, case.spec.group, case.batch) = (3, group, 2);
            let mut table = BandTable {
                heads: 3,
                offsets: vec![0],
                ..BandTable::default()
            };
            for head in 0..3 {
                for b in 0..case.kv_len.div_ceil(case.spec.block) as i32 {
                    for i in 0..(b + head) % 4 {
                        let lo = (b * 57 + i * 91 + head * 33) % 180;
                        table.bands.push(Band {
                            end: 1,
                            ..Band::keys(lo, lo + 20 + i)
                        });
                    }
                    table.offsets.push(table.bands.len() as u32);
                }
            }
            case.spec.rows = Rows::Table;
            case.table = table;
            check(case);
        }
    }
}

/// The end of the prompt sees everything: within the sequence, after it, and with nothing before.
pub(crate) fn tails(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (prompt, tokens) in [(150, 1), (150, 60), (200, 64), (900, 8), (20, 64)] {
            let mut case = case(role, 64);
            let atoms = [
                Atom::Local {
                    before: 0,
                    after: 0,
                },
                Atom::Tail { tokens },
            ];
            case.spec.rows = Rows::ClosedForm(program(&atoms, -UNBOUNDED, 1));
            case.prompt = prompt;
            check(case);
        }
    }
}

/// Heads with long rows beside heads with short ones, none of them, and a chunk.
pub(crate) fn dense_beside_sparse(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (kv_heads, dense) in [
            (4, vec![(0, 1)]),
            (5, vec![(1, 2), (3, 5)]),
            (2, vec![(7, 9)]),
        ] {
            let mut case = case(role, 64);
            (case.kv_heads, case.batch, case.spec.block) = (kv_heads, 1, 16);
            let mut rows = butterfly();
            let dense = Indices::of(dense);
            for band in &mut rows.bands {
                band.heads = dense.complement();
            }
            rows.bands.push(SymbolicBand {
                lo: vec![],
                hi: vec![],
                first: -UNBOUNDED,
                end: 1,
                heads: dense,
            });
            (case.q_len, case.q_offset) = (130, 70);
            case.spec.rows = Rows::ClosedForm(rows);
            check(case);
        }
    }
}

/// Each kv head has its own bands, some none.
pub(crate) fn bands_of_some_heads(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (d, group) in [(64, 1), (128, 2)] {
            let mut case = case(role, d);
            (case.kv_heads, case.spec.group, case.batch) = (4, group, 2);
            let mut rows = butterfly();
            rows.bands[0].heads = Indices::of([(0, 1), (2, 3)]);
            rows.bands[1].heads = Indices::of([(1, 3)]);
            rows.bands[2].heads = Indices::of([(0, 2), (9, 14)]);
            case.spec.rows = Rows::ClosedForm(rows);
            check(case);
        }
    }
}

pub(crate) fn large_heads(check: &dyn Fn(Case)) {
    for role in ROLES {
        for d in [64, 128, 256, 512] {
            let mut case = case(role, d);
            case.spec.block = 64;
            (case.q_len, case.q_offset) = (130, 70);
            check(case);
        }
    }
}

pub(crate) fn softcaps_and_sinks(check: &dyn Fn(Case)) {
    for role in ROLES {
        for (softcap, sinks) in [(true, false), (false, true), (true, true)] {
            for (d, kv_heads) in [(64, 2), (128, 1)] {
                let mut case = case(role, d);
                case.spec.score = Score { softcap, sinks };
                (case.kv_heads, case.spec.group, case.q_len) = (kv_heads, 3, 77);
                // Rows 2 and 3 see no key, only the sink.
                case.spec.rows = Rows::Table;
                case.table.offsets = vec![0, 1, 3, 3, 3, 4, 5, 6, 7];
                case.table.bands = (0..7)
                    .map(|i| Band {
                        lo: i * 9,
                        hi: i * 9 + 50,
                        first: -UNBOUNDED,
                        end: 1,
                    })
                    .collect();
                check(case);
            }
        }
    }
}

/// Logits so far apart that weights relative to the logits of the first keys would overflow.
pub(crate) fn sharp_logits(check: &dyn Fn(Case)) {
    for role in ROLES {
        for d in [64, 128, 256] {
            for before in [1, u32::MAX] {
                let mut case = case(role, d);
                case.sharpness = 20.0;
                case.spec.block = 128;
                case.spec.rows =
                    Rows::ClosedForm(program(&[Atom::Local { before, after: 0 }], -UNBOUNDED, 1));
                (case.kv_len, case.capacity) = (700, 700);
                (case.q_len, case.q_offset) = (70, 590);
                check(case);
            }
        }
    }
}

/// Decode of rows that Hopper's kernels spread over the device, and of short ones: latents, whose values are
/// part of the keys, and keys with values of their own.
#[allow(dead_code, reason = "only on CUDA")]
pub(crate) fn long_rows(check: &dyn Fn(Case)) {
    let sizes = [
        (576, 512, 20, 1, true),
        (576, 512, 1, 3, true),
        (576, 512, 32, 1, true),
        (128, 128, 4, 8, false),
        (256, 256, 4, 4, false),
        (72, 24, 3, 2, false),
    ];
    for (d, dv, group, kv_heads, v_in_k) in sizes {
        for first in [-UNBOUNDED, -4999] {
            for length in [1, 63, 64, 65, 1000, 8193, 70_000] {
                for (batch, q_len) in [(1, 1), (3, 1), (2, 3)] {
                    if length < q_len || (length > 10_000 && q_len > 1) {
                        continue;
                    }
                    let mut case = case(Role::Decode, d);
                    case.spec.rows = Rows::ClosedForm(relative(first));
                    (case.spec.v_head_dim, case.spec.group, case.spec.block) = (dv, group, 128);
                    (case.batch, case.kv_heads, case.v_in_k) = (batch, kv_heads, v_in_k);
                    (case.q_len, case.kv_len, case.capacity) = (q_len, length, length);
                    case.q_offset = length - q_len;
                    check(case);
                }
            }
        }
    }
}

/// The keys from `first` relative to the query up to its own.
#[allow(dead_code, reason = "only on CUDA")]
pub(crate) fn relative(first: i32) -> RowProgram {
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
