//! Text on its way to stdout, while it is generated.

use crate::failure::Failure;
use crate::output;
use butterfly_models::{Chat, Stream};

/// Prints the text while it is generated.
pub(super) struct Shown<'a> {
    /// Decodes tokens to text; without a tokenizer, token numbers are printed.
    text: Option<Stream<'a>>,
    stream: bool,
    first: bool,
}

impl<'a> Shown<'a> {
    /// With `stream` false, the text is only collected.
    pub(super) fn new(chat: Option<&'a Chat>, stream: bool) -> Self {
        Self {
            text: chat.map(Chat::stream),
            stream,
            first: true,
        }
    }

    /// Prints the text that a token adds; an incomplete character waits for the rest of its bytes.
    /// Returns false if the reader has gone away.
    pub(super) fn show(&mut self, token: u32) -> Result<bool, Failure> {
        let comma = if std::mem::take(&mut self.first) {
            ""
        } else {
            ","
        };
        let new = match &mut self.text {
            None => format!("{comma}{token}"),
            Some(text) => text.push(token),
        };
        self.print(&new)
    }

    /// Prints the rest, including an incomplete character, and returns the whole text.
    pub(super) fn finish(mut self) -> Result<Option<String>, Failure> {
        let Some(text) = self.text.take() else {
            return Ok(None);
        };
        let (rest, whole) = text.finish().map_err(Failure::bad)?;
        self.print(&rest)?;
        Ok(Some(whole))
    }

    fn print(&self, text: &str) -> Result<bool, Failure> {
        match self.stream && !text.is_empty() {
            true => output::stream(text),
            false => Ok(true),
        }
    }
}
