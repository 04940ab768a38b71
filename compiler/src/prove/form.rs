//! Pattern → the form of a layer, where its rows have one that is the same for all.
//!
//! In:  a pattern at one stage. Out: how far back blocks are read, wherever the row
//! stands; which first blocks are read by all; which bits of the row's number are cleared.
//!
//! Invariant: the form is guessed from a few rows and then compared with the rows of every
//! stretch, the stretches ending also where a limit of the guess passes another. Within
//! one, both are the same numbers of ranges with ends that stand still or move with the
//! row, so that what agrees at both of its ends agrees throughout.

use crate::classify::columns;
use crate::stretch::{self, Cuts, Stretch};
use butterfly_ir::band::merge;
use butterfly_ir::{Context, Pattern, rows};

/// What row `b` reads, in blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    /// Blocks `b - s` for `s` in one of `start..stop`, disjoint and in order.
    pub(crate) back: Vec<(u32, u32)>,
    /// Blocks before this one, up to `b`.
    pub(crate) first: u32,
    /// `b` with one of these bits cleared, where it is set.
    pub(crate) bits: Vec<u32>,
}

/// The form of the rows of `context`, and the stretches on which it was found to hold.
pub(crate) fn lower(pattern: &Pattern, context: &Context) -> Option<(Form, Vec<Stretch>)> {
    let form = guess(pattern, context)?;
    let ends = form.back.iter().flat_map(|x| [x.0, x.1]).map(i64::from);
    let bits = form.bits.iter().map(|bit| 1i64 << bit);
    let cuts = Cuts {
        still: vec![i64::from(form.first)],
        moving: ends.chain(bits).flat_map(|x| [-x, 1 - x]).collect(),
    };
    let stretches = stretch::symbolic(pattern, context, &cuts)?;
    let holds = |b: u32| form.columns(b) == actual(pattern, context, b);
    let all = stretches.iter().all(|stretch| stretch.ends().all(holds));
    all.then_some((form, stretches))
}

fn actual(pattern: &Pattern, context: &Context, b: u32) -> Vec<(u32, u32)> {
    columns(&rows::row(pattern, context, b), context, b)
}

impl Form {
    /// The blocks that row `b` reads, as ranges.
    fn columns(&self, b: u32) -> Vec<(u32, u32)> {
        let back = self.back.iter().filter(|x| x.0 <= b);
        let back = back.map(|x| ((b + 1).saturating_sub(x.1), b - x.0 + 1));
        let first = (self.first > 0).then(|| (0, self.first.min(b + 1)));
        let bits = self.bits.iter().filter(|bit| b >> **bit & 1 == 1);
        let bits = bits.map(|bit| (b - (1 << bit), b - (1 << bit) + 1));
        let ranges = back.chain(first).chain(bits);
        let merged = merge(
            ranges
                .map(|(start, stop)| (start as i32, stop as i32))
                .collect(),
        );
        merged
            .into_iter()
            .map(|(start, stop)| (start as u32, stop as u32))
            .collect()
    }

    /// Most rows that read one block, of `rows`: those that read block 0. Every other
    /// block has fewer rows behind it, and no bit that is clear in it and set in 0.
    pub(crate) fn max_in_degree(&self, rows: u32) -> u32 {
        if self.first > 0 {
            return rows;
        }
        let back = self.back.iter().map(|x| x.1.min(rows).saturating_sub(x.0));
        let is_back = |by: u32| self.back.iter().any(|x| x.0 <= by && by < x.1);
        let bits = self.bits.iter().map(|bit| 1u32 << bit);
        let bits = bits.filter(|by| *by < rows && !is_back(*by)).count() as u32;
        back.sum::<u32>() + bits
    }
}

/// A form that fits a few rows far from the first.
fn guess(pattern: &Pattern, context: &Context) -> Option<Form> {
    let rows = context.rows();
    let mask = stretch::bits(pattern, context)?;
    let far = [rows, rows - rows / 100, rows - rows / 4, rows / 2 + 3];
    let samples = far.map(|b| (b.min(rows) - 1) & !mask);
    let of = samples.map(|b| (b, actual(pattern, context, b)));
    // What begins with the first block and ends long before the row stands still.
    let first = of.iter().map(|(_, ranges)| match ranges.first() {
        Some((0, stop)) if *stop <= rows / 4 => *stop,
        Some(_) | None => 0,
    });
    let first = first.min().unwrap_or_default();
    let mut back = Vec::new();
    for (b, ranges) in &of {
        let ranges = ranges
            .iter()
            .filter(|range| range.1 > first && range.0 <= *b);
        back.extend(ranges.map(|x| {
            (
                (b + 1).saturating_sub(x.1) as i32,
                (b + 1 - x.0.max(first).min(*b)) as i32,
            )
        }));
    }
    let back = merge(back)
        .into_iter()
        .map(|(start, stop)| (start as u32, stop as u32));
    let mut form = Form {
        back: back.collect(),
        first,
        bits: Vec::new(),
    };
    let bits = (0..32).filter(|bit| mask >> bit & 1 == 1);
    let is_read = |bit: &u32| {
        let b = samples
            .map(|b| b | 1 << bit)
            .into_iter()
            .find(|b| *b < rows);
        b.is_some_and(|b| actual(pattern, context, b) != form.columns(b))
    };
    form.bits = bits.filter(is_read).collect();
    Some(form)
}
