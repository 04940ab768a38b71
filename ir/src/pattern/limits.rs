//! The allowed ranges of all numbers in a pattern.
//!
//! In:  a leaf, a block size, a list of layers.
//! Out: nothing, or the argument and the value that is not allowed.
//!
//! Invariant: this is the only place that defines the ranges. Text, JSON and
//! `Sparsity::check` all use it, so each form accepts the same patterns.

use super::{Case, Diagnostic, Leaf, PartnerRule, Pattern, Source, Sparsity, routed};
use crate::Indices;

/// Most tokens in a block.
pub const MAX_BLOCK: u32 = 1 << 20;
/// Largest radix of a staged partner.
pub const MAX_RADIX: u32 = 1 << 16;
/// Most digits that one partner leaf visits at a stage; no network has more stages than this.
pub const MAX_COUNT: u32 = 64;
/// Most blocks that a row chooses by content.
pub const MAX_ROUTED: u32 = 64;
/// Most operators, or parentheses, that are nested around a leaf.
///
/// An operator takes two levels of JSON, and serde_json reads at most 127 levels. A pattern of
/// this depth can therefore be read from JSON, even inside a manifest.
pub const MAX_DEPTH: u32 = 50;
/// How deep the cases of `per_head` and `per_layer` count: in JSON they take three levels, where an
/// operator takes two.
pub(super) const CASES: u32 = 2;
/// Most leaves of a pattern.
pub const MAX_LEAVES: usize = 256;
/// Heads and layers that cases name are below this number.
pub const MAX_INDEX: u32 = 1 << 16;
/// Most bytes of a pattern's text or JSON.
pub const MAX_LENGTH: usize = 16 << 20;

/// A value that is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({given})")]
pub struct LimitError {
    /// Index of the leaf in [`Pattern::leaves`]; `None` for the header and for the pattern as a
    /// whole.
    pub leaf: Option<usize>,
    /// Name of the argument in the text form; `pattern` for the pattern as a whole.
    pub argument: &'static str,
    /// The allowed values, as a sentence.
    pub message: String,
    /// The value that was given.
    pub given: String,
}

impl LimitError {
    fn new(argument: &'static str, message: impl Into<String>, given: impl Into<String>) -> Self {
        Self {
            leaf: None,
            argument,
            message: message.into(),
            given: given.into(),
        }
    }
}

impl Sparsity {
    /// Checks that all values are in range; a value that was read from text or JSON is.
    ///
    /// # Errors
    /// [`LimitError`] for the first value out of range.
    pub fn check(&self) -> Result<(), LimitError> {
        check_block(self.block)?;
        check_layers(self.swapped_layers.as_deref().unwrap_or_default())?;
        if is_deeper(&self.pattern, MAX_DEPTH) {
            let message = format!("a pattern must nest at most {MAX_DEPTH} operators deep");
            return Err(LimitError::new("pattern", message, "this one nests deeper"));
        }
        check_cases(&self.pattern)?;
        let leaves = self.pattern.leaves();
        if leaves.len() > MAX_LEAVES {
            let message = format!("a pattern has at most {MAX_LEAVES} leaves");
            let given = format!("this one has {}", leaves.len());
            return Err(LimitError::new("pattern", message, given));
        }
        for (index, leaf) in leaves.into_iter().enumerate() {
            check_leaf(leaf).map_err(|error| LimitError {
                leaf: Some(index),
                ..error
            })?;
        }
        routed::check(self)
    }
}

/// Checks that a text has at most [`MAX_LENGTH`] bytes.
pub(crate) fn check_length(source: &Source) -> Result<(), Diagnostic> {
    match source.text.len() {
        0..=MAX_LENGTH => Ok(()),
        length => {
            let message = format!("a pattern has at most {MAX_LENGTH} bytes of text");
            let given = format!("this one has {length}");
            Err(Diagnostic::new(source, 0..0, message, given))
        }
    }
}

/// Checks that a block size is 1 to [`MAX_BLOCK`].
pub(crate) fn check_block(block: u32) -> Result<(), LimitError> {
    within("block", "block", block, 1, MAX_BLOCK)
}

/// Checks that layers are strictly increasing.
pub(crate) fn check_layers(layers: &[u32]) -> Result<(), LimitError> {
    match layers.windows(2).find(|pair| pair[0] >= pair[1]) {
        None => Ok(()),
        Some(pair) => Err(LimitError::new(
            "layers",
            "layers must increase",
            format!("{} comes after {}", pair[1], pair[0]),
        )),
    }
}

/// Checks that the cases of `per_head` and `per_layer` name something, that their runs are sorted and
/// apart, and that their numbers are in range.
fn check_cases(pattern: &Pattern) -> Result<(), LimitError> {
    let wrong = |message: String, given: &str| Err(LimitError::new("pattern", message, given));
    for node in pattern.nodes() {
        let (word, cases) = match node {
            Pattern::PerHead(cases) => ("per_head", cases),
            Pattern::PerLayer(cases) => ("per_layer", cases),
            Pattern::Leaf(_) | Pattern::Or(..) | Pattern::And(..) | Pattern::Minus(..) => continue,
        };
        if cases.is_empty() {
            return wrong(format!("`{word}` needs a case"), "it has none");
        }
        for Case { of, .. } in cases {
            let Indices::Some(runs) = of else { continue };
            let apart = runs.windows(2).all(|x| x[0].end() < x[1].first);
            if runs.is_empty() || !apart || runs.iter().any(|run| run.count == 0) {
                let message =
                    format!("a case of `{word}` lists runs of at least one, apart and increasing");
                return wrong(message, &of.to_string());
            }
            if of.end() > MAX_INDEX {
                let message = format!("cases of `{word}` name numbers below {MAX_INDEX}");
                return wrong(message, &of.to_string());
            }
        }
    }
    Ok(())
}

/// Checks every argument of `leaf`.
pub(crate) fn check_leaf(leaf: &Leaf) -> Result<(), LimitError> {
    match leaf {
        Leaf::Window { tokens } => within("tokens", "window", *tokens, 1, u32::MAX),
        Leaf::Tail { tokens } => within("tokens", "tail", *tokens, 1, u32::MAX),
        Leaf::Routed {
            blocks,
            pool,
            every,
        } => {
            within("blocks", "the blocks of `routed`", *blocks, 1, MAX_ROUTED)?;
            within("pool", "the pool of `routed`", *pool, 1, MAX_BLOCK)?;
            within("every", "`every` of `routed`", *every, 1, MAX_BLOCK)
        }
        Leaf::Partner { rule, radix, count } => {
            within("radix", "radix", *radix, 2, MAX_RADIX)?;
            within("count", "count", *count, 1, MAX_COUNT)?;
            if *radix > 2 && *rule != PartnerRule::CausalShift {
                let given = format!("`{}` has radix 2", rule.name());
                let message = format!("only `causal_shift` takes a radix of {radix}");
                return Err(LimitError::new("radix", message, given));
            }
            Ok(())
        }
        Leaf::Causal
        | Leaf::Local { .. }
        | Leaf::Sink { .. }
        | Leaf::SinkTokens { .. }
        | Leaf::Global { .. }
        | Leaf::Table { .. }
        | Leaf::All
        | Leaf::None => Ok(()),
    }
}

/// By how many levels a pattern counts as deeper than its parts.
fn own_depth(pattern: &Pattern) -> u32 {
    match pattern {
        Pattern::Leaf(_) => 0,
        Pattern::Or(..) | Pattern::And(..) | Pattern::Minus(..) => 1,
        Pattern::PerHead(_) | Pattern::PerLayer(_) => CASES,
    }
}

fn within(
    argument: &'static str,
    what: &str,
    given: u32,
    least: u32,
    most: u32,
) -> Result<(), LimitError> {
    let message = if given < least {
        format!("{what} must be at least {least}")
    } else if given > most {
        format!("{what} must be at most {most}")
    } else {
        return Ok(());
    };
    Err(LimitError::new(argument, message, format!("given {given}")))
}

/// Whether a leaf is nested in more than `most` operators. Works without recursion, since a
/// pattern built by operators in Rust can be arbitrarily deep.
fn is_deeper(pattern: &Pattern, most: u32) -> bool {
    let mut open = vec![(pattern, 0)];
    while let Some((pattern, above)) = open.pop() {
        if above > most {
            return true;
        }
        let depth = above + own_depth(pattern);
        open.extend(pattern.parts().into_iter().map(|part| (part, depth)));
    }
    false
}
