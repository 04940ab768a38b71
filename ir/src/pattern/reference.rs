//! The pattern language on one page, as `butterfly help patterns` prints it.
//!
//! In:  nothing. Out: text made from the same tables that the parser uses, so that it
//! lists every leaf, rule, header line and limit.

use super::leaves::{LeafName, Signature};
use super::limits::{MAX_BLOCK, MAX_COUNT, MAX_DEPTH, MAX_LEAVES, MAX_RADIX};
use super::text::HeaderWord;
use super::{DEFAULT_BLOCK, PartnerRule, arguments};
use std::fmt::Write;

/// Example patterns on the page; a test parses each.
const EXAMPLES: [(&str, &str); 7] = [
    (
        "causal & (local(1) | partner(causal_shift) | sink(1))",
        "the usual one: neighbours, a far partner, the first block",
    ),
    (
        "causal & (local(1) | partner(causal_shift, radix=4) | sink(1))",
        "half as many layers reach everything, three partners each",
    ),
    (
        "window(4096) | causal & sink_tokens(4)",
        "a sliding window and four sinks",
    ),
    (
        "causal & (local(2) | partner(xor, count=2))",
        "two digits at each stage",
    ),
    (
        "causal & (all - window(64))",
        "all but the last 64 keys: queries before see nothing",
    ),
    (
        "causal & (tail(64) | per_head { 0..2 => all; else => window(448) | sink(1) })",
        "kv heads 0 and 1 stay dense, the others only for the last 64 tokens of the prompt",
    ),
    (
        "block 64\nstage_by layer_index\nlayers 3,7,11\ncausal & (local(1) | global(1))",
        "with header lines",
    ),
];

/// The reference of pattern text and flat JSON: every leaf, rule, header line and limit.
pub fn reference() -> String {
    let mut page = String::from(
        "Patterns: which keys each query sees.\n\n\
         A pattern is an expression over leaves, after header lines if there are any. It is given as\n\
         text, or as a file: `.pattern` (text) or `.json`. A query sees a key when the expression\n\
         admits the pair. Every query must see a key, and none a later one.\n\n\
         OPERATORS, which bind as in Rust: `-` first, then `&`, then `|`; group with ( and )\n",
    );
    let mut line = |left: &str, right: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "  {left:<37} {right}");
    };
    line("a | b", "pairs in either");
    line("a & b", "pairs in both");
    line("a - b", "pairs in a that are not in b");
    line(
        "per_head { 0, 2..4 => a; else => b }",
        "a for kv heads 0, 2 and 3, b for the others",
    );
    line(
        "per_layer { 0..3 => a; else => b }",
        "a for layers 0, 1 and 2 of the model, b for the others",
    );
    page += "  The first case that names a head or layer counts; one that no case names sees nothing.\n";
    page += "\nLEAVES; arguments by position or by name, in brackets those that may be left out\n";
    for name in LeafName::ALL {
        let Signature { usage, meaning, .. } = name.signature();
        let _ = writeln!(page, "  {usage:<37} {meaning}");
    }
    page += "\nRULES of `partner`, for block b and the digit that the stage of a layer visits\n";
    for rule in PartnerRule::ALL {
        let _ = writeln!(page, "  {:<37} {}", rule.name(), meaning(rule));
    }
    let _ = writeln!(
        page,
        "  A network over N blocks has ceil(log_radix N) digits; `count` of them are visited at each\n\
         \x20 stage. Only causal_shift takes a radix above 2. A partner after b, or that there is not,\n\
         \x20 is left out. {} to {MAX_RADIX} for radix, 1 to {MAX_COUNT} for count.",
        2
    );
    page += "\nHEADER lines, each at most once, before the expression\n";
    for word in HeaderWord::ALL {
        let (usage, meaning) = header(*word);
        let _ = writeln!(page, "  {usage:<37} {meaning}");
    }
    let _ = write!(
        page,
        "  Blanks and line ends separate; `#` begins a comment. Digits may be grouped: 4_096.\n\
         \x20 A pattern has at most {MAX_LEAVES} leaves and nests at most {MAX_DEPTH} operators or parentheses deep.\n\
         \nFLAT JSON, for `causal & (local(L) | partner(rule, radix, count) | sink(S))`\n\
         \x20 {FLAT}\n\
         \x20 Only `rule` is needed; \"swapped_layers\": [3, 7] is `layers 3,7`, \"stage\": 2 is `stage 2`.\n\
         \nEXAMPLES\n"
    );
    for (text, meaning) in EXAMPLES {
        let _ = writeln!(page, "  # {meaning}\n  {}", text.replace('\n', "\n  "));
    }
    page += "\nNOT READ YET\n";
    for (name, instead) in arguments::PLANNED {
        let _ = writeln!(page, "  {name:<12} {instead}");
    }
    page
}

/// The flat JSON form with the default of every field.
const FLAT: &str = "{\"rule\": \"causal_shift\", \"block_size\": 128, \"local_window\": 1, \"sink\": 1,\n   \
     \"partner_count\": 1, \"radix\": 2, \"stage_by\": \"swapped_index\"}";

fn meaning(rule: PartnerRule) -> &'static str {
    match rule {
        PartnerRule::Xor => "b with one bit flipped",
        PartnerRule::Benes => "the same, bits visited up and down again as in a Benes network",
        PartnerRule::BitReversal => "the same in the bit-reversed block number",
        PartnerRule::CausalShift => "b - j * radix^digit, for j from 1 to radix - 1",
        PartnerRule::FixedStride => "b - 1",
        PartnerRule::Random => "a hash of b and the digit",
    }
}

fn header(word: HeaderWord) -> (String, String) {
    match word {
        HeaderWord::Block => (
            format!("block {DEFAULT_BLOCK}"),
            format!("tokens in a block, 1 to {MAX_BLOCK} [default: {DEFAULT_BLOCK}]"),
        ),
        HeaderWord::StageBy => (
            "stage_by swapped_index".into(),
            "a layer's stage is its place among the swapped layers (the default);\n\
             \x20                                       layer_index: its index in the model"
                .into(),
        ),
        HeaderWord::Layers => (
            "layers 3,7,11".into(),
            "the layers to swap, by index in the model, or none [default: all]".into(),
        ),
        HeaderWord::Stage => (
            "stage 2".into(),
            "one stage for every layer [default: one after the other]".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pattern, Sparsity};

    #[test]
    fn the_page_says_all_and_says_it_right() {
        let page = reference();
        assert!(
            page.lines().all(|line| line.chars().count() <= 120),
            "{page}"
        );
        for name in LeafName::ALL {
            assert!(
                page.contains(&format!("\n  {}", name.word())),
                "{}",
                name.word()
            );
        }
        for rule in PartnerRule::ALL {
            assert!(
                page.contains(&format!("\n  {} ", rule.name())),
                "{}",
                rule.name()
            );
        }
        for (text, _) in EXAMPLES {
            Sparsity::parse("example", text).unwrap_or_else(|error| panic!("{error}"));
            assert!(page.contains(text.lines().next().expect("a line")));
        }
        // A flat form that spells out every default equals one that gives only the rule.
        let flat = Sparsity::parse_any("flat.json", FLAT).unwrap_or_else(|error| panic!("{error}"));
        let short = Sparsity::parse_any("flat.json", r#"{"rule": "causal_shift"}"#);
        assert_eq!(Ok(flat.sparsity), short.map(|parsed| parsed.sparsity));
        assert!(page.contains(FLAT));
    }

    /// The parser reads each usage, both with its optional arguments and without them.
    #[test]
    fn usages_are_read_as_they_are_written() {
        for name in LeafName::ALL {
            let signature = name.signature();
            let mut usage = signature.usage.replace(", …", "").replace(['\u{2026}'], "");
            for (word, value) in [
                ("(before", "(3"),
                ("after", "0"),
                ("(tokens", "(3"),
                ("(blocks", "(3"),
                ("(rule", "(causal_shift"),
                ("(n)", "(3)"),
            ] {
                usage = usage.replace(word, value);
            }
            let read = |text: &str| {
                let parsed = Sparsity::parse("usage", text);
                parsed.unwrap_or_else(|error| panic!("{error}")).pattern
            };
            let is_table = matches!(name, LeafName::Table);
            let bracketed = |keep: bool| match is_table {
                true => usage.clone(),
                false => options(&usage, keep),
            };
            let (all, least) = (read(&bracketed(true)), read(&bracketed(false)));
            assert_eq!(all, least, "the defaults of {}", signature.usage);
            let Pattern::Leaf(leaf) = &all else {
                panic!("{usage} is no leaf")
            };
            assert_eq!(LeafName::of(leaf), *name);
            assert_eq!(read(&all.to_string()), all);
        }
    }

    /// `text` without its brackets, and if not `keep`, without the bracketed parts.
    fn options(text: &str, keep: bool) -> String {
        let mut depth = 0;
        let kept = text.chars().filter(|sign| {
            depth += i32::from(*sign == '[') - i32::from(*sign == ']');
            !matches!(sign, '[' | ']') && (keep || depth == 0)
        });
        kept.collect()
    }
}
