//! Rust tokens → pattern text.
//!
//! In:  the input of the macro.
//! Out: text that the pattern parser reads, and the token from which each byte came.
//!
//! Invariant: each token is followed by one blank, and byte ranges are in increasing order.

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote_spanned};
use std::ops::Range;

/// Text, and the tokens from which it was made.
#[derive(Default)]
pub(crate) struct Text {
    pub(crate) text: String,
    tokens: Vec<(Range<usize>, Span)>,
}

/// Turns tokens back into text.
pub(crate) fn to_text(input: TokenStream) -> Result<Text, syn::Error> {
    let mut text = Text::default();
    text.stream(input)?;
    Ok(text)
}

impl Text {
    /// An error at the tokens from which the bytes of `span` came.
    pub(crate) fn error(&self, span: &Range<usize>, message: String) -> syn::Error {
        let touched = |bytes: &Range<usize>| bytes.start < span.end && span.start < bytes.end;
        let mut hits = self.tokens.iter().filter(|(bytes, _)| touched(bytes));
        // An empty span is at the end of the text: report it at the last token.
        let first = hits.next().or(self.tokens.last());
        let Some(&(_, first)) = first else {
            return syn::Error::new(Span::call_site(), message);
        };
        let last = hits.next_back().map_or(first, |&(_, last)| last);
        // The error covers everything from the first to the last token.
        let (first, last) = (quote_spanned!(first => _), quote_spanned!(last => _));
        let mut place = first.into_token_stream();
        place.extend(last);
        syn::Error::new_spanned(place, message)
    }

    fn stream(&mut self, input: TokenStream) -> Result<(), syn::Error> {
        for token in input {
            let span = token.span();
            match token {
                TokenTree::Group(group) => {
                    let (open, close) = match group.delimiter() {
                        Delimiter::Parenthesis => ("(", ")"),
                        Delimiter::Bracket => ("[", "]"),
                        Delimiter::Brace => ("{", "}"),
                        // An expression that another macro passes on is a group without
                        // visible delimiters. To stay a group in text it needs parentheses,
                        // unless it is one token.
                        Delimiter::None if is_single(group.stream()) => ("", ""),
                        Delimiter::None => ("(", ")"),
                    };
                    self.push(open, group.span_open())?;
                    self.stream(group.stream())?;
                    self.push(close, group.span_close())?;
                }
                other => self.push(&other.to_string(), span)?,
            }
        }
        Ok(())
    }

    fn push(&mut self, token: &str, span: Span) -> Result<(), syn::Error> {
        if token.contains(['#', '\n']) {
            // In pattern text, `#` would begin a comment and hide all that follows.
            let message = "`#` has no meaning in `pattern!`\nhelp: a comment begins with `//`";
            return Err(syn::Error::new(span, message));
        }
        let start = self.text.len();
        self.text += token;
        self.tokens.push((start..self.text.len(), span));
        self.text.push(' ');
        Ok(())
    }
}

fn is_single(stream: TokenStream) -> bool {
    let mut tokens = stream.into_iter();
    tokens.next().is_some() && tokens.next().is_none()
}
