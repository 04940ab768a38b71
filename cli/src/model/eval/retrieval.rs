//! Retrieval tasks put to a model: prompts in batches, dense attention beside policies.
//!
//! In:  cases, whose prompts are made when their turn comes. Out: shares that were found, by task,
//!      length, depth and attention, with 95 % intervals.

use super::interval::wilson;
use super::tasks::{self, Answer, Case, Encode, Prompt};
use crate::args::RetrievalTask;
use crate::failure::Failure;
use crate::model::continuation::Continuation;
use crate::model::finite::Watch;
use butterfly::AttentionBackend;
use butterfly_models::{Model, Policy, Sampler};
use indicatif::ProgressBar;
use serde::Serialize;

/// Most prompts of a batch, where it is not given.
const MOST: usize = 32;

/// What all prompts of a run share.
pub(crate) struct Questions<'a> {
    pub(crate) cases: &'a [Case],
    /// The tokens of the text in which facts are hidden.
    pub(crate) text: &'a [u32],
    pub(crate) encode: Encode<'a>,
    pub(crate) decode: &'a dyn Fn(&[u32]) -> Result<String, Failure>,
    /// Most tokens of an answer.
    pub(crate) answer: usize,
    /// Tokens that fix the stages, if they are not those of the prompt and its answer.
    pub(crate) capacity: Option<usize>,
}

impl Questions<'_> {
    /// Tokens that a prompt of `length` tokens and its answer have room for.
    pub(crate) fn room(&self, length: usize) -> usize {
        self.capacity.unwrap_or(length + self.answer)
    }

    /// The lengths of prompts, each with the number of its prompts.
    pub(crate) fn lengths(&self) -> Vec<(usize, usize)> {
        let mut lengths: Vec<(usize, usize)> = Vec::new();
        for case in self.cases {
            match lengths
                .iter_mut()
                .find(|(length, _)| *length == case.length)
            {
                Some((_, count)) => *count += 1,
                None => lengths.push((case.length, 1)),
            }
        }
        lengths
    }
}

/// The number of prompts that run together: the most that there is room for, at least one. On the
/// CPU, where more are not faster, one.
pub(crate) fn together(on_host: bool, prompts: usize, has_room: impl Fn(usize) -> bool) -> usize {
    if on_host {
        return 1;
    }
    let mut most = MOST.min(prompts.max(1));
    while most > 1 && !has_room(most) {
        most /= 2;
    }
    most
}

/// What was found in the prompts that have these in common.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) task: RetrievalTask,
    pub(crate) tokens: usize,
    /// Where the fact was hidden; without it, anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) depth: Option<f32>,
    /// The name of the policy.
    pub(crate) attention: String,
    pub(crate) prompts: u64,
    /// Mean share of the answer: of its tokens, up to the first that was wrong, or of its names.
    pub(crate) found: f64,
    pub(crate) found_interval: [f64; 2],
    /// Share of the prompts in which all of the answer was found.
    pub(crate) exact: f64,
    pub(crate) exact_interval: [f64; 2],
}

/// One prompt's result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Score<'a> {
    pub(crate) case: Case,
    pub(crate) attention: &'a str,
    pub(crate) found: f64,
}

/// Puts all questions to a model with each of the policies. `batches` says how many prompts of a
/// length run together.
pub(in crate::model) fn ask_all<'a, B: AttentionBackend>(
    questions: &Questions<'_>,
    model: &Model<B>,
    policies: &[(&'a str, &Policy)],
    (batches, chunk): (&[(usize, usize)], usize),
    watch: &mut Watch,
) -> Result<Vec<Score<'a>>, Failure> {
    let tokens: usize = questions.cases.iter().map(|case| case.length).sum();
    let bar = crate::progress((tokens * policies.len()) as u64, "tokens with facts");
    let mut scores = Vec::new();
    for &(length, batch) in batches {
        let same = questions.cases.iter().enumerate();
        let same: Vec<(usize, &Case)> = same.filter(|(_, case)| case.length == length).collect();
        for cases in same.chunks(batch.max(1)) {
            let prompts = cases
                .iter()
                .map(|(_, case)| tasks::prompt(case, questions.text, questions.encode));
            let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
            for &(attention, policy) in policies {
                let said = ask(
                    questions,
                    (model, policy),
                    &prompts,
                    chunk,
                    (&mut *watch, &bar),
                )?;
                for (((number, case), prompt), said) in cases.iter().zip(&prompts).zip(said) {
                    let text = match &prompt.answer {
                        Answer::Exactly(_) => String::new(),
                        Answer::Names { .. } => (questions.decode)(&said)?,
                    };
                    let score = Score {
                        case: **case,
                        attention,
                        found: prompt.answer.found(&said, &text),
                    };
                    scores.push((*number, score));
                }
            }
        }
    }
    bar.finish_and_clear();
    // In the order of the cases, however many ran together.
    scores.sort_by_key(|(number, _)| *number);
    Ok(scores.into_iter().map(|(_, score)| score).collect())
}

/// What a model says after each prompt, greedily, as long as it can be right. The prompts have the
/// same length, and share what `chunk` takes at once.
fn ask<B: AttentionBackend>(
    questions: &Questions<'_>,
    (model, policy): (&Model<B>, &Policy),
    prompts: &[Prompt],
    chunk: usize,
    (watch, bar): (&mut Watch, &ProgressBar),
) -> Result<Vec<Vec<u32>>, Failure> {
    let length = prompts.first().map_or(0, |prompt| prompt.tokens.len());
    let mut continuation = Continuation {
        model,
        policy,
        state: model.state(prompts.len(), Some(questions.room(length)), policy),
        texts: (0..prompts.len())
            .map(|_| (Sampler::new(Default::default()), 0))
            .collect(),
        watch: std::mem::take(watch),
        interrupt: None,
    };
    let tokens: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.tokens[..]).collect();
    let chunk = (chunk / prompts.len().max(1)).max(1);
    let first = continuation.prefill(&tokens, |_| chunk, bar)?;
    let mut said = vec![Vec::new(); prompts.len()];
    let most = questions.answer.max(1);
    let ends = &model.sizes.ends;
    let decoded = continuation.decode(first, ends, most, |row, token| {
        said[row].push(token);
        Ok(prompts[row].answer.goes_on(&said[row]))
    });
    *watch = continuation.watch;
    decoded?;
    Ok(said)
}

/// Scores by task, length, depth (with `by_depth`) and attention, in the order of the scores.
pub(crate) fn tally<'a>(scores: &[Score<'a>], by_depth: bool) -> Vec<Found> {
    let of = |score: &Score<'a>| {
        let Case {
            task,
            length,
            depth,
            ..
        } = score.case;
        (task, length, by_depth.then_some(depth), score.attention)
    };
    let mut keys = Vec::new();
    for key in scores.iter().map(of) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let found = keys.into_iter().map(|key| {
        let same = scores.iter().filter(|score| of(score) == key);
        let shares: Vec<f64> = same.map(|score| score.found).collect();
        let prompts = shares.len() as u64;
        let found = shares.iter().sum::<f64>() / prompts as f64;
        let exact = shares.iter().filter(|share| **share == 1.0).count() as f64 / prompts as f64;
        let (task, tokens, depth, attention) = key;
        Found {
            task,
            tokens,
            depth,
            attention: attention.into(),
            prompts,
            found,
            found_interval: wilson(found, prompts),
            exact,
            exact_interval: wilson(exact, prompts),
        }
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_counted_by_what_they_share() {
        let score = |length, depth, attention, found| Score {
            case: Case {
                task: RetrievalTask::Kv,
                seed: 0,
                trial: 0,
                length,
                depth,
            },
            attention,
            found,
        };
        let scores = [
            score(64, 0.0, "dense", 1.0),
            score(64, 0.0, "butterfly", 0.5),
            score(64, 1.0, "dense", 1.0),
            score(64, 0.0, "butterfly", 1.0),
            score(96, 0.0, "dense", 0.0),
        ];
        let found = |by_depth| -> Vec<_> {
            let all = tally(&scores, by_depth);
            let all = all.into_iter();
            all.map(|f| (f.tokens, f.depth, f.attention, f.prompts, f.found, f.exact))
                .collect()
        };
        let [dense, other] = [|| "dense".to_string(), || "butterfly".to_string()];
        assert_eq!(
            found(true),
            [
                (64, Some(0.0), dense(), 1, 1.0, 1.0),
                (64, Some(0.0), other(), 2, 0.75, 0.5),
                (64, Some(1.0), dense(), 1, 1.0, 1.0),
                (96, Some(0.0), dense(), 1, 0.0, 0.0),
            ]
        );
        assert_eq!(
            found(false),
            [
                (64, None, dense(), 2, 1.0, 1.0),
                (64, None, other(), 2, 0.75, 0.5),
                (96, None, dense(), 1, 0.0, 0.0),
            ]
        );
        let exact = &tally(&scores, false)[1];
        assert_eq!(exact.exact_interval, wilson(0.5, 2));
    }

    #[test]
    fn batches_are_as_large_as_there_is_room() {
        assert_eq!(together(true, 100, |_| true), 1);
        assert_eq!(together(false, 100, |_| true), MOST);
        assert_eq!(together(false, 100, |n| n <= 9), 8);
        assert_eq!(together(false, 5, |_| true), 5);
        assert_eq!(together(false, 100, |_| false), 1);
    }
}
