//! The bands of a row on the device: `butterfly_ir::rows::RowExpressions` evaluated in registers,
//! or a table in memory.

use super::blueprint::Blueprint;
use butterfly_ir::rows::{Expr, Function, Input};
use butterfly_ir::{RowProgram, band::UNBOUNDED, scalar};
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// The limits of a `butterfly_ir::Band` on the device.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Limits {
    lo: i32,
    hi: i32,
    first: i32,
    end: i32,
}

/// The bands of one row: `closed`, whose number is known at compile time, or the entries `from..to`
/// of a table.
#[derive(CubeType)]
pub(crate) struct Row {
    closed: Sequence<Limits>,
    from: u32,
    to: u32,
    kv_len: i32,
}

/// The bands of row `b` for kv head `kv_head` of a sequence with `kv_len` keys.
#[cube]
pub(crate) fn of_block(
    params: &Array<u32>,
    offsets: &Array<u32>,
    b: u32,
    kv_head: u32,
    sequence: u32,
    kv_len: u32,
    #[comptime] blueprint: Blueprint,
) -> Row {
    let mut closed = Sequence::<Limits>::new();
    let mut from = 0u32.runtime();
    let mut to = 0u32.runtime();
    if comptime!(blueprint.rows_in_registers.is_some()) {
        let rows = comptime!(blueprint.rows_in_registers.clone().unwrap_or_default());
        let mut values = Sequence::<u32>::new();
        let count = comptime!(rows.values.len());
        #[unroll]
        for i in 0..count {
            let value = comptime!(rows.values[i]);
            let next = compute(params, &values, b, kv_head, kv_len, value);
            values.push(next);
        }
        let bands = comptime!(rows.bands.len());
        #[unroll]
        for i in 0..bands {
            let lo = comptime!(rows.bands[i].lo.index());
            let hi = comptime!(rows.bands[i].hi.index());
            closed.push(Limits {
                lo: i32::cast_from(*values.index(lo)),
                hi: i32::cast_from(*values.index(hi)),
                first: comptime!(rows.bands[i].first).runtime(),
                end: comptime!(rows.bands[i].end).runtime(),
            });
        }
    } else {
        let row =
            sequence * params[scalar::SEQUENCE_ROWS] + kv_head * params[scalar::HEAD_ROWS] + b
                - params[scalar::FIRST_ROW];
        from = offsets[row as usize];
        to = offsets[(row + 1) as usize];
    }
    Row {
        closed,
        from,
        to,
        kv_len: i32::cast_from(kv_len),
    }
}

/// Computes one value of the expressions from earlier ones.
#[cube]
fn compute(
    params: &Array<u32>,
    values: &Sequence<u32>,
    b: u32,
    kv_head: u32,
    kv_len: u32,
    #[comptime] value: Expr,
) -> u32 {
    match comptime!(value) {
        Expr::Constant(number) => number.runtime(),
        Expr::Input(input) => match comptime!(input) {
            Input::Block => b,
            Input::KvHead => kv_head,
            Input::KvLen => kv_len,
            Input::Blocks => params[scalar::BLOCKS],
            Input::Index => params[scalar::INDEX],
            Input::Prompt => params[scalar::PROMPT],
        },
        Expr::Apply(function, x, y) => {
            let x = *values.index(comptime!(x.index()));
            let y = *values.index(comptime!(y.index()));
            match comptime!(function) {
                Function::Add => x + y,
                Function::Subtract => x - y,
                Function::Multiply => x * y,
                Function::Divide => x / y,
                Function::Remainder => x % y,
                Function::Minimum => min(x, y),
                Function::Maximum => max(x, y),
                Function::Xor => x ^ y,
                Function::ShiftLeft => x << y,
                Function::ShiftRight => x >> y,
            }
        }
        Expr::Digits { of, radix } => {
            let mut rest = *values.index(comptime!(of.index()));
            let mut digits = 0u32.runtime();
            while rest > 0u32 {
                rest /= radix;
                digits += 1u32;
            }
            digits
        }
        Expr::Power { radix, exponent } => {
            let mut power = 1u32.runtime();
            for _ in 0..*values.index(comptime!(exponent.index())) {
                power *= radix;
            }
            power
        }
        Expr::Reversed(x) => {
            let x = *values.index(comptime!(x.index()));
            x.reverse_bits()
        }
        Expr::Choose {
            less,
            then,
            otherwise,
        } => {
            let x = *values.index(comptime!(less[0].index()));
            let y = *values.index(comptime!(less[1].index()));
            let then = *values.index(comptime!(then.index()));
            let otherwise = *values.index(comptime!(otherwise.index()));
            select(x < y, then, otherwise)
        }
    }
}

/// Entry `i` of the table, limited to keys of `0..kv_len`.
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

/// The first key at or after `cursor` that a query of `q0..=q1` may see; `UNBOUNDED` if there is
/// none.
#[cube]
pub(crate) fn next_key(
    row: &Row,
    table: &Array<u32>,
    q0: i32,
    q1: i32,
    cursor: i32,
    #[comptime] blueprint: Blueprint,
) -> i32 {
    let mut next = UNBOUNDED.runtime();
    if comptime!(blueprint.rows_in_registers.is_some()) {
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

/// Whether every query of `q0..=q1` sees every key of `start..stop`. May return false for such keys
/// if it takes several bands to cover them; true is always right.
#[cube]
pub(crate) fn is_full(
    row: &Row,
    table: &Array<u32>,
    q0: i32,
    q1: i32,
    start: i32,
    stop: i32,
    #[comptime] blueprint: Blueprint,
) -> bool {
    let mut reach = start;
    if comptime!(blueprint.rows_in_registers.is_some()) {
        let bands = row.closed.len();
        // Each round extends the covered range by at least one band, if any band continues it.
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

/// Sets `seen[i]` to 1 for each pair `i` of the grid at `(q, k)` that is in a band, and to 0 for
/// the others.
#[cube]
pub(crate) fn mark_seen(
    seen: &mut Array<u32>,
    row: &Row,
    table: &Array<u32>,
    q: i32,
    k: i32,
    #[comptime] blueprint: Blueprint,
    #[comptime] grid: Grid,
) {
    let pairs = comptime!((grid.rows * grid.cols) as usize);
    #[unroll]
    for i in 0..pairs {
        seen[i] = 0u32;
    }
    if comptime!(blueprint.rows_in_registers.is_some()) {
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

/// Whether a row program is small enough to be evaluated in registers.
pub(crate) fn fits_registers(program: &RowProgram) -> bool {
    program.bands.len() <= 64 && program.atoms.len() <= 64
}
