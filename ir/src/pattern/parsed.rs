//! The result of reading a pattern, and how the form of a text is recognised.
//!
//! In:  a pattern argument: text or JSON, and its name for error messages.
//! Out: [`Parsed`], the value and the place of each of its leaves, at which later passes
//! report errors.

use super::diagnostic::{Diagnostic, Source};
use super::{Sparsity, json, text};
use std::ops::Range;

/// A sparsity, with the text from which it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The value.
    pub sparsity: Sparsity,
    /// Name and text.
    pub source: Source,
    /// The byte range of each leaf, in the order of [`Pattern::leaves`](super::Pattern::leaves).
    pub leaves: Vec<Range<usize>>,
    /// Whether the text has a header line; always true for JSON.
    pub has_header: bool,
}

impl Parsed {
    /// The diagnostic for a mistake that a later pass found in leaf number `leaf`, from 0.
    pub fn at_leaf(&self, leaf: usize, message: &str, label: &str) -> Diagnostic {
        let span = self.leaves.get(leaf).cloned();
        let span = span.unwrap_or_else(|| self.expression());
        Diagnostic::new(&self.source, span, message, label)
    }

    /// The byte range from the first leaf to the last, without the header.
    fn expression(&self) -> Range<usize> {
        match (self.leaves.first(), self.leaves.last()) {
            (Some(first), Some(last)) => first.start..last.end.max(first.end),
            (None, _) | (_, None) => 0..self.source.text.len(),
        }
    }
}

impl From<Sparsity> for Parsed {
    /// Prints the value, so that errors about a pattern built in Rust have a text to
    /// point into.
    fn from(sparsity: Sparsity) -> Self {
        let source = Source::new("<pattern>", &sparsity.to_string());
        match text::parse(source.clone()) {
            Ok(parsed) => Self { sparsity, ..parsed },
            Err(_) => Self {
                sparsity,
                source,
                leaves: Vec::new(),
                has_header: true,
            },
        }
    }
}

impl Sparsity {
    /// Reads a pattern in any form: JSON if it begins with `{` or its name ends with `.json`,
    /// else pattern text. `name` is the text's name in error messages.
    ///
    /// # Errors
    /// [`Diagnostic`] at the first mistake, and for the older `.wf` form, which is not read.
    pub fn parse_any(name: &str, text: &str) -> Result<Parsed, Diagnostic> {
        let body = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        let start = text.len() - body.len();
        let expression = body.strip_prefix('(').map(str::trim_start);
        let has_extension = |wanted| name.to_ascii_lowercase().ends_with(wanted);
        if has_extension(".wf") || expression.is_some_and(|body| body.starts_with("wayfinder")) {
            let end = body.find(['\n', '\r']).unwrap_or(body.len());
            let source = Source::new(name, text);
            let message = "the .wf form is not supported yet";
            let error = Diagnostic::new(&source, start..start + end, message, "");
            return Err(error.with_help("write it as pattern text"));
        }
        if body.starts_with('{') || has_extension(".json") {
            return json::parse(name, text);
        }
        Self::parse_with_spans(name, text)
    }
}
