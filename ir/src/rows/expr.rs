//! The limits of bands as integer expressions, which a kernel evaluates in registers for its row.
//!
//! In:  values pushed by [`super::lower`] and [`super::transpose`]. Out: a list in which each value
//! reads only earlier ones, an evaluator, and the properties that code generators need.
//!
//! Invariants: all values are `u32` and wrap around; no divisor is zero, no shift reaches 32; every
//! limit is a position of at most [`UNBOUNDED`](super::band::UNBOUNDED) plus the size of a block.

use super::band::Band;
use super::stream::Stream;

/// Position of a value in [`RowExpressions::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExprId(pub u32);

impl ExprId {
    /// The position as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A number that a kernel knows from the launch or from the row it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Number of the block, from 0: of the query block for rows, of the kv block for columns.
    Block,
    /// Number of the kv head, from 0.
    KvHead,
    /// Number of keys, in tokens.
    KvLen,
    /// N, the number of blocks from which the stages are derived.
    Blocks,
    /// Index that picks the stage, not yet reduced modulo the number of stages.
    Index,
    /// Number of tokens of the prompt.
    Prompt,
}

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// Sum.
    Add,
    /// Difference.
    Subtract,
    /// Product.
    Multiply,
    /// Quotient, rounded down.
    Divide,
    /// Remainder.
    Remainder,
    /// The smaller one.
    Minimum,
    /// The larger one.
    Maximum,
    /// Bitwise exclusive or.
    Xor,
    /// The first, shifted left by the second.
    ShiftLeft,
    /// The first, shifted right by the second; zeros come in.
    ShiftRight,
}

impl Function {
    /// Applies the function to two known numbers.
    fn of(self, x: u32, y: u32) -> u32 {
        match self {
            Self::Add => x.wrapping_add(y),
            Self::Subtract => x.wrapping_sub(y),
            Self::Multiply => x.wrapping_mul(y),
            Self::Divide => x / y,
            Self::Remainder => x % y,
            Self::Minimum => x.min(y),
            Self::Maximum => x.max(y),
            Self::Xor => x ^ y,
            Self::ShiftLeft => x << y,
            Self::ShiftRight => x >> y,
        }
    }
}

/// One value of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A number known when the kernel is made.
    Constant(u32),
    /// An input.
    Input(Input),
    /// A function of two values.
    Apply(Function, ExprId, ExprId),
    /// Number of digits of a value in base `radix`; 0 for the value 0.
    Digits {
        /// The value.
        of: ExprId,
        /// The base.
        radix: u32,
    },
    /// `radix` to the power of a value.
    Power {
        /// The base.
        radix: u32,
        /// The exponent.
        exponent: ExprId,
    },
    /// The 32 bits of a value in reverse order.
    Reversed(ExprId),
    /// `then` if the first of `less` is less than the second, else `otherwise`.
    Choose {
        /// The two values to compare.
        less: [ExprId; 2],
        /// The result if the first is less.
        then: ExprId,
        /// The result if it is not.
        otherwise: ExprId,
    },
}

impl Expr {
    /// The values that this one reads, in the order of its fields.
    pub fn operands(&self) -> impl Iterator<Item = ExprId> + use<> {
        let [a, b, c, d] = match *self {
            Self::Constant(_) | Self::Input(_) => [None; 4],
            Self::Apply(_, x, y) => [Some(x), Some(y), None, None],
            Self::Digits { of: x, .. } | Self::Power { exponent: x, .. } | Self::Reversed(x) => {
                [Some(x), None, None, None]
            }
            Self::Choose {
                less: [x, y],
                then,
                otherwise,
            } => [Some(x), Some(y), Some(then), Some(otherwise)],
        };
        [a, b, c, d].into_iter().flatten()
    }
}

/// The limits of one band; the fields are those of [`Band`].
///
/// In expressions of rows they bound the keys that the queries of a block see. In expressions of
/// columns ([`transpose`](super::transpose())) the roles are exchanged: they bound the queries that
/// see the keys of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BandLimits {
    /// First position.
    pub lo: ExprId,
    /// One past the last position.
    pub hi: ExprId,
    /// First position relative to the query (for columns: to the key).
    pub first: i32,
    /// One past the last position relative to the query (for columns: to the key).
    pub end: i32,
    /// For columns whose block is cut by a limit in tokens: the first key that the band holds, and
    /// one past the last. `None`: all keys of the block.
    pub keys: Option<[ExprId; 2]>,
}

/// The values of all inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// [`Input::Block`].
    pub block: u32,
    /// [`Input::KvHead`].
    pub kv_head: u32,
    /// [`Input::KvLen`].
    pub kv_len: u32,
    /// [`Input::Blocks`].
    pub blocks: u32,
    /// [`Input::Index`].
    pub index: u32,
    /// [`Input::Prompt`].
    pub prompt: u32,
}

/// The bands of any row (or column), for any sequence length, stage and kv head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RowExpressions {
    /// The values; each reads only earlier ones.
    pub values: Vec<Expr>,
    /// The bands; their union holds the pairs that are seen.
    pub bands: Vec<BandLimits>,
    /// The unit in which positions of keys count.
    pub stream: Stream,
}

impl RowExpressions {
    /// For each value, whether it differs between the rows of a launch. Kernels compute the others
    /// only once.
    pub fn varies(&self) -> Vec<bool> {
        let mut varies: Vec<bool> = Vec::with_capacity(self.values.len());
        for value in &self.values {
            let own = matches!(value, Expr::Input(Input::Block | Input::KvHead));
            let read = value.operands().any(|x| varies[x.index()]);
            varies.push(own || read);
        }
        varies
    }

    /// Evaluates all values, in their order.
    pub fn evaluate(&self, inputs: &Inputs) -> Vec<u32> {
        evaluate(&self.values, inputs)
    }

    /// The bands at these inputs, without empty ones.
    pub fn bands(&self, inputs: &Inputs) -> Vec<Band> {
        let values = self.evaluate(inputs);
        let bands = self.bands.iter().map(|limits| limits.known(&values));
        bands.filter(|band| !band.is_empty()).collect()
    }
}

impl BandLimits {
    /// The band, given all values.
    pub(super) fn known(&self, values: &[u32]) -> Band {
        let position = |x: ExprId| values[x.index()].cast_signed();
        Band {
            lo: position(self.lo),
            hi: position(self.hi),
            first: self.first,
            end: self.end,
        }
    }
}

fn evaluate(values: &[Expr], inputs: &Inputs) -> Vec<u32> {
    let mut known: Vec<u32> = Vec::with_capacity(values.len());
    for value in values {
        let at = |x: ExprId| known[x.index()];
        known.push(match *value {
            Expr::Constant(number) => number,
            Expr::Input(Input::Block) => inputs.block,
            Expr::Input(Input::KvHead) => inputs.kv_head,
            Expr::Input(Input::KvLen) => inputs.kv_len,
            Expr::Input(Input::Blocks) => inputs.blocks,
            Expr::Input(Input::Index) => inputs.index,
            Expr::Input(Input::Prompt) => inputs.prompt,
            Expr::Apply(function, x, y) => function.of(at(x), at(y)),
            Expr::Digits { of, radix } => at(of).checked_ilog(radix).map_or(0, |log| log + 1),
            Expr::Power { radix, exponent } => radix.wrapping_pow(at(exponent)),
            Expr::Reversed(x) => at(x).reverse_bits(),
            Expr::Choose {
                less: [x, y],
                then,
                otherwise,
            } => match at(x) < at(y) {
                true => at(then),
                false => at(otherwise),
            },
        });
    }
    known
}

/// A list of values under construction. Equal values are pushed once, and functions of constants
/// are evaluated at once.
#[derive(Default)]
pub(super) struct Builder {
    values: Vec<Expr>,
}

impl Builder {
    pub(super) fn constant(&mut self, number: u32) -> ExprId {
        self.push(Expr::Constant(number))
    }

    pub(super) fn input(&mut self, input: Input) -> ExprId {
        self.push(Expr::Input(input))
    }

    pub(super) fn apply(&mut self, function: Function, x: ExprId, y: ExprId) -> ExprId {
        if let (Some(x), Some(y)) = (self.known(x), self.known(y)) {
            return self.constant(function.of(x, y));
        }
        match (function, self.known(x), self.known(y)) {
            (Function::Add | Function::Maximum, Some(0), _) => y,
            (Function::Add | Function::Subtract | Function::Maximum, _, Some(0)) => x,
            (Function::Multiply | Function::Divide, _, Some(1)) => x,
            (Function::Remainder, ..) if self.is_remainder(x, y) => x,
            (Function::Minimum | Function::Maximum, ..) if x == y => x,
            _ => self.push(Expr::Apply(function, x, y)),
        }
    }

    /// [`Builder::apply`] with a constant as the second value.
    pub(super) fn with(&mut self, function: Function, x: ExprId, number: u32) -> ExprId {
        let number = self.constant(number);
        self.apply(function, x, number)
    }

    pub(super) fn digits(&mut self, of: ExprId, radix: u32) -> ExprId {
        self.push(Expr::Digits { of, radix })
    }

    pub(super) fn power(&mut self, radix: u32, exponent: ExprId) -> ExprId {
        self.push(Expr::Power { radix, exponent })
    }

    pub(super) fn reversed(&mut self, x: ExprId) -> ExprId {
        self.push(Expr::Reversed(x))
    }

    pub(super) fn choose(&mut self, less: [ExprId; 2], then: ExprId, otherwise: ExprId) -> ExprId {
        match less.map(|x| self.known(x)) {
            [Some(x), Some(y)] if x < y => then,
            [Some(_), Some(_)] => otherwise,
            _ if then == otherwise => then,
            _ => self.push(Expr::Choose {
                less,
                then,
                otherwise,
            }),
        }
    }

    /// The expressions of `bands`, without values that no limit needs.
    pub(super) fn finish(self, bands: Vec<BandLimits>, stream: Stream) -> RowExpressions {
        let mut whole = RowExpressions {
            values: self.values,
            bands,
            stream,
        };
        let mut read: Vec<bool> = vec![false; whole.values.len()];
        for band in &whole.bands {
            for x in [band.lo, band.hi]
                .into_iter()
                .chain(band.keys.into_iter().flatten())
            {
                read[x.index()] = true;
            }
        }
        for i in (0..read.len()).rev() {
            if read[i] {
                for x in whole.values[i].operands() {
                    read[x.index()] = true;
                }
            }
        }
        let mut place = 0;
        let places: Vec<ExprId> = read
            .iter()
            .map(|read| {
                place += u32::from(*read);
                ExprId(place.saturating_sub(1))
            })
            .collect();
        let moved = |x: ExprId| places[x.index()];
        let kept = whole.values.iter().zip(&read).filter(|(_, read)| **read);
        whole.values = kept.map(|(value, _)| value.renumbered(moved)).collect();
        for band in &mut whole.bands {
            band.lo = moved(band.lo);
            band.hi = moved(band.hi);
            band.keys = band.keys.map(|keys| keys.map(moved));
        }
        whole
    }

    /// Evaluates two values.
    pub(super) fn evaluate(&self, of: [ExprId; 2], inputs: &Inputs) -> [u32; 2] {
        let values = evaluate(&self.values, inputs);
        of.map(|x| values[x.index()])
    }

    fn known(&self, x: ExprId) -> Option<u32> {
        match self.values[x.index()] {
            Expr::Constant(number) => Some(number),
            _ => None,
        }
    }

    /// Whether `x` is already a remainder modulo `y`.
    fn is_remainder(&self, x: ExprId, y: ExprId) -> bool {
        let Expr::Apply(Function::Remainder, _, by) = self.values[x.index()] else {
            return false;
        };
        by == y
    }

    fn push(&mut self, value: Expr) -> ExprId {
        let there = self.values.iter().position(|other| *other == value);
        let at = there.unwrap_or_else(|| {
            self.values.push(value);
            self.values.len() - 1
        });
        // `pattern/limits.rs` keeps the list short enough for the search and the cast.
        ExprId(at as u32)
    }
}

impl Expr {
    fn renumbered(self, moved: impl Fn(ExprId) -> ExprId) -> Self {
        match self {
            Self::Constant(_) | Self::Input(_) => self,
            Self::Apply(function, x, y) => Self::Apply(function, moved(x), moved(y)),
            Self::Digits { of, radix } => Self::Digits {
                of: moved(of),
                radix,
            },
            Self::Power { radix, exponent } => Self::Power {
                radix,
                exponent: moved(exponent),
            },
            Self::Reversed(x) => Self::Reversed(moved(x)),
            Self::Choose {
                less,
                then,
                otherwise,
            } => Self::Choose {
                less: less.map(&moved),
                then: moved(then),
                otherwise: moved(otherwise),
            },
        }
    }
}
