//! The allowed ranges of all numbers in a pattern.
//!
//! In:  a leaf, a block size, a list of layers.
//! Out: nothing, or the argument and the value that is not allowed.
//!
//! Invariant: this is the only place that defines the ranges. Text, JSON and
//! `Sparsity::check` all use it, so each form accepts the same patterns.

use super::{Diagnostic, Leaf, PartnerRule, Pattern, Source, Sparsity};

/// Most tokens in a block.
pub const MAX_BLOCK: u32 = 1 << 20;
/// Largest radix of a staged partner.
pub const MAX_RADIX: u32 = 1 << 16;
/// Most digits that one partner leaf visits at a stage; no network has more stages than this.
pub const MAX_COUNT: u32 = 64;
/// Most operators, or parentheses, that are nested around a leaf.
///
/// An operator takes two levels of JSON, and serde_json reads at most 127 levels. A pattern of
/// this depth can therefore be read from JSON, even inside a manifest.
pub const MAX_DEPTH: u32 = 50;
/// Most leaves of a pattern.
pub const MAX_LEAVES: usize = 256;
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
        Ok(())
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

/// Checks every argument of `leaf`.
pub(crate) fn check_leaf(leaf: &Leaf) -> Result<(), LimitError> {
    match leaf {
        Leaf::Window { tokens } => within("tokens", "window", *tokens, 1, u32::MAX),
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
        match pattern {
            Pattern::Leaf(_) => {}
            Pattern::Or(a, b) | Pattern::And(a, b) | Pattern::Minus(a, b) => {
                open.extend([(&**a, above + 1), (&**b, above + 1)]);
            }
        }
    }
    false
}
