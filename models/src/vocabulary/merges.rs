//! Which pairs of tokens are merged, first ones first.

use super::{Kind, Vocabulary, shown};
use std::cmp::Reverse;
use tokenizers::models::bpe::{Merges, Vocab};

/// Merges as `tokenizer.ggml.merges` lists them.
///
/// # Errors
/// If one is no pair, or names a token that is not in the vocabulary.
pub(super) fn given(merges: &[&str], ids: &Vocab) -> Result<Merges, String> {
    let mut both = String::new();
    let pair = |(index, merge): (usize, &&str)| {
        let wrong = |what: String| {
            format!(
                "has a wrong `tokenizer.ggml.merges[{index}]`: {} {what}; convert the model again",
                shown(merge)
            )
        };
        // The first token may itself begin with a space, as llama.cpp allows.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let Some(at) = merge[first..].find(' ') else {
            return Err(wrong("is no pair of tokens with a space between".into()));
        };
        let (left, right) = (&merge[..first + at], &merge[first + at + 1..]);
        both.clear();
        both.push_str(left);
        both.push_str(right);
        match [left, right, &both]
            .into_iter()
            .find(|token| !ids.contains_key(*token))
        {
            Some(token) => Err(wrong(format!("needs {}, which is no token", shown(token)))),
            None => Ok((left.to_string(), right.to_string())),
        }
    };
    merges.iter().enumerate().map(pair).collect()
}

/// The longest token that merges are derived for, in bytes. SentencePiece's own limit is 16
/// characters unless a training run sets another.
const LONGEST: usize = 512;

/// How many merges may lead to a token, on the average over a vocabulary. Usual is 2.
const WAYS: usize = 8;

/// Merges for a vocabulary that has scores only: for each token, every pair of tokens that makes
/// it up.
///
/// SentencePiece merges the pair with the highest score, and of those with equal scores the
/// leftmost. Merges have an order of their own instead. This makes no difference where every token
/// has a score of its own, as in every vocabulary that SentencePiece learned: no other tokens were
/// found for random vocabularies and texts. (Of two pairs that make up the same token, the one with
/// the longer left part comes first, as it usually lies further left where the two overlap.) Where
/// tokens share a score, the first of them in the vocabulary is merged first.
///
/// Tokens other than normal ones are never merged: control, user-defined and unknown ones are
/// found before, bytes are no characters, and SentencePiece takes unused ones apart again.
///
/// # Errors
/// If a score is no number, or the vocabulary is none that was learned by merging.
pub(super) fn of_scores(vocabulary: &Vocabulary<'_>, ids: &Vocab) -> Result<Merges, String> {
    let Some(scores) = &vocabulary.scores else {
        return Err("has neither `tokenizer.ggml.scores` nor `tokenizer.ggml.merges` in its metadata; convert the model again".into());
    };
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(format!(
            "has a wrong `tokenizer.ggml.scores[{id}]`: it is not a number; convert the model again"
        ));
    }
    let normal = |text: &str| {
        ids.get(text)
            .is_some_and(|id| vocabulary.kinds[*id as usize] == Kind::Normal)
    };
    let most = WAYS * vocabulary.tokens.len();
    // Each merge is a token and where it is cut, in bytes.
    let mut cuts: Vec<(u32, u32)> = Vec::new();
    for (id, text, kind) in vocabulary.iter() {
        if kind != Kind::Normal {
            continue;
        }
        if text.len() > LONGEST {
            return Err(format!(
                "has a token that is too long: {} in `tokenizer.ggml.tokens[{id}]`, expected at most {LONGEST} bytes",
                shown(text)
            ));
        }
        let places = text.char_indices().skip(1).map(|(at, _)| at);
        let places = places.filter(|at| normal(&text[..*at]) && normal(&text[*at..]));
        cuts.extend(places.map(|at| (id, at as u32)));
        if cuts.len() > most {
            return Err(format!(
                "has tokens in `tokenizer.ggml.tokens` that can be merged in too many ways: more than {WAYS} for each on the average"
            ));
        }
    }
    cuts.shrink_to_fit();
    // Adding 0 makes -0, the score of the first token that SentencePiece learns, equal to 0.
    let score = |id: u32| scores[id as usize] + 0.0;
    cuts.sort_unstable_by(|(a, left), (b, right)| {
        let better = score(*b).total_cmp(&score(*a));
        better.then((a, Reverse(left)).cmp(&(b, Reverse(right))))
    });
    let pair = |(id, at): (u32, u32)| {
        let (left, right) = vocabulary.text(id).split_at(at as usize);
        (left.to_string(), right.to_string())
    };
    Ok(cuts.into_iter().map(pair).collect())
}
