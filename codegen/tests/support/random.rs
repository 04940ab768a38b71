//! Random kernels and shapes, the same in every run.

use crate::support::{Case, cases};
use butterfly_ir::{
    Atom, Band, BandTable, Bound, Dtype, Indices, PartnerRule, Role, RowProgram, Rows, Score,
    SymbolicBand, Target, band::UNBOUNDED,
};

/// A counter-based source of pseudo-random numbers (the finaliser of MurmurHash3, by Austin
/// Appleby).
struct Source(u32);

impl Source {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9);
        let mut x = self.0;
        x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        (x ^ (x >> 16)) % n
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize]
    }
}

/// Case `shape` of kernel `kernel`: equal numbers give equal cases.
pub(crate) fn case(kernel: u32, shape: u32, target: Target) -> Case {
    let mut from = Source(kernel.wrapping_mul(0x0100_0193));
    let role = from.of(&cases::ROLES);
    let (d, dv) = from.of(&[
        (64, 64),
        (80, 80),
        (96, 96),
        (128, 128),
        (256, 256),
        (192, 128),
        (72, 24),
        (128, 64),
        (576, 512),
        (320, 256),
    ]);
    let mut case = cases::case(role, d);
    case.target = target;
    case.spec.v_head_dim = dv;
    case.spec.dtype = from.of(&[Dtype::Bf16, Dtype::F16]);
    case.spec.group = 1 + from.below(match role {
        Role::Prefill => 16,
        Role::Decode => 32,
    });
    case.spec.block = from.of(&[16, 32, 64, 128, 256]);
    // Most cases have neither a softcap nor sinks.
    case.spec.score = Score {
        softcap: from.below(8) == 0,
        sinks: from.below(8) == 0,
    };
    let table = from.below(4) == 0;
    case.spec.rows = match table {
        true => Rows::Table,
        false => Rows::ClosedForm(program(&mut from)),
    };

    let mut from = Source(kernel * 31 + shape + 1);
    case.kv_heads = 1 + from.below(3);
    case.batch = 1 + from.below(2);
    // Short sequences more often than long ones.
    let longest = from.of(&[3, 70, 300, 300, 1500]);
    case.kv_len = 1 + from.below(longest);
    // Limit the number of queries, because the reference is slow.
    let heads = case.kv_heads * case.spec.group * case.batch;
    let most = (100_000_000 / (heads * case.kv_len * (d + dv))).max(1);
    case.q_len = 1 + from.below(case.kv_len.min(most));
    case.q_offset = from.below(case.kv_len - case.q_len + 1);
    case.capacity = case.kv_len + from.below(2) * from.below(3000);
    case.index = from.below(12);
    case.sharpness = from.of(&[1.0, 1.0, 20.0]);
    if table {
        case.table = rows(&mut from, case.kv_len, case.spec.block);
    }
    case
}

fn program(from: &mut Source) -> RowProgram {
    let atoms: Vec<Atom> = (0..1 + from.below(4)).map(|_| atom(from)).collect();
    let mut bands = Vec::new();
    for i in 0..atoms.len() as u32 {
        let (first, end) = from.of(&[
            (-UNBOUNDED, 1),
            (-UNBOUNDED, 1),
            (-UNBOUNDED, UNBOUNDED),
            (-99, 1),
            (-300, -10),
            (-5, 70),
        ]);
        // Sometimes the lower limit is the larger of two atoms' starts.
        let mut lo = vec![Bound::Start(i)];
        let other = from.below(atoms.len() as u32);
        if from.below(4) == 0 && other != i {
            lo.push(Bound::Start(other));
            lo.sort();
        }
        bands.push(SymbolicBand {
            lo,
            hi: vec![Bound::Stop(i)],
            first,
            end,
            // Sometimes for some kv heads.
            heads: match from.below(6) {
                0 => {
                    let first = from.below(2);
                    Indices::of([(first, first + 1 + from.below(2))])
                }
                _ => Indices::All,
            },
        });
    }
    RowProgram { atoms, bands }
}

fn atom(from: &mut Source) -> Atom {
    match from.below(9) {
        0 | 1 => Atom::Local {
            before: from.below(4),
            after: from.below(2),
        },
        2..=4 => {
            let rule = from.of(&[
                PartnerRule::Xor,
                PartnerRule::Benes,
                PartnerRule::BitReversal,
                PartnerRule::CausalShift,
                PartnerRule::FixedStride,
                PartnerRule::Random,
            ]);
            let radix = match rule {
                PartnerRule::CausalShift => 2 + from.below(4),
                _ => 2,
            };
            Atom::Partner {
                rule,
                radix,
                offset: from.below(2),
                step: 1 + from.below(radix - 1),
            }
        }
        5 => Atom::Sink {
            blocks: 1 + from.below(3),
        },
        6 => Atom::Tail {
            tokens: 1 + from.below(200),
        },
        7 => Atom::Tokens {
            tokens: 1 + from.below(200),
        },
        _ => Atom::Columns {
            blocks: 1 + from.below(2),
        },
    }
}

fn rows(from: &mut Source, kv_len: u32, block: u32) -> BandTable {
    let mut table = BandTable {
        heads: 1,
        offsets: vec![0],
        ..BandTable::default()
    };
    for _ in 0..kv_len.div_ceil(block) {
        // Some rows with more bands than a warp has lanes.
        let count = from.of(&[0, 1, 2, 3, 5, 40]);
        for _ in 0..count {
            let lo = from.below(kv_len) as i32;
            table.bands.push(Band {
                lo,
                hi: lo + 1 + from.below(150) as i32,
                first: from.of(&[-UNBOUNDED, -200]),
                end: from.of(&[1, UNBOUNDED]),
            });
        }
        table.offsets.push(table.bands.len() as u32);
    }
    table
}

/// A few very different cases, with short sequences.
pub(crate) fn few(target: Target) -> Vec<Case> {
    // Batch, kv heads, keys and queries.
    let short = [1, 2, 333, 200];
    let butterfly = || Some(cases::butterfly());
    of_sizes(
        target,
        &[
            (64, 4, 128, butterfly(), short),
            (64, 1, 64, butterfly(), short),
            (128, 4, 128, butterfly(), short),
            (128, 3, 32, None, short),
            (256, 2, 64, butterfly(), short),
            (80, 16, 16, butterfly(), short),
        ],
    )
}

/// Cases whose rows fill the ring of tiles several times, and cases whose launches give each thread
/// block several rows.
pub(crate) fn long(target: Target) -> Vec<Case> {
    let long_rows = [1, 2, 1500, 40];
    let many_rows = [8, 8, 333, 200];
    let butterfly = || Some(cases::butterfly());
    let causal = || Some(causal());
    of_sizes(
        target,
        &[
            (64, 4, 128, causal(), long_rows),
            (128, 4, 128, causal(), long_rows),
            (128, 3, 32, None, long_rows),
            (256, 2, 64, causal(), long_rows),
            (64, 1, 16, butterfly(), many_rows),
            (128, 1, 16, butterfly(), many_rows),
            (128, 1, 32, None, many_rows),
            (256, 1, 16, butterfly(), many_rows),
        ],
    )
}

/// `causal & local(999)`: all blocks up to a query's own.
fn causal() -> RowProgram {
    let blocks = Atom::Local {
        before: 999,
        after: 0,
    };
    cases::program(&[blocks], -UNBOUNDED, 1)
}

/// Head size, group, block, rows (`None` for a table), then batch, kv heads, keys and queries.
type Sizes = (u32, u32, u32, Option<RowProgram>, [u32; 4]);

/// The cases of these sizes, in both phases.
fn of_sizes(target: Target, sizes: &[Sizes]) -> Vec<Case> {
    let mut all = Vec::new();
    for role in cases::ROLES {
        for (d, group, block, program, [batch, kv_heads, kv_len, q_len]) in sizes {
            let mut case = case(7, 1, target);
            let mut from = Source(d + group);
            case.spec.role = role;
            (case.spec.head_dim, case.spec.v_head_dim) = (*d, *d);
            (case.spec.group, case.spec.block) = (*group, *block);
            case.spec.dtype = Dtype::Bf16;
            (case.batch, case.kv_heads) = (*batch, *kv_heads);
            (case.kv_len, case.capacity, case.index) = (*kv_len, *kv_len, 1);
            case.q_len = if role == Role::Prefill { *q_len } else { 1 };
            case.q_offset = case.kv_len - case.q_len;
            case.spec.rows = program.clone().map_or(Rows::Table, Rows::ClosedForm);
            case.table = rows(&mut from, case.kv_len, *block);
            all.push(case);
        }
    }
    all
}
