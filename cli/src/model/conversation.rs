//! A conversation with a model, which reads of each prompt only what it has not read yet.
//!
//! Invariant: `read` holds the tokens that the state of the model has taken.

use super::continuation::{Continuation, Decoded};
use super::prompts::message;
use super::shown::Shown;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_models::{Chat, Message};
use indicatif::ProgressBar;
use std::time::Instant;

/// Messages, and how far the model has read them.
pub(super) struct Conversation<'a, B: AttentionBackend> {
    pub(super) continuation: Continuation<'a, B>,
    pub(super) chat: &'a Chat,
    /// What was said before the user's first message.
    pub(super) begin: Vec<Message>,
    pub(super) messages: Vec<Message>,
    pub(super) read: Vec<u32>,
    /// Tokens that there is room for.
    pub(super) capacity: usize,
    /// Tokens of a prompt that are read at once.
    pub(super) chunk: usize,
    /// Most tokens of an answer.
    pub(super) most: Option<usize>,
}

/// What a user's message was answered.
pub(super) struct Answer {
    /// Tokens of the conversation up to the answer.
    pub(super) prompt: usize,
    /// Those of them that were read before.
    pub(super) reused: usize,
    /// Those that were read now, and what that took. Ctrl-C may stop it before the end.
    pub(super) read: usize,
    pub(super) prefill_seconds: f64,
    pub(super) decoded: Decoded,
    pub(super) text: String,
    pub(super) stop: Stop,
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The model ended it.
    Ended,
    /// It has as many tokens as were asked for.
    Most,
    /// The capacity is used up.
    Capacity,
    Interrupted,
    /// Logits were not finite.
    NotFinite,
    /// Nobody reads it any more.
    Unread,
}

/// Why a message is not answered.
pub(super) enum Refused {
    /// The template or the tokenizer refuses it.
    Text(String),
    /// With it, the conversation has so many tokens, and no room for an answer.
    Full(usize),
    Failed(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl<B: AttentionBackend> Conversation<'_, B> {
    /// Forgets what was said, except what it begins with.
    pub(super) fn reset(&mut self) {
        self.messages.clone_from(&self.begin);
    }

    /// Answers a message, and keeps both. A message that is refused, or whose answer was
    /// interrupted before its first token, is not kept.
    pub(super) fn say(
        &mut self,
        text: &str,
        mut shown: Shown<'_>,
        bar: &ProgressBar,
    ) -> Result<Answer, Refused> {
        let said = self.messages.len();
        self.messages.push(message("user", text));
        let answer = self
            .prompt()
            .and_then(|prompt| Ok(self.answer(&prompt, &mut shown, bar)?));
        let answer = answer.and_then(|answer| {
            let text = shown.finish()?.unwrap_or_default();
            Ok(Answer { text, ..answer })
        });
        match &answer {
            Ok(answer)
                if answer.stop == Stop::Ended || !answer.decoded.texts[0].tokens.is_empty() =>
            {
                self.messages.push(message("assistant", &answer.text));
            }
            Ok(_) | Err(_) => self.messages.truncate(said),
        }
        answer
    }

    /// The tokens of the conversation, up to where the answer begins.
    fn prompt(&self) -> Result<Vec<u32>, Refused> {
        let text = self.chat.apply(&self.messages);
        let tokens = text.and_then(|text| self.chat.encode(&text, false));
        let tokens = tokens.map_err(|error| Refused::Text(error.to_string()))?;
        match tokens.len() {
            0 => Err(Refused::Text(
                "the chat template makes no tokens of this".into(),
            )),
            count if count >= self.capacity => Err(Refused::Full(count)),
            _ => Ok(tokens),
        }
    }

    /// Reads what is new of a prompt, and generates the answer.
    fn answer(
        &mut self,
        prompt: &[u32],
        shown: &mut Shown<'_>,
        bar: &ProgressBar,
    ) -> Result<Answer, Failure> {
        // The last token is always read: its logits give the first of the answer.
        let pairs = self.read.iter().zip(&prompt[..prompt.len() - 1]);
        let same = pairs.take_while(|(a, b)| a == b).count();
        let reused = self.continuation.state.truncate(same);
        self.read.truncate(reused);

        let new = &prompt[reused..];
        bar.set_length(new.len() as u64);
        let started = Instant::now();
        let first = self.continuation.prefill(&[new], |_| self.chunk, bar);
        bar.finish_and_clear();
        let prefill_seconds = started.elapsed().as_secs_f64();
        let position = self.continuation.state.position();
        self.read.extend(&prompt[reused..position]);

        let first = first?;
        let room = self.capacity - prompt.len();
        let most = self.most.map_or(room, |most| most.min(room));
        let ends = &self.continuation.model.sizes.ends;
        let mut is_read = true;
        let decoded = self.continuation.decode(first, ends, most, |_, token| {
            is_read = shown.show(token)?;
            Ok(is_read)
        })?;
        let taken = self.continuation.state.position() - position;
        let new = &decoded.texts[0];
        self.read.extend(&new.tokens[..taken]);
        let stop = match new {
            new if new.ended => Stop::Ended,
            _ if !is_read => Stop::Unread,
            new if new.tokens.len() == most && most == room => Stop::Capacity,
            new if new.tokens.len() == most => Stop::Most,
            _ if self.continuation.interrupted() => Stop::Interrupted,
            _ => Stop::NotFinite,
        };
        Ok(Answer {
            prompt: prompt.len(),
            reused,
            read: position - reused,
            prefill_seconds,
            decoded,
            text: String::new(),
            stop,
        })
    }
}
