//! Reads the text of a pattern token by token, for the grammar (`text.rs`) and the arguments of
//! leaves (`arguments.rs`).

use super::diagnostic::{Diagnostic, Source, quote};
use super::lexer::{Kind, Token, lex};
use super::limits::LimitError;
use std::ops::Range;

pub(super) struct Parser {
    pub(super) source: Source,
    tokens: Vec<Token>,
    at: usize,
    /// Byte ranges of the leaves that were read so far.
    pub(super) leaves: Vec<Range<usize>>,
    /// Number of open parentheses.
    pub(super) parentheses: u32,
}

impl Parser {
    /// A parser at the first token of `source`.
    pub(super) fn new(source: Source) -> Self {
        Self {
            tokens: lex(&source.text),
            source,
            at: 0,
            leaves: Vec::new(),
            parentheses: 0,
        }
    }

    pub(super) fn peek(&self) -> &Token {
        // Past the last token, this stays at `Kind::End`.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    pub(super) fn peek_second(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)]
    }

    /// The token that was read last.
    pub(super) fn last(&self) -> Option<&Token> {
        self.tokens.get(self.at.checked_sub(1)?)
    }

    pub(super) fn advance(&mut self) {
        self.at += 1;
    }

    pub(super) fn text(&self, token: &Token) -> &str {
        &self.source.text[token.span.clone()]
    }

    pub(super) fn eat(&mut self, sign: char) -> bool {
        let found = self.peek().kind == Kind::Sign(sign);
        self.at += usize::from(found);
        found
    }

    /// Reads the `sign` that closes the bracket at `open`. Errors list `instead` as what may also
    /// follow here.
    pub(super) fn close(
        &mut self,
        sign: char,
        open: Range<usize>,
        instead: &str,
    ) -> Result<(), Diagnostic> {
        if self.eat(sign) {
            return Ok(());
        }
        if self.peek().kind == Kind::End {
            let message = format!("`{}` is never closed", &self.source.text[open.clone()]);
            return Err(self.error(open, message, format!("needs a `{sign}`")));
        }
        Err(self.expected(&format!("{instead} or `{sign}`")))
    }

    /// Reads a whole number; returns its byte range as well.
    pub(super) fn number(&mut self, what: &str) -> Result<(u32, Range<usize>), Diagnostic> {
        let Token { kind, span } = self.peek().clone();
        if kind != Kind::Number {
            let negative = kind == Kind::Sign('-') && self.peek_second().kind == Kind::Number;
            let help = negative.then(|| "numbers here are not negative".to_owned());
            return Err(self.expected(what).or_help(help));
        }
        let text = &self.source.text[span.clone()];
        let digits = text.replace('_', "");
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let message = format!("{} is not a whole number", quote(text));
            return Err(self.error(span, message, format!("expected {what}")));
        }
        let Ok(number) = digits.parse() else {
            let message = format!("{} is too large", quote(text));
            return Err(self.error(span, message, format!("at most {}", u32::MAX)));
        };
        self.advance();
        Ok((number, span))
    }

    pub(super) fn expected(&self, what: &str) -> Diagnostic {
        let token = self.peek();
        if let Kind::Unknown(sign) = token.kind {
            let message = match sign.is_control() {
                true => format!("`{}` has no meaning in a pattern", sign.escape_default()),
                false => format!("`{sign}` has no meaning in a pattern"),
            };
            let error = self.error(token.span.clone(), message, "");
            return error.or_help(meant(sign).map(str::to_owned));
        }
        let found = match token.kind {
            Kind::End => "the end".to_owned(),
            Kind::Word | Kind::Number | Kind::Sign(_) | Kind::Unknown(_) => quote(self.text(token)),
        };
        let message = format!("expected {what}, found {found}");
        self.error(token.span.clone(), message, "")
    }

    pub(super) fn error(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic::new(&self.source, span, message, label)
    }

    pub(super) fn limit(&self, error: LimitError, span: Range<usize>) -> Diagnostic {
        self.error(span, error.message, error.given)
    }
}

/// Advice for an unknown sign: what its writer may have meant.
fn meant(sign: char) -> Option<&'static str> {
    match sign {
        '+' => Some("`a | b` joins two patterns"),
        '!' | '~' | '^' => Some("`a - b` is the pairs of `a` that are not in `b`"),
        '/' => Some("a comment begins with `#`"),
        _ => None,
    }
}
