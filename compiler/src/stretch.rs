//! Pattern → stretches: runs of rows that differ in nothing but where they stand.
//!
//! In:  a pattern and a context. Out: stretches that hold every row once.
//!
//! The limits of a closed form's bands are constants or move with the row, one block a
//! row. Whatever is compared, counted or rounded to blocks keeps its outcome between the
//! rows at which a limit that moves passes one that does not: these rows and their
//! neighbours stand alone, and the rows between two of them make a stretch. In a stretch
//! the columns of a row are the same number of ranges, each end of which stands still or
//! moves with the row; so what is counted of a row is affine in its number, has its
//! extremes at the first and last row, and is the same throughout where it is the same at
//! both. Rules that flip a bit behave so among the rows in which the bit is set, and among
//! those in which it is not: these make stretches of their own.

use crate::resolve;
use butterfly_ir::band::UNBOUNDED;
use butterfly_ir::{Atom, Context, PartnerRule, Pattern, RowProgram, rows, stage};
use std::collections::BTreeSet;

/// Numbers of rows up to which each row stands alone.
pub const EVERY: u32 = 1024;

/// Most rows that are looked at one by one, where a pattern has no closed form.
pub const MOST: u64 = 1 << 22;

/// Most bits whose combinations are told apart.
const BITS: usize = 6;

/// Rows on either side of a passing that stand alone: one for the rounding to blocks, one
/// for limits that are compared with the block's last query.
const MARGIN: i64 = 2;

/// A run of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first row.
    pub first: u32,
    /// The last row.
    pub last: u32,
    /// How many there are; fewer than from first to last where bits tell rows apart.
    pub rows: u64,
}

impl Stretch {
    fn row(b: u32) -> Self {
        Self {
            first: b,
            last: b,
            rows: 1,
        }
    }

    /// Every row from the first to the last.
    pub fn is_whole(&self) -> bool {
        self.rows == u64::from(self.last - self.first) + 1
    }

    /// The rows to look at: the first, and the last if it is another.
    pub fn ends(&self) -> impl Iterator<Item = u32> + use<> {
        let last = (self.last > self.first).then_some(self.last);
        std::iter::once(self.first).chain(last)
    }
}

/// There is no closed form, and the rows are too many to look at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rows} rows of blocks are too many to look at one by one, and this pattern has no closed form; at most {most} can be: give fewer tokens or a larger block"
)]
pub struct TooManyRows {
    /// Rows of blocks.
    pub rows: u32,
    /// How many can be looked at.
    pub most: u64,
}

/// Limits beside those of the pattern at which stretches end, in blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts {
    /// Those that stand still.
    pub(crate) still: Vec<i64>,
    /// Those that move with the row, relative to it.
    pub(crate) moving: Vec<i64>,
}

/// The stretches of `pattern`, in the order of their first rows.
///
/// # Errors
/// [`TooManyRows`].
pub fn lower(pattern: &Pattern, context: &Context) -> Result<Vec<Stretch>, TooManyRows> {
    let rows = context.rows();
    if rows > EVERY
        && let Some(stretches) = symbolic(pattern, context, &Cuts::default())
    {
        return Ok(stretches);
    }
    one_by_one(pattern, context)?;
    Ok((0..rows).map(Stretch::row).collect())
}

/// Whether every row can be looked at.
///
/// # Errors
/// [`TooManyRows`].
pub(crate) fn one_by_one(pattern: &Pattern, context: &Context) -> Result<(), TooManyRows> {
    let rows = context.rows();
    if rows <= EVERY {
        return Ok(());
    }
    // Bands of a row are compared with one another.
    let bands = rows::row(pattern, context, rows - 1).len() as u64;
    let most = MOST / (1 + (bands / 8).pow(2));
    match u64::from(rows) <= most {
        true => Ok(()),
        false => Err(TooManyRows { rows, most }),
    }
}

/// The same, ending also at `cuts`; `None` where the pattern has no closed form.
pub(crate) fn symbolic(pattern: &Pattern, context: &Context, cuts: &Cuts) -> Option<Vec<Stretch>> {
    let limits = Limits::of(&resolve::closed_form(pattern)?, context, cuts)?;
    let rows = context.rows();
    let alone = limits.alone(context);
    let mut stretches: Vec<Stretch> = alone.iter().map(|b| Stretch::row(*b)).collect();
    let ends = alone.iter().copied().map(u64::from);
    let ends: Vec<u64> = ends.chain([u64::from(rows)]).collect();
    for gap in ends.windows(2) {
        for value in limits.values() {
            stretches.extend(members(limits.mask, value, gap[0] + 1, gap[1]));
        }
    }
    stretches.sort_unstable_by_key(|stretch| stretch.first);
    Some(stretches)
}

/// The bits that the pattern's partners flip at this stage.
pub(crate) fn bits(pattern: &Pattern, context: &Context) -> Option<u32> {
    let program = resolve::closed_form(pattern)?;
    Some(Limits::of(&program, context, &Cuts::default())?.mask)
}

/// What the limits of all bands are made of, in tokens.
struct Limits {
    still: BTreeSet<i64>,
    moving: BTreeSet<i64>,
    /// Bits of the row's number that matter.
    mask: u32,
}

impl Limits {
    fn of(program: &RowProgram, context: &Context, cuts: &Cuts) -> Option<Self> {
        let block = i64::from(context.block);
        let blocks = |count: u32| i64::from(count) * block;
        let mut limits = Self {
            still: [0, i64::from(context.kv_len), i64::from(UNBOUNDED)].into(),
            moving: [0, block].into(),
            mask: 0,
        };
        limits.still.extend(cuts.still.iter().map(|x| x * block));
        limits.moving.extend(cuts.moving.iter().map(|x| x * block));
        for atom in &program.atoms {
            match *atom {
                Atom::Local { before, after } => {
                    limits
                        .moving
                        .extend([-blocks(before), blocks(after) + block]);
                }
                Atom::Partner { .. } => {
                    let back = limits.partner(atom, context)? * block;
                    limits.moving.extend([-back, block - back]);
                }
                Atom::Sink { blocks: count }
                | Atom::Columns { blocks: count }
                | Atom::Rows { blocks: count } => {
                    limits.still.insert(blocks(count));
                }
                Atom::Tokens { tokens } => {
                    limits.still.insert(i64::from(tokens));
                }
            }
        }
        for band in &program.bands {
            let ends = [band.first, band.end].map(i64::from);
            limits
                .moving
                .extend(ends.iter().filter(|end| end.abs() < i64::from(UNBOUNDED)));
        }
        (limits.mask.count_ones() as usize <= BITS).then_some(limits)
    }

    /// How many blocks back the partner is; `None` where that differs from row to row.
    fn partner(&mut self, atom: &Atom, context: &Context) -> Option<i64> {
        let Atom::Partner {
            rule,
            radix,
            offset,
            step,
        } = *atom
        else {
            return None;
        };
        let blocks = context.blocks();
        let width = stage::width(blocks, radix);
        let at = context.index % stage::stage_count(rule, blocks, radix);
        let digit = stage::digit(rule, at, offset, width);
        let bit = match rule {
            PartnerRule::CausalShift => {
                return Some(i64::from(step) * i64::from(radix).pow(digit));
            }
            PartnerRule::FixedStride => return Some(1),
            PartnerRule::Random => return None,
            PartnerRule::Xor | PartnerRule::Benes => digit,
            PartnerRule::BitReversal => width - 1 - digit,
        };
        self.mask |= 1u32.checked_shl(bit)?;
        Some(1 << bit)
    }

    /// Rows that stand alone.
    fn alone(&self, context: &Context) -> BTreeSet<u32> {
        let (block, rows) = (i64::from(context.block), i64::from(context.rows()));
        let mut alone: BTreeSet<u32> = [0, 1, rows - 2, rows - 1]
            .into_iter()
            .filter_map(|b| u32::try_from(b).ok())
            .filter(|b| *b < context.rows())
            .collect();
        for still in &self.still {
            for moving in &self.moving {
                let passing = (still - moving).div_euclid(block);
                let near = (passing - MARGIN).max(0)..(passing + MARGIN + 1).min(rows);
                alone.extend(near.filter_map(|b| u32::try_from(b).ok()));
            }
        }
        alone
    }

    /// Every combination of the bits that matter.
    fn values(&self) -> impl Iterator<Item = u32> {
        let mask = self.mask;
        // The next subset of the mask, until it wraps to the empty one.
        let next = move |value: &u32| match value.wrapping_sub(mask) & mask {
            0 => None,
            next => Some(next),
        };
        std::iter::successors(Some(0), next)
    }
}

/// The stretch of the rows `start..end` whose bits under `mask` are `value`.
fn members(mask: u32, value: u32, start: u64, end: u64) -> Option<Stretch> {
    let (mask, value) = (u64::from(mask), u64::from(value));
    let rows = below(mask, value, end) - below(mask, value, start.min(end));
    let first = next(mask, value, start);
    // Counted from above, the last is the first.
    const TOP: u64 = (1 << 40) - 1;
    let last = (rows > 0).then(|| TOP - next(mask, !value & mask, TOP - (end - 1)))?;
    Some(Stretch {
        first: u32::try_from(first).ok()?,
        last: u32::try_from(last).ok()?,
        rows,
    })
}

/// The first number from `start` on whose bits under `mask` are `value`.
fn next(mask: u64, value: u64, start: u64) -> u64 {
    let mut number = start;
    loop {
        let wrong = (number ^ value) & mask;
        let Some(high) = wrong.checked_ilog2() else {
            return number;
        };
        let low = (1 << high) - 1;
        if value >> high & 1 == 1 {
            return ((number | (1 << high)) & !low) | (value & low);
        }
        number = ((number >> high) + 1) << high;
    }
}

/// How many numbers below `end` have the bits `value` under `mask`.
fn below(mask: u64, value: u64, end: u64) -> u64 {
    let mut count = 0;
    for bit in (0..40).rev() {
        let free = |mask: u64| 1 << (bit - (mask & ((1 << bit) - 1)).count_ones());
        let (matters, wanted, given) = (mask >> bit & 1 == 1, value >> bit & 1, end >> bit & 1);
        if given == 1 && (!matters || wanted == 0) {
            count += free(mask);
        }
        if matters && wanted != given {
            return count;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_those_counted_one_by_one() {
        for (mask, start, end) in [
            (0, 3, 50),
            (1, 0, 9),
            (4, 5, 5),
            (0b1010, 7, 100),
            (32, 9, 31),
        ] {
            for value in 0..=mask {
                if value & !mask != 0 {
                    continue;
                }
                let all: Vec<u32> = (start..end).filter(|b| b & mask == value).collect();
                let got = members(mask, value, start.into(), end.into());
                let want = all.first().map(|first| Stretch {
                    first: *first,
                    last: all[all.len() - 1],
                    rows: all.len() as u64,
                });
                assert_eq!(got, want, "{mask:b} {value:b} {start}..{end}");
            }
        }
    }
}
