//! Closed form by rows → closed form by columns: which queries see the keys of a block.
//!
//! In:  a [`RowProgram`] that passes its check, the block size. Out: [`RowExpressions`] whose input
//! `Block` is a kv block, and whose bands bound queries; their union holds a (query, key) pair of
//! the column exactly when the bands of the rows do. Kernels for the gradients of k and v need this
//! form.
//!
//! A limit of a key range is monotone in the row, so it turns into a limit on the queries: the keys
//! of block `c` are at or after the start of `local(before)` in the rows up to `c + before`.
//! Partners are the exception. If a band lies within the partner's block, the rows are the blocks
//! that have `c` as their partner; there is at most one, which the inverse of the rule gives.

use super::band::{Band, UNBOUNDED};
use super::expr::{BandLimits, Builder, ExprId, Function, Input, RowExpressions};
use super::lower::{ABSENT, inputs, tokens};
use super::program::{Atom, Bound, RowProgram, SymbolicBand};
use super::stage::PartnerRule;
use super::stream::Stream;
use crate::sees::Context;

/// One band of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The queries that see a key: a [`Band`] with the roles of query and key exchanged.
    pub queries: Band,
    /// The keys that the band holds, `first..end` in tokens.
    pub keys: (i32, i32),
}

impl Column {
    /// Whether query `q` sees key `k` of the column's block.
    pub fn contains(&self, q: i32, k: i32) -> bool {
        let (start, end) = self.keys;
        start <= k && k < end && self.queries.contains(k, q)
    }
}

impl RowExpressions {
    /// The bands of column `c` for kv head `kv_head`, without empty ones. The expressions have to
    /// be made by [`transpose`].
    pub fn columns(&self, c: u32, kv_head: u32, context: &Context) -> Vec<Column> {
        let values = self.evaluate(&inputs(c, kv_head, context));
        let position = |x: ExprId| values[x.index()].cast_signed();
        let columns = self.bands.iter().map(|limits| Column {
            queries: limits.known(&values),
            keys: limits.keys.map_or((0, UNBOUNDED), |[first, end]| {
                (position(first), position(end))
            }),
        });
        columns
            .filter(|column| !column.queries.is_empty())
            .collect()
    }
}

/// The bands of `program` by columns of `block` tokens; `None` if a partner rule has no inverse, as
/// `random`, or a band is limited by a partner's block without lying within it.
pub fn transpose(program: &RowProgram, block: u32) -> Option<RowExpressions> {
    let mut builder = Builder::default();
    let mut bands = Vec::with_capacity(program.bands.len());
    for band in &program.bands {
        bands.push(builder.column(program, band, block)?);
    }
    Some(builder.finish(bands, Stream::TOKENS))
}

/// The limits of a column under construction.
struct Region {
    lo: ExprId,
    hi: ExprId,
    keys: [ExprId; 2],
}

impl Builder {
    fn column(
        &mut self,
        program: &RowProgram,
        band: &SymbolicBand,
        block: u32,
    ) -> Option<BandLimits> {
        let mut region = Region {
            lo: self.constant(0),
            hi: self.input(Input::KvLen),
            keys: [self.constant(0), self.constant(UNBOUNDED as u32)],
        };
        let whole = region.keys;
        let atom = |i: u32| &program.atoms[i as usize];
        for bound in &band.lo {
            match *bound {
                Bound::Start(i) => self.not_before_start(&mut region, atom(i), block),
                Bound::Stop(i) => self.not_before_stop(&mut region, atom(i), block)?,
            }
        }
        for bound in &band.hi {
            match *bound {
                Bound::Stop(i) => self.before_stop(&mut region, atom(i), block),
                Bound::Start(i) => self.before_start(&mut region, atom(i), block)?,
            }
        }
        for (i, atom) in program.atoms.iter().enumerate() {
            let i = i as u32;
            let starts = band.lo.contains(&Bound::Start(i));
            let stops = band.hi.contains(&Bound::Stop(i));
            if let Atom::Partner { .. } = atom
                && (starts || stops)
            {
                if !(starts && stops) {
                    return None;
                }
                self.within_partner(&mut region, atom, block)?;
            }
        }
        // `k < q + end` is `q > k - end`.
        let first = if band.end >= UNBOUNDED {
            -UNBOUNDED
        } else {
            1 - band.end
        };
        let end = if band.first <= -UNBOUNDED {
            UNBOUNDED
        } else {
            1 - band.first
        };
        Some(BandLimits {
            lo: region.lo,
            hi: self.in_heads(&band.heads, region.hi),
            first,
            end,
            keys: (region.keys != whole).then_some(region.keys),
        })
    }

    /// BandLimits the region to rows in which the column's keys are at or after the start of `atom`.
    fn not_before_start(&mut self, region: &mut Region, atom: &Atom, block: u32) {
        match *atom {
            Atom::Local { before, .. } => {
                let last = self.end_of(before, block);
                region.hi = self.apply(Function::Minimum, region.hi, last);
            }
            Atom::Sink { .. }
            | Atom::Tokens { .. }
            | Atom::Columns { .. }
            | Atom::Rows { .. }
            | Atom::Tail { .. } => {}
            // `within_partner` handles start and stop together.
            Atom::Partner { .. } => {}
        }
    }

    /// BandLimits the region to rows in which the column's keys are before the stop of `atom`.
    fn before_stop(&mut self, region: &mut Region, atom: &Atom, block: u32) {
        let c = self.input(Input::Block);
        match *atom {
            Atom::Local { after, .. } => {
                let first = self.start_of(after, block);
                region.lo = self.apply(Function::Maximum, region.lo, first);
            }
            Atom::Sink { blocks } => {
                let first = self.with(Function::Multiply, c, block);
                region.lo = self.apply(Function::Maximum, region.lo, first);
                self.only_columns(region, blocks);
            }
            Atom::Columns { blocks } => self.only_columns(region, blocks),
            Atom::Tokens { tokens } => {
                region.keys[1] = self.with(Function::Minimum, region.keys[1], tokens);
            }
            Atom::Rows { blocks } => {
                let last = tokens(blocks, block);
                region.hi = self.with(Function::Minimum, region.hi, last);
            }
            Atom::Tail { tokens } => {
                let first = self.tail_start(tokens, block);
                region.lo = self.apply(Function::Maximum, region.lo, first);
            }
            Atom::Partner { .. } => {}
        }
    }

    /// BandLimits the region to rows in which the column's keys are at or after the stop of `atom`.
    fn not_before_stop(&mut self, region: &mut Region, atom: &Atom, block: u32) -> Option<()> {
        let (c, none) = (self.input(Input::Block), self.constant(0));
        match *atom {
            Atom::Local { after, .. } => {
                let last = self.start_of(after, block);
                region.hi = self.apply(Function::Minimum, region.hi, last);
            }
            Atom::Sink { blocks } => {
                // For the first `blocks` columns, only the rows before the column's own block.
                let own = self.with(Function::Multiply, c, block);
                let (count, all) = (self.constant(blocks), self.constant(UNBOUNDED as u32));
                let last = self.choose([c, count], own, all);
                region.hi = self.apply(Function::Minimum, region.hi, last);
            }
            Atom::Columns { blocks } => {
                let count = self.constant(blocks);
                region.hi = self.choose([c, count], none, region.hi);
            }
            Atom::Tokens { tokens } => {
                let tokens = tokens.min(UNBOUNDED as u32);
                region.keys[0] = self.with(Function::Maximum, region.keys[0], tokens);
            }
            Atom::Rows { blocks } => {
                let first = tokens(blocks, block);
                region.lo = self.with(Function::Maximum, region.lo, first);
            }
            Atom::Tail { tokens } => {
                let first = self.tail_start(tokens, block);
                region.hi = self.apply(Function::Minimum, region.hi, first);
            }
            Atom::Partner { .. } => return None,
        }
        Some(())
    }

    /// BandLimits the region to rows in which the column's keys are before the start of `atom`.
    fn before_start(&mut self, region: &mut Region, atom: &Atom, block: u32) -> Option<()> {
        match *atom {
            Atom::Local { before, .. } => {
                let first = self.end_of(before, block);
                region.lo = self.apply(Function::Maximum, region.lo, first);
            }
            // These start at the first key, so no key is before them.
            Atom::Sink { .. }
            | Atom::Tokens { .. }
            | Atom::Columns { .. }
            | Atom::Rows { .. }
            | Atom::Tail { .. } => {
                region.hi = self.constant(0);
            }
            Atom::Partner { .. } => return None,
        }
        Some(())
    }

    /// BandLimits the region to the row that has the column as its partner.
    fn within_partner(&mut self, region: &mut Region, atom: &Atom, block: u32) -> Option<()> {
        let &Atom::Partner {
            rule,
            radix,
            offset,
            step,
        } = atom
        else {
            return None;
        };
        let (c, blocks) = (self.input(Input::Block), self.input(Input::Blocks));
        let absent = self.constant(ABSENT);
        let digit = self.digit(rule, radix, offset);
        let row = match rule {
            PartnerRule::Xor | PartnerRule::Benes | PartnerRule::BitReversal => {
                let row = self.flipped(rule, radix, digit);
                // A row has no partner after its own block.
                self.choose([row, c], absent, row)
            }
            PartnerRule::CausalShift => {
                let power = self.power(radix, digit);
                let last = self.with(Function::Subtract, blocks, 1);
                let after = self.apply(Function::Subtract, last, c);
                let room = self.with(Function::Divide, after, step);
                let further = self.with(Function::Multiply, power, step);
                let row = self.apply(Function::Add, c, further);
                self.choose([room, power], absent, row)
            }
            PartnerRule::FixedStride => self.with(Function::Add, c, 1),
            PartnerRule::Random => return None,
        };
        let [start, stop] = self.whole_block(row, blocks, block);
        region.lo = self.apply(Function::Maximum, region.lo, start);
        region.hi = self.apply(Function::Minimum, region.hi, stop);
        Some(())
    }

    /// Makes the region empty for columns from `blocks` on.
    fn only_columns(&mut self, region: &mut Region, blocks: u32) {
        let (c, count, none) = (
            self.input(Input::Block),
            self.constant(blocks),
            self.constant(0),
        );
        region.hi = self.choose([c, count], region.hi, none);
    }

    /// The first token of the first block of the tail.
    fn tail_start(&mut self, tokens: u32, block: u32) -> ExprId {
        let first = self.tail(tokens, block);
        self.with(Function::Multiply, first, block)
    }

    /// The first token of the block that is `back` blocks before the column; 0 if there is none.
    fn start_of(&mut self, back: u32, block: u32) -> ExprId {
        let c = self.input(Input::Block);
        let back = self.with(Function::Minimum, c, back);
        let row = self.apply(Function::Subtract, c, back);
        self.with(Function::Multiply, row, block)
    }

    /// One past the last token of the block that is `on` blocks after the column.
    fn end_of(&mut self, on: u32, block: u32) -> ExprId {
        let c = self.input(Input::Block);
        let own = self.with(Function::Multiply, c, block);
        let end = self.with(Function::Add, own, block + tokens(on, block));
        self.with(Function::Minimum, end, UNBOUNDED as u32)
    }
}
