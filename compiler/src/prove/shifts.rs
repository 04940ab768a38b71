//! Composes layers in which every row steps back by the same distances.
//!
//! In:  forms without bits. Out: the number of pairs reached after each layer.
//!
//! All blocks on a path from `b` back to `c` lie between the two, so no step of it can leave the
//! sequence. Hence `b` reaches `c` exactly if `b - c` is a sum of distances, at most one from each
//! layer. First blocks that all rows read need no further composition: a path through one of them
//! leads to a block before it, which all rows read as well.

use super::form::Form;
use butterfly_ir::band::merge;

/// Most ranges that are combined, over all layers.
const WORK: usize = 1 << 27;

/// The number of pairs `c <= b` reached after each layer; `order` holds each layer's index in
/// `forms`. `None` if it would take too long.
pub(super) fn pairs(forms: &[Form], order: &[usize], rows: u32) -> Option<Vec<u64>> {
    let mut reach = Reach {
        rows,
        back: vec![(0, 1)],
        first: 0,
    };
    let mut work = 0;
    super::compose(order, super::all_pairs(rows), |stage| {
        let form = &forms[stage];
        work += reach.back.len() * (form.back.len() + 1);
        let next = (work <= WORK).then(|| reach.through(form))?;
        let changed = next != reach;
        reach = next;
        Some((reach.pairs(), changed))
    })
}

#[derive(PartialEq, Eq)]
struct Reach {
    rows: u32,
    /// Distances `start..stop` at which earlier blocks are reached, at most `rows`.
    back: Vec<(i32, i32)>,
    /// Blocks before this number are reached by every later block.
    first: u32,
}

impl Reach {
    fn through(&self, form: &Form) -> Self {
        let rows = i64::from(self.rows);
        let clip = |x: i64| x.min(rows) as i32;
        let mut back = self.back.clone();
        for (start, stop) in &form.back {
            let moved = self.back.iter().map(|x| {
                let (from, to) = (
                    i64::from(x.0) + i64::from(*start),
                    i64::from(x.1) + i64::from(*stop) - 1,
                );
                (clip(from), clip(to))
            });
            back.extend(moved.filter(|x| x.0 < x.1));
        }
        Self {
            rows: self.rows,
            back: merge(back),
            first: self.first.max(form.first).min(self.rows),
        }
    }

    fn pairs(&self) -> u64 {
        let (rows, first) = (u64::from(self.rows), u64::from(self.first));
        // At distance d, rows - first - d rows reach a block that is not one of the first.
        let beyond = self.back.iter().map(|(start, stop)| {
            let left = |d: i32| (rows - first).saturating_sub(d as u64);
            let (from, to) = (left(*start), left(*stop));
            from * (from + 1) / 2 - to * (to + 1) / 2
        });
        beyond.sum::<u64>() + first * rows - first * first.saturating_sub(1) / 2
    }
}
