//! Pattern → stretches: groups of rows that differ only in their position.
//!
//! In:  a pattern and a context. Out: stretches that together contain every row exactly once.
//! Passes that check or count rows then look at the first and last row of each stretch only.
//!
//! Each limit of a closed form's bands is either a fixed key position or moves with the row, by
//! one block per row. A comparison of two limits can therefore change its result only at a
//! *passing*: a row at which a moving limit passes a fixed one. The rows at and next to a passing
//! become stretches of one row each; the rows between two passings form one stretch.
//!
//! Within a stretch, every row has the same number of ranges of columns, and each end of a range
//! is fixed or moves with the row. So every count of a row is affine in the row number: it is
//! largest and smallest at the ends of the stretch and, where it is equal at both ends, constant.
//!
//! For partner rules that flip a bit, this holds only among rows in which that bit has the same
//! value. Rows are then split further, by the value of these bits.

use crate::resolve;
use butterfly_ir::band::UNBOUNDED;
use butterfly_ir::{Atom, Context, PartnerRule, Pattern, RowProgram, rows, stage};
use std::collections::BTreeSet;

/// Up to this many rows, each row is a stretch of its own.
pub const EVERY: u32 = 1024;

/// Most rows that are processed one by one, where stretches cannot be computed.
pub const MOST: u64 = 1 << 22;

/// Most flipped bits by which rows are split: each doubles the number of stretches.
const BITS: usize = 6;

/// Rows on either side of a passing that become stretches of their own: one because limits are
/// rounded to blocks, one because some limits count from the block's last query.
const MARGIN: i64 = 2;

/// A group of rows that differ only in their position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first row.
    pub first: u32,
    /// The last row.
    pub last: u32,
    /// The number of rows; less than `last - first + 1` where rows are split by bits.
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

    /// Whether the stretch contains every row from its first to its last.
    pub fn is_whole(&self) -> bool {
        self.rows == u64::from(self.last - self.first) + 1
    }

    /// The first row and, if it is another one, the last.
    pub fn ends(&self) -> impl Iterator<Item = u32> + use<> {
        let last = (self.last > self.first).then_some(self.last);
        std::iter::once(self.first).chain(last)
    }
}

/// The rows cannot be grouped into stretches, and are too many to process one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rows} rows of blocks are too many to look at one by one, and this pattern has no closed form; at most {most} can be: give fewer tokens or a larger block"
)]
pub struct TooManyRows {
    /// The number of block rows.
    pub rows: u32,
    /// The largest number that can be processed one by one.
    pub most: u64,
}

/// Further limits at which stretches have to end, in blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts {
    /// Fixed positions.
    pub(crate) still: Vec<i64>,
    /// Positions that move with the row, relative to it.
    pub(crate) moving: Vec<i64>,
}

/// The stretches of `pattern`, in the order of their first rows.
///
/// # Errors
/// [`TooManyRows`] if each row has to be a stretch of its own and there are too many.
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

/// Checks that the rows are few enough to be processed one by one.
///
/// # Errors
/// [`TooManyRows`] if they are not.
pub(crate) fn one_by_one(pattern: &Pattern, context: &Context) -> Result<(), TooManyRows> {
    let rows = context.rows();
    if rows <= EVERY {
        return Ok(());
    }
    // The bands of a row are compared with one another, so many bands allow for fewer rows.
    let bands = rows::row(pattern, context, rows - 1).len() as u64;
    let most = MOST / (1 + (bands / 8).pow(2));
    match u64::from(rows) <= most {
        true => Ok(()),
        false => Err(TooManyRows { rows, most }),
    }
}

/// The stretches by the pattern's closed form, ending also at `cuts`. `None` where there is no
/// closed form, where partners are random, or where more than `BITS` bits are flipped.
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

/// The bits of a row number that the pattern's partners flip at this stage, as a mask. `None` in
/// the same cases as [`symbolic`].
pub(crate) fn bits(pattern: &Pattern, context: &Context) -> Option<u32> {
    let program = resolve::closed_form(pattern)?;
    Some(Limits::of(&program, context, &Cuts::default())?.mask)
}

/// The limits of all bands, in tokens.
struct Limits {
    /// Fixed positions.
    still: BTreeSet<i64>,
    /// Positions that move with the row, relative to its first token or to a query.
    moving: BTreeSet<i64>,
    /// Bits of the row number by which rows are split.
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
                Atom::Tail { tokens } => {
                    limits.still.insert(blocks(context.tail(tokens)));
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

    /// How many blocks before its row the partner is, or `None` where that differs from row to
    /// row. Adds the bit that the rule flips, if any, to the mask.
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

    /// Rows that are stretches of their own.
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

    /// Every combination of the bits in the mask.
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
    // The last member is the first one when numbers are counted down from `TOP`.
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

/// How many numbers below `end` have the bits `value` under `mask`; `end` is below 2^40.
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
