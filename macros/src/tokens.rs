//! Rust tokens → pattern text.
//!
//! In:  the input of the macro.
//! Out: text that the pattern parser reads, and which token each byte came from.
//!
//! Invariant: tokens are one blank apart, and their bytes increase.

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote_spanned};
use std::ops::Range;

/// Text and where it came from.
#[derive(Default)]
pub(crate) struct Text {
    pub(crate) text: String,
    tokens: Vec<(Range<usize>, Span)>,
}

/// Puts tokens back into text.
pub(crate) fn to_text(input: TokenStream) -> Result<Text, syn::Error> {
    let mut text = Text::default();
    text.stream(input)?;
    Ok(text)
}

impl Text {
    /// An error at the tokens that the bytes of `span` came from.
    pub(crate) fn error(&self, span: &Range<usize>, message: String) -> syn::Error {
        let touched = |bytes: &Range<usize>| bytes.start < span.end && span.start < bytes.end;
        let mut hits = self.tokens.iter().filter(|(bytes, _)| touched(bytes));
        // An empty span stands at the end, behind the last token.
        let first = hits.next().or(self.tokens.last());
        let Some(&(_, first)) = first else {
            return syn::Error::new(Span::call_site(), message);
        };
        let last = hits.next_back().map_or(first, |&(_, last)| last);
        // The error covers the places of the first and of the last token.
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
                        // What another macro passes on holds together without any sign;
                        // one token does so anyway.
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
            // The first would begin a comment in pattern text and hide what follows.
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
