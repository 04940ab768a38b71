//! Patterns as text.
//!
//! In:  a [`Pattern`] or [`Sparsity`]. Out: text that parses back to an equal value,
//! with as few parentheses as possible.

use super::leaves::LeafName;
use super::{Case, Leaf, Pattern, Sparsity, StageBy};
use std::fmt;

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, sign, b) = match self {
            Self::Leaf(leaf) => return leaf.fmt(f),
            Self::PerHead(list) => return cases(f, "per_head", list),
            Self::PerLayer(list) => return cases(f, "per_layer", list),
            Self::Or(a, b) => (a, '|', b),
            Self::And(a, b) => (a, '&', b),
            Self::Minus(a, b) => (a, '-', b),
        };
        // Every operator is left-associative, so an equal operator needs parentheses only on the
        // right.
        operand(f, a, strength(self))?;
        write!(f, " {sign} ")?;
        operand(f, b, strength(self) + 1)
    }
}

/// How tightly the outermost operator binds: as in Rust, `-`, then `&`, then `|`.
fn strength(pattern: &Pattern) -> u32 {
    match pattern {
        Pattern::Or(..) => 0,
        Pattern::And(..) => 1,
        Pattern::Minus(..) => 2,
        Pattern::Leaf(_) | Pattern::PerHead(_) | Pattern::PerLayer(_) => 4,
    }
}

fn cases(f: &mut fmt::Formatter<'_>, word: &str, cases: &[Case]) -> fmt::Result {
    write!(f, "{word} {{")?;
    for (i, Case { of, pattern }) in cases.iter().enumerate() {
        let end = if i == 0 { "" } else { ";" };
        write!(f, "{end} {of} => {pattern}")?;
    }
    f.write_str(" }")
}

fn operand(f: &mut fmt::Formatter<'_>, pattern: &Pattern, least: u32) -> fmt::Result {
    if strength(pattern) < least {
        write!(f, "({pattern})")
    } else {
        write!(f, "{pattern}")
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LeafName::of(self).word())?;
        match self {
            Self::Causal | Self::All | Self::None => Ok(()),
            Self::Local { before, after: 0 } => write!(f, "({before})"),
            Self::Local { before, after } => write!(f, "({before}, {after})"),
            Self::Window { tokens } | Self::SinkTokens { tokens } | Self::Tail { tokens } => {
                write!(f, "({tokens})")
            }
            Self::Partner { rule, radix, count } => {
                write!(f, "({}, radix={radix}, count={count})", rule.name())
            }
            Self::Sink { blocks } | Self::Global { blocks } => write!(f, "({blocks})"),
            Self::Routed {
                blocks,
                pool,
                every: 1,
            } => write!(f, "({blocks}, pool={pool})"),
            Self::Routed {
                blocks,
                pool,
                every,
            } => write!(f, "({blocks}, pool={pool}, every={every})"),
            Self::Table { rows } => write!(f, "({rows:?})"),
        }
    }
}

impl fmt::Display for StageBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "block {}", self.block)?;
        writeln!(f, "stage_by {}", self.stage_by)?;
        match self.swapped_layers.as_deref() {
            None => {}
            Some([]) => writeln!(f, "layers none")?,
            Some(layers) => {
                let layers: Vec<_> = layers.iter().map(u32::to_string).collect();
                writeln!(f, "layers {}", layers.join(","))?;
            }
        }
        if let Some(stage) = self.stage {
            writeln!(f, "stage {stage}")?;
        }
        write!(f, "{}", self.pattern)
    }
}
