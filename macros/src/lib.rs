//! The `pattern!` macro: pattern text, read at compile time; and `include_artifacts!`.
//!
//! In:  Rust tokens. Out: an expression that builds the same value as
//! [`Sparsity::parse`](butterfly_ir::Sparsity::parse) would, or an error at the token
//! where that found the mistake.
//!
//! Invariant: there is one grammar and one parser, that of `butterfly_ir`. Tokens are
//! put back into text (`tokens`), and the value into constructors (`construct`).

#![forbid(unsafe_code)]

mod artifacts;
mod construct;
mod tokens;

use butterfly_ir::{Diagnostic, Sparsity};
use proc_macro2::{Group, TokenStream, TokenTree};

/// Reads a pattern at compile time, in the grammar of pattern text.
///
/// Without header lines the value is a `Pattern`, with any it is a `Sparsity`. Numbers
/// and names are written out: the macro does not see Rust variables. Comments are
/// Rust's.
///
/// ```
/// use butterfly_ir::build::{causal, window};
/// use butterfly_macros::pattern;
///
/// assert_eq!(pattern!(causal & window(128)), causal() & window(128));
///
/// let sparsity = pattern! {
///     block 64
///     stage_by layer_index
///     causal & (local(1) | partner(causal_shift, radix=2) | sink(1))
/// };
/// assert_eq!(sparsity.block, 64);
/// ```
///
/// A mistake is a compile error at its token:
///
/// ```compile_fail
/// butterfly_macros::pattern!(causal & window(0));
/// ```
#[proc_macro]
pub fn pattern(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    at_home(expand(input.into())).into()
}

/// Embeds an artifact folder, as `butterfly compile` writes it: its path, absolute or from
/// the package's folder, becomes a `&'static butterfly::Embedded` for
/// `butterfly::Plan::embedded`.
#[proc_macro]
pub fn include_artifacts(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let literal = syn::parse::<syn::LitStr>(input);
    let embedded = literal.and_then(|literal| {
        let tokens = artifacts::embed(&literal.value(), package.as_ref());
        tokens.map_err(|error| syn::Error::new(literal.span(), error))
    });
    embedded
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Where the caller finds our types: in `butterfly_ir` where it depends on that, else in the
/// facade.
fn at_home(tokens: TokenStream) -> TokenStream {
    use proc_macro_crate::crate_name;
    match (crate_name("butterfly-ir"), crate_name("butterfly")) {
        (Err(_), Ok(_)) => renamed(tokens),
        _ => tokens,
    }
}

/// `butterfly_ir` as `butterfly::ir`.
fn renamed(tokens: TokenStream) -> TokenStream {
    let tokens = tokens.into_iter().map(|token| match token {
        TokenTree::Ident(name) if name == "butterfly_ir" => quote::quote!(butterfly::ir),
        TokenTree::Group(group) => {
            let inner = renamed(group.stream());
            TokenTree::from(Group::new(group.delimiter(), inner)).into()
        }
        other => other.into(),
    });
    tokens.collect()
}

fn expand(input: TokenStream) -> TokenStream {
    let text = match tokens::to_text(input) {
        Ok(text) => text,
        Err(error) => return error.into_compile_error(),
    };
    match Sparsity::parse_with_spans("pattern!", &text.text) {
        Ok(parsed) if parsed.has_header => construct::sparsity(&parsed.sparsity),
        Ok(parsed) => construct::pattern(&parsed.sparsity.pattern),
        Err(error) => text
            .error(&error.span, message(&error))
            .into_compile_error(),
    }
}

/// The diagnostic without the text, which rustc shows itself.
fn message(error: &Diagnostic) -> String {
    let mut message = error.message.clone();
    if !error.label.is_empty() {
        message += &format!(" ({})", error.label);
    }
    if let Some(help) = &error.help {
        message += &format!("\nhelp: {help}");
    }
    message
}

#[cfg(test)]
mod tests;
