//! A mistake in a pattern, shown where it stands.
//!
//! In:  the file's name and text, a byte range of it, what is wrong.
//! Out: one [`Diagnostic`], whose `Display` is the form that users see.
//!
//! Invariant: the span lies inside the text, on character boundaries and on one line.

use codespan_reporting::{diagnostic, files::SimpleFile, term};
use std::{ops::Range, sync::Arc};

/// A mistake in the text or JSON of a pattern.
///
/// Displays as the message, the place (line and column count from 1, columns in
/// characters), the line itself and carets under the mistake:
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
    /// What stands beside the carets; may be empty.
    pub label: String,
    /// Name of the file, or whatever names the text to its writer.
    pub file: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
    /// The bytes of `text` to point at.
    pub span: Range<usize>,
    /// What to do instead.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A diagnostic without help; `span` is clipped to its first line.
    pub fn new(
        source: &Source,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            message: message.into(),
            label: label.into(),
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
        let file = SimpleFile::new(&*self.file, &*self.text);
        let label = diagnostic::Label::primary((), self.span.clone()).with_message(&self.label);
        let report = diagnostic::Diagnostic::error()
            .with_message(&self.message)
            .with_labels(vec![label])
            .with_notes(
                self.help
                    .iter()
                    .map(|help| format!("help: {help}"))
                    .collect(),
            );
        let Ok(report) = term::emit_into_string(&term::Config::default(), &file, &report) else {
            return format!("error: {}", self.message);
        };
        // Our form has no empty line between the place and the text.
        let lines = report.lines().enumerate();
        let lines = lines.filter(|(number, line)| *number != 2 || line.trim() != "│");
        let lines: Vec<_> = lines.map(|(_, line)| line.trim_end()).collect();
        lines.join("\n").trim_end().to_owned()
    }
}

/// A named text that a pattern was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Name of the file, or whatever names the text to its writer.
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

/// The nearest of `known` to a mistyped `word`, as advice.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let allowed = (word.chars().count() / 3).max(1);
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
