//! Pattern text → tokens.
//!
//! In:  any text. Out: words, numbers and signs, each with its byte range; blanks, line ends and
//! `#` comments are dropped. The last token is always [`Kind::End`].

use std::ops::Range;

/// The kind of a token, whose text is `text[span]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A letter or `_`, then letters, digits and `_`.
    Word,
    /// A digit, then letters, digits, `_` and `.`; the parser decides which of these are numbers.
    Number,
    /// One of `( ) [ ] { } , ; = > . | & -`.
    Sign(char),
    /// Any other character; an error only if the parser reaches it.
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
            // Some editors begin a file with a byte order mark.
            c if c.is_whitespace() || c == '\u{feff}' => (None, at + c.len_utf8()),
            c if c.is_ascii_digit() => {
                let end = run(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
                // In `2..4` the dots are a sign.
                let dots = text[at..end].find("..").map(|dots| at + dots);
                (Some(Kind::Number), dots.unwrap_or(end))
            }
            c if c.is_alphabetic() || c == '_' => {
                let end = run(|c| c.is_alphanumeric() || c == '_');
                (Some(Kind::Word), end)
            }
            '(' | ')' | '[' | ']' | '{' | '}' | ',' | ';' | '=' | '>' | '.' | '|' | '&' | '-' => {
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
    // Errors at the end point right after the last token, not after trailing blanks.
    let end = tokens.last().map_or(0, |token| token.span.end);
    tokens.push(Token {
        kind: Kind::End,
        span: end..end,
    });
    tokens
}
