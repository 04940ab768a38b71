//! How prompts of different lengths are cut into chunks.

use std::ops::Range;

/// A chunk of the first of several prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptChunk {
    /// How many of the prompts it is of: the first ones (see [`State::only_first`](crate::State::only_first)).
    pub prompts: usize,
    /// Which tokens of each.
    pub tokens: Range<usize>,
    /// The prompts that end with it.
    pub ended: Range<usize>,
}

/// The chunks in which prompts of these lengths are read, in tokens, the longest first. `chunk` says how many tokens are
/// read at once of each of so many prompts.
///
/// A chunk ends where a prompt does, so that all tokens of a chunk are of prompts, and those that are longer go on.
///
/// # Panics
/// If the lengths increase.
pub fn prompt_chunks(lengths: &[usize], chunk: impl Fn(usize) -> usize) -> Vec<PromptChunk> {
    assert!(
        lengths.is_sorted_by(|a, b| a >= b),
        "the longest come first"
    );
    let longest = lengths.first().copied().unwrap_or(0);
    let mut chunks = Vec::new();
    let mut from = 0;
    while from < longest {
        let longer_than = |tokens: usize| lengths.partition_point(|length| *length > tokens);
        let prompts = longer_than(from);
        let to = lengths[prompts - 1].min(from + chunk(prompts).max(1));
        chunks.push(PromptChunk {
            prompts,
            tokens: from..to,
            ended: longer_than(to)..prompts,
        });
        from = to;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_where_prompts_do() {
        let of = |prompts, tokens, ended| PromptChunk {
            prompts,
            tokens,
            ended,
        };
        assert_eq!(
            prompt_chunks(&[9, 9, 4, 1], |prompts| 12 / prompts),
            [of(4, 0..1, 3..4), of(3, 1..4, 2..3), of(2, 4..9, 0..2),]
        );
        assert_eq!(
            prompt_chunks(&[5, 5], |_| 2),
            [of(2, 0..2, 2..2), of(2, 2..4, 2..2), of(2, 4..5, 0..2)]
        );
        assert_eq!(prompt_chunks(&[], |_| 2), []);
    }
}
