//! The part of a text that a diagnostic shows.
//!
//! In:  a text and a byte range to point at, within one line. Out: that line with its line and
//! column number; of a long line, the part around the range, with ellipses.

use codespan_reporting::files::{Error, Files, Location};
use std::ops::Range;

/// Most characters of a line that are shown.
const WIDTH: usize = 120;
/// Characters that are shown before the range to point at, if that is far from the line's start.
const BEFORE: usize = 40;
/// Most characters of a file's name that are shown: its last ones.
const NAME: usize = 100;

/// One line of a file, or a part of it.
pub(super) struct Excerpt {
    name: String,
    line: String,
    /// Byte range in `line` to point at.
    pub(super) span: Range<usize>,
    place: Location,
}

impl Excerpt {
    pub(super) fn new(name: &str, text: &str, span: &Range<usize>) -> Self {
        let start = text[..span.start].rfind('\n').map_or(0, |end| end + 1);
        let line = text[start..].split('\n').next().unwrap_or_default();
        let line = line.trim_end_matches('\r');
        let span = (span.start - start).min(line.len())..(span.end - start).min(line.len());
        let column = line[..span.start].chars().count();
        let place = Location {
            line_number: text[..start].matches('\n').count() + 1,
            column_number: column + 1,
        };
        let (line, span) = middle(line, column, span);
        Self {
            name: end_of(name),
            line,
            span,
            place,
        }
    }
}

/// The part of a line around `span`, which begins at character `column`.
fn middle(line: &str, column: usize, span: Range<usize>) -> (String, Range<usize>) {
    if line.chars().nth(WIDTH).is_none() {
        return (line.to_owned(), span);
    }
    let byte = |character: usize| line.char_indices().nth(character).map(|(at, _)| at);
    let first = match byte(WIDTH) {
        Some(end) if span.end <= end => 0,
        _ => column.saturating_sub(BEFORE),
    };
    let start = byte(first).unwrap_or(line.len());
    let end = byte(first + WIDTH).unwrap_or(line.len());
    let before = if start > 0 { "…" } else { "" };
    let after = if end < line.len() { "…" } else { "" };
    let move_by = |at: usize| at.clamp(start, end) - start + before.len();
    let span = move_by(span.start)..move_by(span.end);
    (format!("{before}{}{after}", &line[start..end]), span)
}

/// A name; of a long one, only the end.
fn end_of(name: &str) -> String {
    match name.char_indices().rev().nth(NAME) {
        Some((at, first)) => format!("…{}", &name[at + first.len_utf8()..]),
        None => name.to_owned(),
    }
}

impl<'a> Files<'a> for Excerpt {
    type FileId = ();
    type Name = &'a str;
    type Source = &'a str;

    fn name(&'a self, (): ()) -> Result<&'a str, Error> {
        Ok(&self.name)
    }

    fn source(&'a self, (): ()) -> Result<&'a str, Error> {
        Ok(&self.line)
    }

    fn line_index(&'a self, (): (), _byte: usize) -> Result<usize, Error> {
        Ok(0)
    }

    fn line_number(&'a self, (): (), _line: usize) -> Result<usize, Error> {
        Ok(self.place.line_number)
    }

    fn column_number(&'a self, (): (), _line: usize, _byte: usize) -> Result<usize, Error> {
        Ok(self.place.column_number)
    }

    fn line_range(&'a self, (): (), line: usize) -> Result<Range<usize>, Error> {
        match line {
            0 => Ok(0..self.line.len()),
            given => Err(Error::LineTooLarge { given, max: 0 }),
        }
    }
}
