//! Pattern text → tokens.
//!
//! In:  any text. Out: words, numbers and signs with their bytes; blanks, line ends and
//! `#` comments are dropped; the last token is always [`Kind::End`], after the last one.

use std::ops::Range;

/// What a token is; its text is `text[span]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A letter or `_`, then letters, digits and `_`.
    Word,
    /// A digit, then letters, digits, `_` and `.`: the parser says which are numbers.
    Number,
    /// One of `( ) [ ] , = | & -`.
    Sign(char),
    /// Anything else; the parser decides whether it gets that far.
    Unknown(char),
    /// The end of the text.
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) span: Range<usize>,
}

pub(super) fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let run = |inside: fn(char) -> bool| {
            let rest = &text[at..];
            at + rest.find(|c| !inside(c)).unwrap_or(rest.len())
        };
        let (kind, end) = match first {
            '#' => (None, run(|c| c != '\n')),
            // A byte order mark is what some editors begin a file with.
            c if c.is_whitespace() || c == '\u{feff}' => (None, at + c.len_utf8()),
            c if c.is_ascii_digit() => {
                let end = run(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
                (Some(Kind::Number), end)
            }
            c if c.is_alphabetic() || c == '_' => {
                let end = run(|c| c.is_alphanumeric() || c == '_');
                (Some(Kind::Word), end)
            }
            '(' | ')' | '[' | ']' | ',' | '=' | '|' | '&' | '-' => {
                (Some(Kind::Sign(first)), at + 1)
            }
            other => (Some(Kind::Unknown(other)), at + other.len_utf8()),
        };
        tokens.extend(kind.map(|kind| Token {
            kind,
            span: at..end,
        }));
        at = end;
    }
    // Errors at the end point behind the last token, not behind trailing blanks.
    let end = tokens.last().map_or(0, |token| token.span.end);
    tokens.push(Token {
        kind: Kind::End,
        span: end..end,
    });
    tokens
}
