//! Two macros: `pattern!` reads pattern text at compile time, `include_artifacts!` embeds an
//! artifact folder.
//!
//! In:  Rust tokens. Out: for `pattern!`, an expression that builds the same value as
//! [`Sparsity::parse`](butterfly_ir::Sparsity::parse), or a compile error at the token
//! with the mistake.
//!
//! Invariant: `pattern!` has no grammar of its own. `tokens` turns its input back into
//! text, the parser of `butterfly_ir` reads it, and `construct` turns the value into Rust.

#![forbid(unsafe_code)]

mod artifacts;
mod construct;
mod tokens;

use butterfly_ir::{Diagnostic, Sparsity};
use proc_macro2::{Group, TokenStream, TokenTree};

/// Reads a pattern at compile time, in the grammar of pattern text.
///
/// The value is a `Sparsity` if the text has header lines, else a `Pattern`. The macro does not
/// see Rust variables, so numbers and names are literals. Comments are written as in Rust.
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

/// Embeds an artifact folder, as written by `butterfly compile`, in the program.
///
/// The argument is a string literal with the folder's path, absolute or relative to the folder of
/// the package. The value is a `&'static butterfly::Embedded`, to be opened with
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

/// Adapts paths to the caller's dependencies: `butterfly_ir` stays if the caller depends on it;
/// otherwise its types are reached through the facade crate `butterfly`.
fn at_home(tokens: TokenStream) -> TokenStream {
    use proc_macro_crate::crate_name;
    match (crate_name("butterfly-ir"), crate_name("butterfly")) {
        (Err(_), Ok(_)) => renamed(tokens),
        _ => tokens,
    }
}

/// Replaces `butterfly_ir` by `butterfly::ir`.
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

/// The diagnostic without the line of text, which rustc shows itself.
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
