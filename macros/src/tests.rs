use super::{expand, tokens};
use butterfly_ir::Sparsity;
use proc_macro2::TokenStream;

fn stream(text: &str) -> TokenStream {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Turning text into tokens and back keeps its meaning.
#[test]
fn tokens_keep_their_meaning() {
    for text in [
        "causal & (local(1, 2) | partner(causal_shift, radix=3) | sink(1)) - none",
        "block 64 stage_by layer_index layers 3,7 stage 2 all",
        "table([[0], [], [0, 1_0]])",
        "per_layer { 0..3, 7 => tail(64); else => per_head { 0 => causal; else => none } }",
    ] {
        let again = tokens::to_text(stream(text)).unwrap_or_else(|error| panic!("{error}"));
        let parse = |text| Sparsity::parse("doc.pattern", text);
        assert_eq!(parse(&again.text), parse(text));
    }
}

/// Errors are reported at the token to which the diagnostic of pattern text points.
#[test]
fn errors_stand_at_their_tokens() {
    for (text, columns, message) in [
        (
            "causal & window(0)",
            16..17,
            "window must be at least 1 (given 0)",
        ),
        (
            "causal & windw(8)",
            9..14,
            "`windw` is not a pattern\nhelp: did you mean `window`?",
        ),
        (
            "causal & block 8",
            9..14,
            "`block` must stand before the pattern (belongs to the header)",
        ),
        ("block 0 causal", 6..7, "block must be at least 1 (given 0)"),
        ("causal &", 7..8, "expected a pattern, found the end"),
        (
            "causal && all",
            8..9,
            "expected a pattern, found `&`\nhelp: write `&` once",
        ),
        (
            "sink(WIDTH)",
            5..10,
            "expected a whole number for `blocks`, found `WIDTH`",
        ),
        (
            "sink(1.5)",
            5..8,
            "`1.5` is not a whole number (expected a whole number for `blocks`)",
        ),
        (
            "all - r\"#\"",
            6..10,
            "`#` has no meaning in `pattern!`\nhelp: a comment begins with `//`",
        ),
        (
            "causal # all",
            7..8,
            "`#` has no meaning in `pattern!`\nhelp: a comment begins with `//`",
        ),
    ] {
        let error = match tokens::to_text(stream(text)) {
            Err(error) => error,
            Ok(tokens) => match Sparsity::parse("pattern!", &tokens.text) {
                Err(error) => tokens.error(&error.span, super::message(&error)),
                Ok(sparsity) => panic!("accepted: {sparsity}"),
            },
        };
        assert_eq!(error.to_string(), message);
        let span = error.span();
        assert_eq!(
            (span.start().column, span.end().column),
            (columns.start, columns.end),
            "{text}"
        );
        let expanded = expand(stream(text)).to_string();
        assert!(expanded.contains("compile_error"), "{expanded}");
    }
    let nothing = expand(TokenStream::new()).to_string();
    assert!(
        nothing.contains("expected a pattern, found the end"),
        "{nothing}"
    );
}

/// The macro has the same limit of depth as pattern text.
#[test]
fn deep_patterns_are_those_of_text() {
    let limit = butterfly_ir::pattern::limits::MAX_DEPTH as usize;
    let shapes: [fn(usize) -> String; 3] = [
        |depth| format!("causal{}", " | all".repeat(depth)),
        |depth| format!("{}all{}", "(all & ".repeat(depth), ")".repeat(depth)),
        |depth| format!("{}all{}", "(".repeat(depth), ")".repeat(depth)),
    ];
    for shape in shapes {
        let text = shape(limit);
        let pattern = Sparsity::parse("text", &text).unwrap_or_else(|error| panic!("{error}"));
        let built = super::construct::pattern(&pattern.pattern).to_string();
        assert_eq!(expand(stream(&text)).to_string(), built);
        let deeper = expand(stream(&shape(limit + 1))).to_string();
        assert!(deeper.contains("must nest at most"), "{deeper}");
    }
}
