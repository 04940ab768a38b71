//! A value → the Rust expression that builds it.
//!
//! In:  a pattern or a sparsity. Out: tokens with full paths, which need no imports.
//!
//! Invariant: every variant and field is named here, so that adding one is a compile error until
//! it is handled.

use butterfly_ir::{Case, Indices, Leaf, PartnerRule, Pattern, Run, Sparsity, StageBy};
use proc_macro2::TokenStream;
use quote::quote;

pub(crate) fn sparsity(sparsity: &Sparsity) -> TokenStream {
    let Sparsity {
        block,
        stage_by,
        swapped_layers,
        stage,
        pattern: expression,
    } = sparsity;
    let stage_by = match stage_by {
        StageBy::SwappedIndex => quote!(SwappedIndex),
        StageBy::LayerIndex => quote!(LayerIndex),
    };
    let swapped_layers = match swapped_layers {
        Some(layers) => quote!(::core::option::Option::Some(::std::vec![#(#layers),*])),
        None => quote!(::core::option::Option::None),
    };
    let stage = match stage {
        Some(stage) => quote!(::core::option::Option::Some(#stage)),
        None => quote!(::core::option::Option::None),
    };
    let pattern = pattern(expression);
    quote! {
        ::butterfly_ir::Sparsity {
            block: #block,
            stage_by: ::butterfly_ir::StageBy::#stage_by,
            swapped_layers: #swapped_layers,
            stage: #stage,
            pattern: #pattern,
        }
    }
}

pub(crate) fn pattern(expression: &Pattern) -> TokenStream {
    let (variant, a, b) = match expression {
        Pattern::Leaf(value) => {
            let leaf = leaf(value);
            return quote!(::butterfly_ir::Pattern::Leaf(::butterfly_ir::Leaf::#leaf));
        }
        Pattern::Or(a, b) => (quote!(Or), a, b),
        Pattern::And(a, b) => (quote!(And), a, b),
        Pattern::Minus(a, b) => (quote!(Minus), a, b),
        Pattern::PerHead(list) => {
            let cases = cases(list);
            return quote!(::butterfly_ir::Pattern::PerHead(#cases));
        }
        Pattern::PerLayer(list) => {
            let cases = cases(list);
            return quote!(::butterfly_ir::Pattern::PerLayer(#cases));
        }
    };
    let (a, b) = (pattern(a), pattern(b));
    quote! {
        ::butterfly_ir::Pattern::#variant(
            ::std::boxed::Box::new(#a),
            ::std::boxed::Box::new(#b),
        )
    }
}

fn cases(cases: &[Case]) -> TokenStream {
    let cases = cases.iter().map(
        |Case {
             of,
             pattern: expression,
         }| {
            let of = match of {
                Indices::All => quote!(All),
                Indices::Some(runs) => {
                    let runs = runs.iter().map(|Run { first, count }| {
                    quote!(::butterfly_ir::Run { first: #first, count: #count })
                });
                    quote!(Some(::std::vec![#(#runs),*]))
                }
            };
            let pattern = pattern(expression);
            quote!(::butterfly_ir::Case { of: ::butterfly_ir::Indices::#of, pattern: #pattern })
        },
    );
    quote!(::std::vec![#(#cases),*])
}

fn leaf(leaf: &Leaf) -> TokenStream {
    match leaf {
        Leaf::Causal => quote!(Causal),
        Leaf::Local { before, after } => quote!(Local { before: #before, after: #after }),
        Leaf::Window { tokens } => quote!(Window { tokens: #tokens }),
        Leaf::Partner { rule, radix, count } => {
            let rule = partner_rule(*rule);
            quote! {
                Partner {
                    rule: ::butterfly_ir::PartnerRule::#rule,
                    radix: #radix,
                    count: #count,
                }
            }
        }
        Leaf::Sink { blocks } => quote!(Sink { blocks: #blocks }),
        Leaf::SinkTokens { tokens } => quote!(SinkTokens { tokens: #tokens }),
        Leaf::Global { blocks } => quote!(Global { blocks: #blocks }),
        Leaf::Tail { tokens } => quote!(Tail { tokens: #tokens }),
        Leaf::Routed {
            blocks,
            pool,
            every,
        } => quote!(Routed { blocks: #blocks, pool: #pool, every: #every }),
        Leaf::Table { rows } => {
            let rows = rows.iter().map(|row| quote!(::std::vec![#(#row),*]));
            quote!(Table {
                rows: ::std::vec![#(#rows),*]
            })
        }
        Leaf::All => quote!(All),
        Leaf::None => quote!(None),
    }
}

fn partner_rule(rule: PartnerRule) -> TokenStream {
    match rule {
        PartnerRule::Xor => quote!(Xor),
        PartnerRule::Benes => quote!(Benes),
        PartnerRule::BitReversal => quote!(BitReversal),
        PartnerRule::CausalShift => quote!(CausalShift),
        PartnerRule::FixedStride => quote!(FixedStride),
        PartnerRule::Random => quote!(Random),
    }
}
