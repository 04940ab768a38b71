//! Checks a pattern at all lengths and stages: every query sees at least one key, and none sees
//! a later key.
//!
//! In:  a pattern, its block size and the longest sequence it will be used for.
//! Out: nothing, or the first violation with the length and stage at which it occurs.
//!
//! If the form of a pattern shows that it is causal, and that each query sees its own token or
//! the first one, it holds at every length. Any other pattern is tested: at every number of
//! blocks up to [`EVERY`] and at the largest, and in between at the powers of two and their
//! neighbours, where the width of the butterfly network changes. Each number of blocks is tested
//! twice, with a whole last block and with a last block of one token.

use crate::classify::{self, ClassifyError};
use butterfly_ir::{Context, Leaf, Pattern, Sparsity};

/// Up to this many blocks, every number of blocks is tested.
pub const EVERY: u32 = 40;

/// Most stages that are tested at each length; only patterns that mix several radices have more.
pub const STAGES: u32 = 512;

/// Checks the pattern of `sparsity` at lengths up to `max_tokens`, at every stage or, where the
/// pattern fixes one, at that stage.
///
/// # Errors
/// The first violation, as [`classify::check_tables`] or [`classify::check`] reports it.
pub fn check(sparsity: &Sparsity, max_tokens: u32) -> Result<(), ClassifyError> {
    let (pattern, block) = (&sparsity.pattern, sparsity.block);
    if always_causal(pattern) && (always_sees_itself(pattern) || always_sees_first(pattern)) {
        return Ok(());
    }
    let most = max_tokens.div_ceil(block).max(1);
    let powers = (0..31)
        .map(|bit| 1u32 << bit)
        .flat_map(|n| [n - 1, n, n + 1]);
    let beyond = powers.filter(|n| *n > EVERY && *n < most);
    for blocks in (1..=most.min(EVERY))
        .chain(beyond)
        .chain((most > EVERY).then_some(most))
    {
        for kv_len in [
            (blocks - 1) * block + 1,
            (blocks * block).min(max_tokens.max(1)),
        ] {
            let stages = match sparsity.stage {
                Some(stage) => stage..=stage,
                None => 0..=pattern.stage_count(blocks).min(STAGES) - 1,
            };
            // The tail of a prompt can lie at the end of the keys, or after them.
            let prompts = match pattern.tail() > 0 {
                true => vec![kv_len, max_tokens.max(kv_len)],
                false => vec![kv_len],
            };
            for (index, prompt) in stages.flat_map(|index| prompts.iter().map(move |p| (index, *p)))
            {
                let context = Context {
                    prompt,
                    ..Context::new(block, kv_len, index)
                };
                classify::check_tables(pattern, &context)?;
                classify::check(pattern, &context)?;
            }
        }
    }
    Ok(())
}

/// Whether the form of the pattern shows that no query sees a later key.
fn always_causal(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Leaf(leaf) => match leaf {
            Leaf::Causal | Leaf::Window { .. } | Leaf::Routed { .. } | Leaf::None => true,
            Leaf::Sink { blocks } => *blocks == 0,
            Leaf::SinkTokens { tokens } => *tokens <= 1,
            Leaf::Global { blocks } => *blocks == 0,
            Leaf::Local { .. }
            | Leaf::Partner { .. }
            | Leaf::Tail { .. }
            | Leaf::Table { .. }
            | Leaf::All => false,
        },
        Pattern::Or(a, b) => always_causal(a) && always_causal(b),
        Pattern::And(a, b) => always_causal(a) || always_causal(b),
        Pattern::Minus(a, _) => always_causal(a),
        Pattern::PerHead(cases) | Pattern::PerLayer(cases) => {
            cases.iter().all(|case| always_causal(&case.pattern))
        }
    }
}

/// Whether the form of the pattern shows that every query sees its own token.
fn always_sees_itself(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Leaf(leaf) => match leaf {
            Leaf::Causal | Leaf::Window { .. } | Leaf::Local { .. } | Leaf::All => true,
            Leaf::Partner { .. }
            | Leaf::Sink { .. }
            | Leaf::SinkTokens { .. }
            | Leaf::Global { .. }
            | Leaf::Tail { .. }
            | Leaf::Routed { .. }
            | Leaf::Table { .. }
            | Leaf::None => false,
        },
        Pattern::Or(a, b) => always_sees_itself(a) || always_sees_itself(b),
        Pattern::And(a, b) => always_sees_itself(a) && always_sees_itself(b),
        // Heads and layers are looked at one by one, without cases.
        Pattern::Minus(..) | Pattern::PerHead(_) | Pattern::PerLayer(_) => false,
    }
}

/// Whether the form of the pattern shows that every query sees the first token.
fn always_sees_first(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Leaf(leaf) => match leaf {
            Leaf::Causal | Leaf::All => true,
            Leaf::Sink { blocks } | Leaf::Global { blocks } => *blocks > 0,
            Leaf::SinkTokens { tokens } => *tokens > 0,
            Leaf::Local { .. }
            | Leaf::Window { .. }
            | Leaf::Partner { .. }
            | Leaf::Tail { .. }
            | Leaf::Routed { .. }
            | Leaf::Table { .. }
            | Leaf::None => false,
        },
        Pattern::Or(a, b) => always_sees_first(a) || always_sees_first(b),
        Pattern::And(a, b) => always_sees_first(a) && always_sees_first(b),
        // Heads and layers are looked at one by one, without cases.
        Pattern::Minus(..) | Pattern::PerHead(_) | Pattern::PerLayer(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::PartnerRule;

    fn causal() -> Pattern {
        Leaf::Causal.into()
    }

    fn check(pattern: Pattern, block: u32, max_tokens: u32) -> Result<(), ClassifyError> {
        let sparsity = Sparsity {
            block,
            ..pattern.into()
        };
        super::check(&sparsity, max_tokens)
    }

    #[test]
    fn patterns_that_hold() {
        let local = Pattern::from(Leaf::Local {
            before: 1,
            after: 1,
        });
        assert_eq!(check(causal() & local, 128, 1 << 20), Ok(()));
        // Every query sees block 0, at or before its own block.
        assert_eq!(
            check(causal() & Leaf::Sink { blocks: 1 }.into(), 16, 5000),
            Ok(())
        );
    }

    #[test]
    fn patterns_that_do_not() {
        let shift = Pattern::from(Leaf::Partner {
            rule: PartnerRule::CausalShift,
            radix: 2,
            count: 1,
        });
        let empty = check(causal() & shift.clone(), 128, 1 << 20);
        assert!(
            matches!(empty, Err(ClassifyError::EmptyQuery { query: 0, .. })),
            "{empty:?}"
        );
        // Where the pattern fixes a stage, that stage is checked.
        let fixed = Sparsity {
            stage: Some(2),
            ..Sparsity::from(causal() & shift)
        };
        let empty = super::check(&fixed, 1 << 20);
        assert!(
            matches!(empty, Err(ClassifyError::EmptyQuery { stage: 2, .. })),
            "{empty:?}"
        );
        let leak = check(Leaf::All.into(), 128, 1 << 20);
        assert_eq!(leak, Err(ClassifyError::CausalLeak { query: 0, key: 127 }));
        // Fails only from the fourth block on.
        let late = Pattern::from(Leaf::Window { tokens: 8 }) & Leaf::Sink { blocks: 2 }.into();
        assert_eq!(check(late.clone(), 8, 23), Ok(()));
        assert!(matches!(
            check(late, 8, 24),
            Err(ClassifyError::EmptyQuery { query: 23, .. })
        ));
    }
}
