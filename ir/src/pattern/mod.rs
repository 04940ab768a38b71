//! The sparsity IR: a small closed algebra of patterns, and its text and JSON forms.
//!
//! In:  text ([`text`]), JSON ([`json`]) or Rust expressions ([`build`]).
//! Out: plain values. [`Sparsity::check`] checks that their numbers are in range; values
//! that were parsed have already passed it.

mod arguments;
pub mod build;
mod cases;
pub mod diagnostic;
mod excerpt;
pub mod json;
mod leaves;
mod lexer;
pub mod limits;
mod lookback;
mod parsed;
mod parser;
mod print;
mod reference;
mod routed;
#[cfg(test)]
mod tests;
pub mod text;

pub use cases::Case;
pub use diagnostic::{Diagnostic, Source};
pub use limits::LimitError;
pub use parsed::Parsed;
pub use reference::reference;
pub use routed::Routing;

use crate::stage::{self, PartnerRule};

use serde::{Deserialize, Serialize};
use std::ops;

/// A set of (query, key) pairs, as an expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// One of the elementary patterns.
    Leaf(Leaf),
    /// Pairs in either: `a | b`.
    Or(Box<Pattern>, Box<Pattern>),
    /// Pairs in both: `a & b`.
    And(Box<Pattern>, Box<Pattern>),
    /// Pairs in the first but not in the second: `a - b`.
    Minus(Box<Pattern>, Box<Pattern>),
    /// A pattern for each kv head: `per_head { 0, 2..4 => a; else => b }`.
    PerHead(Vec<Case>),
    /// A pattern for each layer, by its index in the model: `per_layer { 0..3 => a; else => b }`.
    PerLayer(Vec<Case>),
}

/// The elementary patterns. Positions are absolute; `b` is the block of the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Leaf {
    /// Keys at or before the query.
    Causal,
    /// Blocks `b - before ..= b + after`.
    Local {
        /// Blocks before the query's own.
        before: u32,
        /// Blocks after the query's own.
        after: u32,
    },
    /// The last `tokens` keys up to and including the query's own position.
    Window {
        /// Width in tokens, own token included; at least 1.
        tokens: u32,
    },
    /// Long-range partner blocks that change from stage to stage.
    Partner {
        /// How a block finds its partners.
        rule: PartnerRule,
        /// Radix of the network; only `causal_shift` takes one above 2.
        radix: u32,
        /// How many consecutive digits are visited at each stage.
        count: u32,
    },
    /// The first `blocks` blocks, except those after the query's own.
    Sink {
        /// Number of blocks.
        blocks: u32,
    },
    /// The first `tokens` keys.
    SinkTokens {
        /// Number of tokens.
        tokens: u32,
    },
    /// Every query sees the first `blocks` blocks, and the queries in these see every key.
    Global {
        /// Number of blocks.
        blocks: u32,
    },
    /// The query blocks that hold one of the last `tokens` tokens of the prompt, and all later
    /// ones, see every key.
    Tail {
        /// Number of tokens; at least 1.
        tokens: u32,
    },
    /// The earlier blocks that a row of blocks chooses by content, among those that the rest of the
    /// pattern does not already admit whole. Without a choice ([`Pattern::routed_to`]), no key.
    ///
    /// With `m_j` the mean of `pool` consecutive keys, after rotation, each query `i` of each q head of
    /// the group gives the weights `softmax_j(scale * q_i . m_j)` over all means of whole blocks before
    /// its own. The score of a block is the sum of its weights over these queries and heads; ties go to
    /// the smaller block. The queries of a launch that are in one block choose together; of them, those
    /// at positions `every - 1`, `2 * every - 1` and so on score, and the last one.
    ///
    /// Source: scores by pooled keys after MoBA (arXiv:2502.13189) and SeerAttention (arXiv:2410.13276).
    Routed {
        /// Number of blocks; at least 1. A row chooses fewer where there are not as many.
        blocks: u32,
        /// Tokens of a mean, which divides the block; at least 1.
        #[serde(default = "default_pool")]
        pool: u32,
        /// From one query that scores to the next, which divides the block; at least 1.
        #[serde(default = "default_every", skip_serializing_if = "is_one")]
        every: u32,
    },
    /// Explicit kv blocks for each query block.
    Table {
        /// `rows[b]` lists the kv blocks of query block `b`.
        rows: Vec<Vec<u32>>,
    },
    /// Every pair.
    All,
    /// No pair.
    None,
}

/// Which number of a layer is the index that picks its stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageBy {
    /// Position of the layer among the swapped layers.
    #[default]
    SwappedIndex,
    /// Index of the layer in the model; exists for comparison.
    LayerIndex,
}

impl StageBy {
    /// Both values, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::SwappedIndex, Self::LayerIndex];

    /// The name in text and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::SwappedIndex => "swapped_index",
            Self::LayerIndex => "layer_index",
        }
    }
}

/// A pattern with its header: block size, order of stages, layers to swap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparsity {
    /// Tokens in a block; at least 1.
    #[serde(default = "default_block")]
    pub block: u32,
    /// Which number of a layer is the index that picks its stage.
    #[serde(default)]
    pub stage_by: StageBy,
    /// Indices in the model of the layers to swap, strictly increasing; `None` for every
    /// attention layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped_layers: Option<Vec<u32>>,
    /// One index for all layers, so that all have the same stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<u32>,
    /// The pattern.
    pub pattern: Pattern,
}

impl Sparsity {
    /// The index that picks the stage of a layer.
    ///
    /// `layer` is its index in the model, `position` its position among the swapped layers, both
    /// from 0.
    pub fn index(&self, position: u32, layer: u32) -> u32 {
        match (self.stage, self.stage_by) {
            (Some(stage), _) => stage,
            (None, StageBy::SwappedIndex) => position,
            (None, StageBy::LayerIndex) => layer,
        }
    }
}

/// Block size in tokens if neither text nor JSON gives one.
pub const DEFAULT_BLOCK: u32 = 128;

/// Tokens of a mean key of [`Leaf::Routed`] if neither text nor JSON says how many.
pub const DEFAULT_POOL: u32 = 16;

fn default_pool() -> u32 {
    DEFAULT_POOL
}

fn default_every() -> u32 {
    1
}

fn is_one(x: &u32) -> bool {
    *x == 1
}

fn default_block() -> u32 {
    DEFAULT_BLOCK
}

impl From<Pattern> for Sparsity {
    /// Adds the default header: blocks of [`DEFAULT_BLOCK`] tokens, every attention layer swapped.
    fn from(pattern: Pattern) -> Self {
        Self {
            block: DEFAULT_BLOCK,
            stage_by: StageBy::default(),
            swapped_layers: None,
            stage: None,
            pattern,
        }
    }
}

impl Pattern {
    /// The parts that an operator or the cases of a combinator join, left to right.
    pub(crate) fn parts(&self) -> Vec<&Self> {
        match self {
            Self::Leaf(_) => Vec::new(),
            Self::Or(a, b) | Self::And(a, b) | Self::Minus(a, b) => vec![a, b],
            Self::PerHead(cases) | Self::PerLayer(cases) => {
                cases.iter().map(|case| &case.pattern).collect()
            }
        }
    }

    /// This pattern and all those that it is made of, each before its parts, left to right.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Self> {
        let mut open = vec![self];
        std::iter::from_fn(move || {
            let pattern = open.pop()?;
            open.extend(pattern.parts().into_iter().rev());
            Some(pattern)
        })
    }

    /// All leaves, left to right.
    pub fn leaves(&self) -> Vec<&Leaf> {
        let leaves = self.nodes().filter_map(|pattern| match pattern {
            Self::Leaf(leaf) => Some(leaf),
            Self::Or(..) | Self::And(..) | Self::Minus(..) => None,
            Self::PerHead(_) | Self::PerLayer(_) => None,
        });
        leaves.collect()
    }

    /// The most tokens of a `tail`; 0 if what a query sees does not depend on where the prompt ends.
    pub fn tail(&self) -> u32 {
        let tails = self.leaves().into_iter().map(|leaf| match leaf {
            Leaf::Tail { tokens } => *tokens,
            Leaf::Causal
            | Leaf::Local { .. }
            | Leaf::Window { .. }
            | Leaf::Partner { .. }
            | Leaf::Sink { .. }
            | Leaf::SinkTokens { .. }
            | Leaf::Global { .. }
            | Leaf::Routed { .. }
            | Leaf::Table { .. }
            | Leaf::All
            | Leaf::None => 0,
        });
        tails.max().unwrap_or_default()
    }

    /// Number of stages of the pattern over `blocks` blocks: the least common multiple of
    /// the stage counts of its partner leaves, saturated; 1 if it has none.
    pub fn stage_count(&self, blocks: u32) -> u32 {
        self.leaves().into_iter().fold(1, |count, leaf| match leaf {
            Leaf::Partner { rule, radix, .. } => {
                lcm(count, stage::stage_count(*rule, blocks, *radix))
            }
            Leaf::Causal
            | Leaf::Local { .. }
            | Leaf::Window { .. }
            | Leaf::Sink { .. }
            | Leaf::SinkTokens { .. }
            | Leaf::Global { .. }
            | Leaf::Tail { .. }
            | Leaf::Routed { .. }
            | Leaf::Table { .. }
            | Leaf::All
            | Leaf::None => count,
        })
    }
}

fn lcm(a: u32, b: u32) -> u32 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

impl Drop for Pattern {
    /// Drops without recursion, since patterns built by operators in Rust can be arbitrarily deep.
    fn drop(&mut self) {
        let mut open = Vec::new();
        let take = |part: &mut Self, open: &mut Vec<Self>| {
            if !matches!(part, Self::Leaf(_)) {
                open.push(std::mem::replace(part, Self::Leaf(Leaf::None)));
            }
        };
        let part = |pattern: &mut Self, open: &mut Vec<Self>| match pattern {
            Self::Leaf(_) => {}
            Self::Or(a, b) | Self::And(a, b) | Self::Minus(a, b) => {
                take(a, open);
                take(b, open);
            }
            Self::PerHead(cases) | Self::PerLayer(cases) => {
                cases
                    .iter_mut()
                    .for_each(|case| take(&mut case.pattern, open));
            }
        };
        part(self, &mut open);
        while let Some(mut pattern) = open.pop() {
            part(&mut pattern, &mut open);
        }
    }
}

macro_rules! combine {
    ($trait:ident, $method:ident, $variant:ident) => {
        impl ops::$trait for Pattern {
            type Output = Pattern;
            fn $method(self, other: Self) -> Self {
                Pattern::$variant(Box::new(self), Box::new(other))
            }
        }
    };
}
combine!(BitOr, bitor, Or);
combine!(BitAnd, bitand, And);
combine!(Sub, sub, Minus);

impl From<Leaf> for Pattern {
    fn from(leaf: Leaf) -> Self {
        Pattern::Leaf(leaf)
    }
}
