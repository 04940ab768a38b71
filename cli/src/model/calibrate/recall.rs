//! How often a fact is found that is hidden in a prompt of the length of a window.
//!
//! In:  a tokenizer and a policy. Out: the share of prompts that were answered, with its interval. The
//! prompts are those of `eval --tasks needle`, at even depths.

use super::super::eval::retrieval::{self, ask_all, tally};
use super::super::eval::tasks::{self, Case};
use super::super::finite::Watch;
use crate::args::RetrievalTask;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_models::{Chat, Model, Policy};
use serde::{Deserialize, Serialize};

/// Tokens that are left for an answer, a space and five digits: of bytes, where a space may be three.
const ANSWER: usize = 8;

/// The prompts of a calibration.
pub(super) struct Questions {
    chat: Chat,
    cases: Vec<Case>,
    /// Most tokens of an answer.
    answer: usize,
    /// Tokens that fix the stages.
    capacity: usize,
}

/// What was found in them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recall {
    pub(super) prompts: u64,
    /// Tokens of each prompt.
    pub(super) tokens: usize,
    pub(super) seed: u64,
    /// Share of the prompts of which all of the answer was right.
    pub(super) share: f64,
    /// Its 95 % interval.
    pub(super) interval: [f64; 2],
}

impl Questions {
    /// So many prompts; each has room for its answer in a window.
    pub(super) fn new(
        chat: Chat,
        (seed, prompts): (u64, u32),
        [window, capacity]: [u32; 2],
    ) -> Result<Self, Failure> {
        let window = window as usize;
        let case = |trial: u32| Case {
            task: RetrievalTask::Needle,
            seed,
            trial,
            length: window.saturating_sub(ANSWER),
            depth: (trial as f32 + 0.5) / prompts as f32,
        };
        let cases: Vec<Case> = (0..prompts).map(case).collect();
        let encode = |text: &str| chat.encode(text, false).map_err(Failure::bad);
        let (mut least, mut answer) = (0, 0);
        for case in &cases {
            let (tokens, most) = tasks::least(case, &encode)?;
            (least, answer) = (tokens.max(least), most.max(answer));
        }
        if answer > ANSWER {
            return Err(Failure::Bad(format!(
                "--retrieval: a number of five digits has {answer} tokens here, at most {ANSWER} are counted on; leave it out"
            )));
        }
        if window < least + ANSWER {
            return Err(Failure::Bad(format!(
                "--retrieval: a prompt with a fact and its answer take {} tokens, a window has {window}; give a larger --window",
                least + ANSWER
            )));
        }
        Ok(Self {
            chat,
            cases,
            answer,
            capacity: capacity as usize,
        })
    }

    /// Whether `recall` is that of these prompts.
    pub(super) fn made(&self, recall: &Recall) -> bool {
        let first = self.cases.first();
        first.is_some_and(|case| (case.seed, case.length) == (recall.seed, recall.tokens))
            && recall.prompts == self.cases.len() as u64
    }

    /// How many prompts run together, if `has_room` says whether so many can.
    pub(super) fn together(&self, on_host: bool, has_room: impl Fn(usize) -> bool) -> usize {
        retrieval::together(on_host, self.cases.len(), has_room)
    }

    /// What a policy finds; the facts are hidden in `text`. `together` prompts share a `chunk`.
    pub(super) fn ask<B: AttentionBackend>(
        &self,
        (model, policy): (&Model<B>, &Policy),
        text: &[u32],
        (together, chunk): (usize, usize),
        watch: &mut Watch,
    ) -> Result<Recall, Failure> {
        let questions = retrieval::Questions {
            cases: &self.cases,
            text,
            encode: &|text: &str| self.chat.encode(text, false).map_err(Failure::bad),
            decode: &|tokens: &[u32]| self.chat.decode(tokens).map_err(Failure::bad),
            answer: self.answer,
            capacity: Some(self.capacity),
        };
        let batches = questions.lengths().into_iter();
        let batches = batches.map(|(length, prompts)| (length, together.min(prompts)));
        let batches: Vec<(usize, usize)> = batches.collect();
        let policies = [("policy", policy)];
        let scores = ask_all(&questions, model, &policies, (&batches, chunk), watch)?;
        let found = tally(&scores, false);
        let found = found.first();
        let found = found.ok_or_else(|| Failure::Bad("--retrieval: no prompt was put".into()))?;
        Ok(Recall {
            prompts: found.prompts,
            tokens: found.tokens,
            seed: self.cases.first().map_or(0, |case| case.seed),
            share: found.exact,
            interval: found.exact_interval,
        })
    }
}
