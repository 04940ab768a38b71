//! The meaning of a pattern, as a predicate. Every lowering is tested against this definition.

use crate::pattern::{Case, Leaf, Pattern};
use crate::stage;

/// The sizes and the layer for which a pattern is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Context {
    /// Tokens in a block; at least 1.
    pub block: u32,
    /// Number of keys, in tokens.
    pub kv_len: u32,
    /// Longest sequence in tokens, at least `kv_len`. It fixes the number of blocks, hence the
    /// stages, so that these do not change while a sequence grows.
    pub capacity: u32,
    /// Picks the stage of each leaf: the stage is this number modulo the leaf's stage count.
    pub index: u32,
    /// Number of tokens of the prompt: those from which generation starts. Only `tail` reads it.
    pub prompt: u32,
    /// The kv head, from 0. Only `per_head` reads it.
    pub kv_head: u32,
    /// Index of the layer in the model, from 0. Only `per_layer` reads it.
    pub layer: u32,
}

impl Context {
    /// The first kv head of the first layer, with `kv_len` keys, which is also the capacity and the
    /// length of the prompt.
    pub fn new(block: u32, kv_len: u32, index: u32) -> Self {
        Self {
            block,
            kv_len,
            capacity: kv_len,
            index,
            prompt: kv_len,
            kv_head: 0,
            layer: 0,
        }
    }

    /// The same for another kv head.
    pub fn of_head(self, kv_head: u32) -> Self {
        Self { kv_head, ..self }
    }

    /// N, the number of blocks of the capacity, which fixes the butterfly network.
    pub fn blocks(&self) -> u32 {
        self.capacity.div_ceil(self.block)
    }

    /// Number of rows: blocks that hold at least one of the `kv_len` tokens.
    pub fn rows(&self) -> u32 {
        self.kv_len.div_ceil(self.block)
    }

    /// The first block that holds one of the last `tokens` tokens of the prompt.
    pub fn tail(&self, tokens: u32) -> u32 {
        self.prompt.saturating_sub(tokens) / self.block
    }
}

/// Whether the query at absolute position `q` sees the key at position `k`.
pub fn sees(pattern: &Pattern, context: &Context, q: u32, k: u32) -> bool {
    match pattern {
        Pattern::Leaf(leaf) => leaf_sees(leaf, context, q, k),
        Pattern::Or(a, b) => sees(a, context, q, k) || sees(b, context, q, k),
        Pattern::And(a, b) => sees(a, context, q, k) && sees(b, context, q, k),
        Pattern::Minus(a, b) => sees(a, context, q, k) && !sees(b, context, q, k),
        Pattern::PerHead(cases) => case_sees(cases, context.kv_head, context, q, k),
        Pattern::PerLayer(cases) => case_sees(cases, context.layer, context, q, k),
    }
}

fn case_sees(cases: &[Case], index: u32, context: &Context, q: u32, k: u32) -> bool {
    Case::find(cases, index).is_some_and(|pattern| sees(pattern, context, q, k))
}

fn leaf_sees(leaf: &Leaf, context: &Context, q: u32, k: u32) -> bool {
    let (b, c) = (q / context.block, k / context.block);
    match leaf {
        Leaf::Causal => k <= q,
        Leaf::Local { before, after } => {
            c.saturating_add(*before) >= b && c <= b.saturating_add(*after)
        }
        Leaf::Window { tokens } => k <= q && q - k < *tokens,
        Leaf::Partner { rule, radix, count } => {
            partners(*rule, *radix, *count, b, context).contains(&c)
        }
        Leaf::Sink { blocks } => c < *blocks && c <= b,
        Leaf::SinkTokens { tokens } => k < *tokens,
        Leaf::Global { blocks } => c < *blocks || b < *blocks,
        Leaf::Tail { tokens } => b >= context.tail(*tokens),
        // What is chosen is a table: `Pattern::routed_to`.
        Leaf::Routed { .. } => false,
        Leaf::Table { rows } => rows.get(b as usize).is_some_and(|row| row.contains(&c)),
        Leaf::All => true,
        Leaf::None => false,
    }
}

/// The partner blocks of block `b` in visiting order, without those that lie after `b` or do not
/// exist. A block can occur more than once.
pub fn partners(
    rule: crate::PartnerRule,
    radix: u32,
    count: u32,
    b: u32,
    context: &Context,
) -> Vec<u32> {
    let blocks = context.blocks();
    let width = stage::width(blocks, radix);
    let stage = context.index % stage::stage_count(rule, blocks, radix);
    (0..count.min(width.max(1) * 2))
        .flat_map(|offset| {
            let digit = stage::digit(rule, stage, offset, width);
            // Larger steps would lead to before the first block.
            let steps = match rule {
                crate::PartnerRule::CausalShift => {
                    let weight = u64::from(radix).pow(digit);
                    u64::from(radix).min(u64::from(b) / weight + 1) as u32
                }
                crate::PartnerRule::Xor
                | crate::PartnerRule::Benes
                | crate::PartnerRule::BitReversal
                | crate::PartnerRule::FixedStride
                | crate::PartnerRule::Random => radix,
            };
            (1..steps)
                .filter_map(move |step| stage::partner(rule, b, digit, step, radix, width, blocks))
        })
        .collect()
}
