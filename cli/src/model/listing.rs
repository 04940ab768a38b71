//! The texts of a prompt file, in the order of its lines.

use super::continuation::New;
use super::prompts::Prompt;
use crate::failure::Failure;
use crate::output;
use butterfly_models::Chat;
use serde::Serialize;
use std::path::Path;

/// What a line became.
#[derive(Serialize)]
pub(super) struct Line {
    /// Counted from 1.
    line: usize,
    prompt_tokens: usize,
    pub(super) tokens: Vec<u32>,
    text: String,
    /// Whether the model gave a token that ends the text.
    ended: bool,
}

/// Texts that arrive in any order and are printed in that of their lines, each as soon as those
/// before it are there.
pub(super) struct Listing<'a> {
    chat: &'a Chat,
    prompts: &'a [Prompt],
    /// The file, if texts are printed.
    print: Option<&'a Path>,
    lines: Vec<Option<Line>>,
    /// The first that was not printed.
    next: usize,
}

impl<'a> Listing<'a> {
    pub(super) fn new(chat: &'a Chat, prompts: &'a [Prompt], print: Option<&'a Path>) -> Self {
        Self {
            chat,
            prompts,
            print,
            lines: prompts.iter().map(|_| None).collect(),
            next: 0,
        }
    }

    /// Adds the texts of a batch of prompts. Returns false if the reader has gone away.
    pub(super) fn add(&mut self, batch: &[usize], new: Vec<New>) -> Result<bool, Failure> {
        for (index, new) in batch.iter().zip(new) {
            let prompt = &self.prompts[*index];
            self.lines[*index] = Some(Line {
                line: prompt.line.unwrap_or(0),
                prompt_tokens: prompt.tokens.len(),
                text: self.chat.decode(&new.tokens).map_err(Failure::bad)?,
                tokens: new.tokens,
                ended: new.ended,
            });
        }
        let ready = self.lines[self.next..]
            .iter()
            .take_while(|line| line.is_some());
        let end = self.next + ready.count();
        self.print_to(end)
    }

    /// All texts; prints those that waited for one that did not come.
    pub(super) fn finish(mut self) -> Result<Vec<Line>, Failure> {
        self.print_to(self.lines.len())?;
        Ok(self.lines.into_iter().flatten().collect())
    }

    /// Prints the texts before `end` that were not printed, with headers as those of `head`.
    fn print_to(&mut self, end: usize) -> Result<bool, Failure> {
        let first = self.next;
        self.next = end.max(first);
        let Some(path) = self.print else {
            return Ok(true);
        };
        for (index, line) in self.lines[..end].iter().enumerate().skip(first) {
            let Some(Line { line, text, .. }) = line else {
                continue;
            };
            let gap = if index == 0 { "" } else { "\n" };
            let path = path.display();
            if !output::stream(format_args!("{gap}==> {path}:{line} <==\n{text}\n"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
