//! Pattern → the form of a layer: one rule that says which blocks any row reads.
//!
//! In:  a pattern at one stage. Out: the distances at which every row reads earlier blocks, the
//! number of first blocks that all rows read, and the bits of the row number that are cleared; or
//! nothing, where no such rule holds for all rows.
//!
//! Why this is exact: the form is guessed from a few rows, then compared with the actual columns at
//! both ends of every stretch. Stretches are cut where limits of the pattern or of the guess pass
//! one another. Within a stretch, both sides have constant numbers of ranges whose ends are fixed
//! or move with the row; so if they agree at both ends, they agree in between.

use crate::classify::columns;
use crate::stretch::{self, Cuts, Stretch};
use butterfly_ir::band::merge;
use butterfly_ir::{Context, Pattern, rows};

/// The blocks that row `b` reads: the union of three kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    /// The blocks `b - s`, for each distance `s` in one of these ranges `start..stop`, which are
    /// disjoint and sorted.
    pub(crate) back: Vec<(u32, u32)>,
    /// The blocks before this number, up to `b`.
    pub(crate) first: u32,
    /// The block `b` with one of these bits cleared, for each that is set in `b`.
    pub(crate) bits: Vec<u32>,
}

/// The form of all rows, and the stretches on which it was found to hold; `None` if there is none.
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
    /// The blocks that row `b` reads, as half-open ranges.
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

    /// Most rows that read the same block, of `rows` rows in all. That block is block 0: any other
    /// block has fewer rows after it, and is reached by clearing a bit only where that bit is
    /// clear in its own number, as all bits of 0 are.
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

/// Guesses a form from a few rows far from the first.
fn guess(pattern: &Pattern, context: &Context) -> Option<Form> {
    let rows = context.rows();
    let mask = stretch::bits(pattern, context)?;
    let far = [rows, rows - rows / 100, rows - rows / 4, rows / 2 + 3];
    let samples = far.map(|b| (b.min(rows) - 1) & !mask);
    let of = samples.map(|b| (b, actual(pattern, context, b)));
    // A range that starts at block 0 and ends long before the row is taken to be fixed.
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
