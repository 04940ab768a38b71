//! Closed form → integer expressions: how the range of each atom is computed.
//!
//! In:  a [`RowProgram`] that passes its check, the block size, the stream of keys. Out:
//! [`RowExpressions`] whose bands are those of the row.

use super::band::{Band, UNBOUNDED};
use super::expr::{BandLimits, Builder, ExprId, Function, Input, Inputs, RowExpressions};
use super::program::{Atom, Bound, RowProgram};
use super::stage::PartnerRule;
use super::stream::Stream;
use crate::Indices;
use crate::sees::Context;

/// Stands for a block that does not exist: larger than the number of any block.
pub(super) const ABSENT: u32 = u32::MAX;

/// The bands of `program` for rows of `block` tokens, over the keys of `stream`.
pub(super) fn lower(program: &RowProgram, block: u32, stream: Stream) -> RowExpressions {
    let mut builder = Builder::default();
    let ranges: Vec<[ExprId; 2]> = program
        .atoms
        .iter()
        .map(|atom| builder.range(atom, block))
        .collect();
    let of = |bound: &Bound| match *bound {
        Bound::Start(i) => ranges[i as usize][0],
        Bound::Stop(i) => ranges[i as usize][1],
    };
    let mut bands = Vec::with_capacity(program.bands.len());
    for band in &program.bands {
        let none = builder.constant(0);
        let kv_len = builder.input(Input::KvLen);
        let lo = band.lo.iter().map(of);
        let lo = lo.fold(none, |lo, x| builder.apply(Function::Maximum, lo, x));
        let hi = band.hi.iter().map(of);
        let hi = hi.fold(kv_len, |hi, x| builder.apply(Function::Minimum, hi, x));
        // A key that stands for several tokens is in the band if all of its tokens are.
        let up = builder.with(Function::Add, lo, stream.stride - 1);
        let lo = builder.with(Function::Divide, up, stream.stride);
        let hi = builder.with(Function::Divide, hi, stream.stride);
        bands.push(BandLimits {
            lo,
            hi: builder.in_heads(&band.heads, hi),
            first: band.first,
            end: band.end,
            keys: None,
        });
    }
    builder.finish(bands, stream)
}

impl Atom {
    /// The range for query block `b`, in tokens: start, and one past the last; both 0 if it is
    /// empty.
    pub fn range(&self, b: u32, context: &Context) -> (i32, i32) {
        let mut builder = Builder::default();
        let range = builder.range(self, context.block);
        let [start, stop] = builder.evaluate(range, &inputs(b, 0, context));
        (start.cast_signed(), stop.cast_signed())
    }
}

impl RowProgram {
    /// The expressions that compute the bands of a row, for blocks of `block` tokens and one key
    /// per token.
    pub fn lower(&self, block: u32) -> RowExpressions {
        lower(self, block, Stream::TOKENS)
    }

    /// [`RowProgram::lower`] over the keys of `stream`: a band holds a key if it holds all tokens
    /// that the key stands for.
    pub fn lower_stream(&self, block: u32, stream: Stream) -> RowExpressions {
        lower(self, block, stream)
    }

    /// The bands of row `b` for kv head `kv_head`, without empty ones.
    pub fn bands(&self, b: u32, kv_head: u32, context: &Context) -> Vec<Band> {
        let expressions = self.lower(context.block);
        expressions.bands(&inputs(b, kv_head, context))
    }
}

/// The inputs of the expressions of a row or column.
pub(super) fn inputs(block: u32, kv_head: u32, context: &Context) -> Inputs {
    Inputs {
        block,
        kv_head,
        kv_len: context.kv_len,
        blocks: context.blocks(),
        index: context.index,
        prompt: context.prompt,
    }
}

impl Builder {
    /// First token of an atom's range, and one past its last; both 0 if the range is empty.
    pub(super) fn range(&mut self, atom: &Atom, block: u32) -> [ExprId; 2] {
        let none = self.constant(0);
        let b = self.input(Input::Block);
        match *atom {
            Atom::Local { before, after } => {
                let before = self.with(Function::Minimum, b, before);
                let first = self.apply(Function::Subtract, b, before);
                let start = self.with(Function::Multiply, first, block);
                let own = self.with(Function::Multiply, b, block);
                let stop = self.with(Function::Add, own, block + tokens(after, block));
                let stop = self.with(Function::Minimum, stop, UNBOUNDED as u32);
                [start, stop]
            }
            Atom::Partner {
                rule,
                radix,
                offset,
                step,
            } => {
                let digit = self.digit(rule, radix, offset);
                let partner = self.partner(rule, radix, step, digit);
                // Neither after the row's own block nor past the last block.
                let next = self.with(Function::Add, b, 1);
                let blocks = self.input(Input::Blocks);
                let end = self.apply(Function::Minimum, next, blocks);
                self.whole_block(partner, end, block)
            }
            Atom::Sink { blocks } => {
                let next = self.with(Function::Add, b, 1);
                let count = self.with(Function::Minimum, next, blocks);
                [none, self.with(Function::Multiply, count, block)]
            }
            Atom::Tokens { tokens } => [none, self.constant(tokens.min(UNBOUNDED as u32))],
            Atom::Columns { blocks } => [none, self.constant(tokens(blocks, block))],
            Atom::Rows { blocks } => {
                let (count, all) = (self.constant(blocks), self.input(Input::KvLen));
                [none, self.choose([b, count], all, none)]
            }
            Atom::Tail { tokens } => {
                let (first, all) = (self.tail(tokens, block), self.input(Input::KvLen));
                [none, self.choose([b, first], none, all)]
            }
        }
    }

    /// The first block that holds one of the last `tokens` tokens of the prompt.
    pub(super) fn tail(&mut self, tokens: u32, block: u32) -> ExprId {
        let prompt = self.input(Input::Prompt);
        let last = self.with(Function::Minimum, prompt, tokens);
        let first = self.apply(Function::Subtract, prompt, last);
        self.with(Function::Divide, first, block)
    }

    /// The token range of block `x` if `x < end`, else two zeros.
    pub(super) fn whole_block(&mut self, x: ExprId, end: ExprId, block: u32) -> [ExprId; 2] {
        let none = self.constant(0);
        let start = self.with(Function::Multiply, x, block);
        let stop = self.with(Function::Add, start, block);
        [start, stop].map(|limit| self.choose([x, end], limit, none))
    }

    /// Number of digits of block numbers, at least one, as `stage::width` defines it.
    pub(super) fn width(&mut self, radix: u32) -> ExprId {
        let blocks = self.input(Input::Blocks);
        let blocks = self.with(Function::Maximum, blocks, 1);
        let last = self.with(Function::Subtract, blocks, 1);
        let digits = self.digits(last, radix);
        self.with(Function::Maximum, digits, 1)
    }

    /// The digit that a partner changes at the stage of the launch, as `stage::digit` defines it.
    pub(super) fn digit(&mut self, rule: PartnerRule, radix: u32, offset: u32) -> ExprId {
        let width = self.width(radix);
        let (count, turn) = match rule {
            PartnerRule::Benes => {
                let twice = self.with(Function::Multiply, width, 2);
                let turn = self.with(Function::Subtract, twice, 2);
                (self.with(Function::Maximum, turn, 1), Some(turn))
            }
            PartnerRule::Xor
            | PartnerRule::BitReversal
            | PartnerRule::CausalShift
            | PartnerRule::FixedStride
            | PartnerRule::Random => (width, None),
        };
        let index = self.input(Input::Index);
        let stage = self.apply(Function::Remainder, index, count);
        let further = self.with(Function::Add, stage, offset);
        let position = self.apply(Function::Remainder, further, count);
        match turn {
            Some(turn) => {
                let back = self.apply(Function::Subtract, turn, position);
                self.choose([position, width], position, back)
            }
            None => position,
        }
    }

    /// The partner of the row's block as `stage::partner` defines it, but not yet checked to be an
    /// earlier block of the sequence.
    fn partner(&mut self, rule: PartnerRule, radix: u32, step: u32, digit: ExprId) -> ExprId {
        let b = self.input(Input::Block);
        let (none, absent) = (self.constant(0), self.constant(ABSENT));
        match rule {
            PartnerRule::Xor | PartnerRule::Benes | PartnerRule::BitReversal => {
                self.flipped(rule, radix, digit)
            }
            PartnerRule::CausalShift => {
                let power = self.power(radix, digit);
                let room = self.with(Function::Divide, b, step);
                let back = self.with(Function::Multiply, power, step);
                let found = self.apply(Function::Subtract, b, back);
                self.choose([room, power], absent, found)
            }
            PartnerRule::FixedStride => {
                let before = self.with(Function::Subtract, b, 1);
                self.choose([none, b], before, absent)
            }
            PartnerRule::Random => {
                let own = self.with(Function::Multiply, b, 2_654_435_761);
                let bit = self.with(Function::Multiply, digit, 374_761_393);
                let mixed = self.apply(Function::Add, own, bit);
                let below = self.with(Function::Maximum, b, 1);
                let found = self.apply(Function::Remainder, mixed, below);
                self.choose([none, b], found, absent)
            }
        }
    }

    /// The row's block number with one bit flipped. The function is its own inverse.
    pub(super) fn flipped(&mut self, rule: PartnerRule, radix: u32, digit: ExprId) -> ExprId {
        let b = self.input(Input::Block);
        let one = self.constant(1);
        let bit = self.apply(Function::ShiftLeft, one, digit);
        if rule != PartnerRule::BitReversal {
            return self.apply(Function::Xor, b, bit);
        }
        let (width, word) = (self.width(radix), self.constant(u32::BITS));
        let unused = self.apply(Function::Subtract, word, width);
        let whole = self.reversed(b);
        let reversed = self.apply(Function::ShiftRight, whole, unused);
        let flipped = self.apply(Function::Xor, reversed, bit);
        let whole = self.reversed(flipped);
        self.apply(Function::ShiftRight, whole, unused)
    }

    /// `hi` for the kv heads of a band; 0 for the others, which makes the band empty.
    pub(super) fn in_heads(&mut self, heads: &Indices, hi: ExprId) -> ExprId {
        let Indices::Some(heads) = heads else {
            return hi;
        };
        let (head, none) = (self.input(Input::KvHead), self.constant(0));
        // One comparison decides whether the head is in a run, since the difference wraps around to
        // a large number for heads before it.
        heads.iter().fold(none, |limit, run| {
            let past = self.with(Function::Subtract, head, run.first);
            let count = self.constant(run.count);
            self.choose([past, count], hi, limit)
        })
    }
}

/// `blocks` blocks in tokens, at most [`UNBOUNDED`].
pub(super) fn tokens(blocks: u32, block: u32) -> u32 {
    let tokens = u64::from(blocks) * u64::from(block);
    tokens.min(UNBOUNDED as u64) as u32
}
