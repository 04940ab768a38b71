//! What the queries of one block row see, on the device: the bands of
//! `butterfly_ir::RowProgram` in registers, or those of a table in memory.
//!
//! Same meaning, statement by statement, as `butterfly_ir::{row_program, stage, band}`.

use super::blueprint::Blueprint;
use butterfly_ir::{Atom, Bound, PartnerRule, RowProgram, band::UNBOUNDED, scalar};
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// A `butterfly_ir::Band`.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Limits {
    lo: i32,
    hi: i32,
    first: i32,
    end: i32,
}

/// The bands of one row: `closed` known at compile time in number, or entries
/// `from..to` of a table.
#[derive(CubeType)]
pub(crate) struct Row {
    closed: Sequence<Limits>,
    from: u32,
    to: u32,
    kv_len: i32,
}

/// The bands of row `b`.
#[cube]
pub(crate) fn of_block(
    params: &Array<u32>,
    offsets: &Array<u32>,
    b: u32,
    #[comptime] plan: Blueprint,
) -> Row {
    let kv_len = i32::cast_from(params[scalar::KV_LEN]);
    let mut closed = Sequence::<Limits>::new();
    let mut from = 0u32.runtime();
    let mut to = 0u32.runtime();
    if comptime!(plan.program.is_some()) {
        let program = comptime!(plan.program.clone().unwrap_or_default());
        let mut starts = Sequence::<i32>::new();
        let mut stops = Sequence::<i32>::new();
        let atoms = comptime!(program.atoms.len());
        #[unroll]
        for i in 0..atoms {
            let atom = comptime!(program.atoms[i]);
            let range = atom_range(params, b, atom, comptime!(plan.block));
            starts.push(range.start);
            stops.push(range.stop);
        }
        let bands = comptime!(program.bands.len());
        #[unroll]
        for i in 0..bands {
            let mut lo = 0i32.runtime();
            let lower = comptime!(program.bands[i].lo.len());
            #[unroll]
            for j in 0..lower {
                lo = max(
                    lo,
                    bound(&starts, &stops, comptime!(program.bands[i].lo[j])),
                );
            }
            let mut hi = kv_len;
            let upper = comptime!(program.bands[i].hi.len());
            #[unroll]
            for j in 0..upper {
                hi = min(
                    hi,
                    bound(&starts, &stops, comptime!(program.bands[i].hi[j])),
                );
            }
            closed.push(Limits {
                lo,
                hi,
                first: comptime!(program.bands[i].first).runtime(),
                end: comptime!(program.bands[i].end).runtime(),
            });
        }
    } else {
        from = offsets[b as usize];
        to = offsets[(b + 1) as usize];
    }
    Row {
        closed,
        from,
        to,
        kv_len,
    }
}

#[derive(CubeType, Clone, Copy)]
struct Range {
    start: i32,
    stop: i32,
}

#[cube]
fn bound(starts: &Sequence<i32>, stops: &Sequence<i32>, #[comptime] bound: Bound) -> i32 {
    let i = comptime!(match bound {
        Bound::Start(i) | Bound::Stop(i) => i as usize,
    });
    if comptime!(matches!(bound, Bound::Start(_))) {
        *starts.index(i)
    } else {
        *stops.index(i)
    }
}

/// `Atom::range`.
#[cube]
#[allow(unused_assignments)] // read by the expansion
fn atom_range(
    params: &Array<u32>,
    b: u32,
    #[comptime] atom: Atom,
    #[comptime] block: u32,
) -> Range {
    let limit = comptime!(UNBOUNDED as u32);
    let mut start = 0u32.runtime();
    let mut stop = 0u32.runtime();
    match comptime!(atom) {
        Atom::Local { before, after } => {
            let reach = comptime!(tokens(after, block));
            start = (b - min(b, before.runtime())) * block;
            stop = min(b * block + comptime!(block + reach), limit.runtime());
        }
        Atom::Partner {
            rule,
            radix,
            offset,
            step,
        } => {
            let partner = partner(params, b, rule, radix, offset, step);
            start = partner.block * block;
            stop = start + select(partner.present, block.runtime(), 0u32.runtime());
        }
        Atom::Sink { blocks } => {
            stop = min(b + 1, blocks.runtime()) * block;
        }
        Atom::Tokens { tokens } => {
            stop = comptime!(tokens.min(UNBOUNDED as u32)).runtime();
        }
        Atom::Columns { blocks } => {
            stop = comptime!(tokens(blocks, block)).runtime();
        }
        Atom::Rows { blocks } => {
            stop = select(b < blocks, params[scalar::KV_LEN], 0u32.runtime());
        }
    }
    Range {
        start: i32::cast_from(start),
        stop: i32::cast_from(stop),
    }
}

/// `blocks` blocks in tokens, at most `UNBOUNDED`.
fn tokens(blocks: u32, block: u32) -> u32 {
    (u64::from(blocks) * u64::from(block)).min(UNBOUNDED as u64) as u32
}

#[derive(CubeType, Clone, Copy)]
struct Partner {
    /// 0 where there is none.
    block: u32,
    present: bool,
}

/// `stage::partner` at the stage of this launch.
#[cube]
#[allow(unused_assignments)] // read by the expansion
fn partner(
    params: &Array<u32>,
    b: u32,
    #[comptime] rule: PartnerRule,
    #[comptime] radix: u32,
    #[comptime] offset: u32,
    #[comptime] step: u32,
) -> Partner {
    let blocks = params[scalar::BLOCKS];
    let index = params[scalar::INDEX];
    // Digits of `blocks - 1`: the smallest width whose power reaches `blocks`.
    let mut width = 0u32.runtime();
    let mut rest = max(blocks, 1u32.runtime()) - 1u32;
    while rest > 0u32 {
        rest /= radix;
        width += 1u32;
    }
    width = max(width, 1u32.runtime());
    let mut digit = (index % width + offset) % width;
    if comptime!(matches!(rule, PartnerRule::Benes)) {
        let turn = 2u32 * width - 2u32;
        let count = max(turn, 1u32.runtime());
        let position = (index % count + offset) % count;
        digit = select(position < width, position, turn - position);
    }
    let mut found = b;
    let mut present = true.runtime();
    match comptime!(rule) {
        PartnerRule::Xor | PartnerRule::Benes => {
            found = b ^ (1u32 << digit);
        }
        PartnerRule::BitReversal => {
            let unused = 32u32 - width;
            let reversed = (b.reverse_bits() >> unused) ^ (1u32 << digit);
            found = reversed.reverse_bits() >> unused;
        }
        PartnerRule::CausalShift => {
            let mut power = 1u32.runtime();
            for _ in 0..digit {
                power *= radix;
            }
            present = power <= b / step;
            found = b - step * power;
        }
        PartnerRule::FixedStride => {
            present = b > 0u32;
            found = b - 1u32;
        }
        PartnerRule::Random => {
            present = b > 0u32;
            let mixed = b * 2_654_435_761u32 + digit * 374_761_393u32;
            found = mixed % max(b, 1u32.runtime());
        }
    }
    let present = present && found < blocks && found <= b;
    Partner {
        block: select(present, found, 0u32.runtime()),
        present,
    }
}

/// Entry `i` of the table.
#[cube]
fn read(table: &Array<u32>, row: &Row, i: u32) -> Limits {
    let at = (i * 4u32) as usize;
    Limits {
        lo: max(i32::cast_from(table[at]), 0i32.runtime()),
        hi: min(i32::cast_from(table[at + 1]), row.kv_len),
        first: i32::cast_from(table[at + 2]),
        end: i32::cast_from(table[at + 3]),
    }
}

/// The first key at or after `cursor` that a query of `q0..=q1` may see;
/// `UNBOUNDED` if there is none.
#[cube]
pub(crate) fn next_key(
    row: &Row,
    table: &Array<u32>,
    q0: i32,
    q1: i32,
    cursor: i32,
    #[comptime] plan: Blueprint,
) -> i32 {
    let mut next = UNBOUNDED.runtime();
    if comptime!(plan.program.is_some()) {
        let bands = row.closed.len();
        #[unroll]
        for i in 0..bands {
            next = min(next, visit(*row.closed.index(i), q0, q1, cursor));
        }
    } else {
        for i in row.from..row.to {
            next = min(next, visit(read(table, row, i), q0, q1, cursor));
        }
    }
    next
}

#[cube]
fn visit(band: Limits, q0: i32, q1: i32, cursor: i32) -> i32 {
    let start = max(max(band.lo, q0 + band.first), cursor);
    let stop = min(band.hi, q1 + band.end);
    select(start < stop, start, UNBOUNDED.runtime())
}

/// Whether every query of `q0..=q1` sees every key of `start..stop`; may say no
/// where many bands meet.
#[cube]
pub(crate) fn is_full(
    row: &Row,
    table: &Array<u32>,
    q0: i32,
    q1: i32,
    start: i32,
    stop: i32,
    #[comptime] plan: Blueprint,
) -> bool {
    let mut reach = start;
    if comptime!(plan.program.is_some()) {
        let bands = row.closed.len();
        // Each round passes at least one meeting of two bands.
        let rounds = comptime!(if bands < 3 { bands } else { 3 });
        #[unroll]
        for _ in 0..rounds {
            #[unroll]
            for i in 0..bands {
                reach = extend(*row.closed.index(i), q0, q1, reach);
            }
        }
    } else {
        for i in row.from..row.to {
            reach = extend(read(table, row, i), q0, q1, reach);
        }
    }
    reach >= stop
}

#[cube]
fn extend(band: Limits, q0: i32, q1: i32, reach: i32) -> i32 {
    let start = max(band.lo, q1 + band.first);
    let stop = min(band.hi, q0 + band.end);
    select(start <= reach, max(reach, stop), reach)
}

/// Sets `seen[i]` to 1 for each of the pairs of the grid at `(q, k)` that is in a band, the
/// others to 0.
#[cube]
pub(crate) fn mark_seen(
    seen: &mut Array<u32>,
    row: &Row,
    table: &Array<u32>,
    q: i32,
    k: i32,
    #[comptime] plan: Blueprint,
    #[comptime] grid: Grid,
) {
    let pairs = comptime!((grid.rows * grid.cols) as usize);
    #[unroll]
    for i in 0..pairs {
        seen[i] = 0u32;
    }
    if comptime!(plan.program.is_some()) {
        let bands = row.closed.len();
        #[unroll]
        for i in 0..bands {
            mark_band(seen, *row.closed.index(i), q, k, grid);
        }
    } else {
        for i in row.from..row.to {
            mark_band(seen, read(table, row, i), q, k, grid);
        }
    }
}

/// The pairs that one thread owns: `rows` queries `q_step` apart, and `cols` keys in runs of
/// `k_run` whose starts are `k_step` apart. Pair `i` is of query `i / cols` and key `i % cols`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Grid {
    pub(crate) rows: u32,
    pub(crate) q_step: u32,
    pub(crate) cols: u32,
    pub(crate) k_step: u32,
    pub(crate) k_run: u32,
}

#[cube]
fn mark_band(seen: &mut Array<u32>, band: Limits, q: i32, k: i32, #[comptime] grid: Grid) {
    let rows = comptime!(grid.rows);
    let cols = comptime!(grid.cols);
    #[unroll]
    for c in 0..cols {
        let key = k + comptime!((c / grid.k_run * grid.k_step + c % grid.k_run) as i32);
        let inside = key >= band.lo && key < band.hi;
        #[unroll]
        for r in 0..rows {
            let ahead = key - (q + comptime!((r * grid.q_step) as i32));
            let at = comptime!((r * cols + c) as usize);
            seen[at] = select(
                inside && ahead >= band.first && ahead < band.end,
                1u32.runtime(),
                seen[at],
            );
        }
    }
}

/// Whether a row program is small enough to live in registers.
pub(crate) fn fits_registers(program: &RowProgram) -> bool {
    program.bands.len() <= 64 && program.atoms.len() <= 64
}
