//! Error messages for patterns, which show the mistake in its line.
//!
//! In:  name and text of a file, a byte range in it, a message.
//! Out: one [`Diagnostic`], whose `Display` is the form that users see.
//!
//! Invariant: the span lies inside the text, on character boundaries and on one line.

use super::excerpt::Excerpt;
use codespan_reporting::{diagnostic, term};
use std::borrow::Cow;
use std::{ops::Range, sync::Arc};

/// A mistake in the text or JSON of a pattern.
///
/// Its `Display` has the message, the place (line and column from 1, columns counted in
/// characters), the line (of a long line only the part around the mistake) and carets
/// under the mistake:
///
/// ```text
/// error: window must be at least 1
///   ┌─ doc.pattern:3:17
/// 3 │ causal & window(0)
///   │                 ^ given 0
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.render())]
pub struct Diagnostic {
    /// What is wrong, in one line.
    pub message: String,
    /// Text beside the carets; may be empty.
    pub label: String,
    /// Name of the file, or another name by which the user knows the text.
    pub file: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
    /// Byte range in `text` to point at.
    pub span: Range<usize>,
    /// Advice on how to correct it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A diagnostic without help. `span` is clipped to its first line; a long message or label
    /// is shortened.
    pub fn new(
        source: &Source,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            message: brief(&message.into(), MESSAGE),
            label: brief(&label.into(), MESSAGE),
            file: source.name.clone(),
            text: source.text.clone(),
            span: source.clip(span),
            help: None,
        }
    }

    /// The same, with advice.
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same, with advice if there is any.
    pub(crate) fn or_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    fn render(&self) -> String {
        let excerpt = Excerpt::new(&self.file, &self.text, &self.span);
        let label = diagnostic::Label::primary((), excerpt.span.clone()).with_message(&self.label);
        let report = diagnostic::Diagnostic::error()
            .with_message(&self.message)
            .with_labels(vec![label])
            .with_notes(
                self.help
                    .iter()
                    .map(|help| format!("help: {help}"))
                    .collect(),
            );
        let Ok(report) = term::emit_into_string(&term::Config::default(), &excerpt, &report) else {
            return format!("error: {}", self.message);
        };
        // Unlike the default form, ours has no empty line between the place and the text.
        let lines = report.lines().enumerate();
        let lines = lines.filter(|(number, line)| *number != 2 || line.trim() != "│");
        let lines: Vec<_> = lines.map(|(_, line)| line.trim_end()).collect();
        lines.join("\n").trim_end().to_owned()
    }
}

/// A named text that a pattern was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name of the file, or another name by which the user knows the text.
    pub name: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
}

impl Source {
    /// Names `text`.
    pub fn new(name: &str, text: &str) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }

    /// The part of `span` on its first line, moved onto character boundaries.
    fn clip(&self, span: Range<usize>) -> Range<usize> {
        let text = &*self.text;
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let mut end = span.end.clamp(start, text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        let line = text[start..end].find(['\n', '\r']);
        start..line.map_or(end, |length| start + length)
    }
}

/// Advice for a mistyped `word`: the most similar of the `known` words, if any is similar.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let length = word.chars().count();
    if length > SHOWN {
        return None;
    }
    let allowed = (length / 3).max(1);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(word, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= allowed)
        .map(|(_, name)| format!("did you mean `{name}`?"))
}

/// `a`, `b`, `c`: each in backquotes.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Most characters of a line of a message.
const MESSAGE: usize = 240;

/// Shortens each line of `text` to about `most` characters, by replacing its middle with an
/// ellipsis. This keeps messages readable that repeat a user's word or value.
pub fn brief(text: &str, most: usize) -> String {
    let line = |line: &str| {
        let (head, tail) = (most * 3 / 4, most / 4);
        let at = |index: Option<(usize, char)>| index.map(|(at, _)| at);
        let (end, start) = (
            at(line.char_indices().nth(head)),
            at(line.char_indices().rev().nth(tail.saturating_sub(1))),
        );
        match (end, start) {
            (Some(end), Some(start)) if end < start => {
                format!("{}…{}", &line[..end], &line[start..])
            }
            (Some(_) | None, Some(_) | None) => line.to_owned(),
        }
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Most characters of a user's word or value that a message repeats.
const SHOWN: usize = 40;

/// The first [`SHOWN`] characters of `text`, and an ellipsis if there are more.
pub(crate) fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Text that the user wrote, shortened and in backquotes.
pub(crate) fn quote(text: &str) -> String {
    format!("`{}`", shorten(text))
}
