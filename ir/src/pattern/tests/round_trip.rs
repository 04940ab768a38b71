use super::super::build::{per_head, per_layer};
use super::super::{Leaf, Parsed, PartnerRule, Pattern, Sparsity, StageBy, json, limits};
use crate::Indices;
use crate::manifest::{ConfigRef, Manifest, SCHEMA};
use crate::plan::Proof;
use proptest::{collection::vec, option, prelude::*};

fn leaf() -> impl Strategy<Value = Leaf> {
    let partner = (
        0..PartnerRule::ALL.len(),
        2..=limits::MAX_RADIX,
        1..=limits::MAX_COUNT,
    );
    let partner = partner.prop_map(|(rule, radix, count)| {
        let rule = PartnerRule::ALL[rule];
        let radix = if rule == PartnerRule::CausalShift {
            radix
        } else {
            2
        };
        Leaf::Partner { rule, radix, count }
    });
    prop_oneof![
        Just(Leaf::Causal),
        (any::<u32>(), 0..3u32).prop_map(|(before, after)| Leaf::Local { before, after }),
        (1..=u32::MAX).prop_map(|tokens| Leaf::Window { tokens }),
        partner,
        any::<u32>().prop_map(|blocks| Leaf::Sink { blocks }),
        any::<u32>().prop_map(|tokens| Leaf::SinkTokens { tokens }),
        any::<u32>().prop_map(|blocks| Leaf::Global { blocks }),
        (1..=u32::MAX).prop_map(|tokens| Leaf::Tail { tokens }),
        vec(vec(any::<u32>(), 0..4), 0..4).prop_map(|rows| Leaf::Table { rows }),
        Just(Leaf::All),
        Just(Leaf::None),
    ]
}

fn indices() -> impl Strategy<Value = Indices> {
    let ranges = vec((0..limits::MAX_INDEX, 1..9u32), 1..4);
    let end = |first: u32, count: u32| (first + count).min(limits::MAX_INDEX);
    ranges.prop_map(move |x| Indices::of(x.into_iter().map(|(a, n)| (a, end(a, n)))))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    leaf()
        .prop_map(Pattern::from)
        .prop_recursive(6, 48, 2, |inner| {
            (0..5, inner.clone(), inner, indices()).prop_map(|(sign, a, b, of)| match sign {
                0 => a | b,
                1 => a & b,
                2 => a - b,
                3 => per_head([(of, a), (Indices::All, b)]),
                _ => per_layer([(of, a), (Indices::of([(9, 10)]), b)]),
            })
        })
}

/// Patterns with a depth just below and just above the limit: nested operators, each one in the
/// left or the right operand of the next.
fn deep() -> impl Strategy<Value = Pattern> {
    let operator = (0..4, any::<bool>(), leaf());
    (leaf(), vec(operator, 40..=limits::MAX_DEPTH as usize + 4)).prop_map(|(first, operators)| {
        operators
            .into_iter()
            .fold(first.into(), |pattern, (sign, left, leaf)| {
                let (a, b) = match left {
                    true => (leaf.into(), pattern),
                    false => (pattern, leaf.into()),
                };
                match sign {
                    0 => a | b,
                    1 => a & b,
                    2 => a - b,
                    _ => per_head([(Indices::of([(1, 3)]), a), (Indices::All, b)]),
                }
            })
    })
}

fn manifest(sparsity: &Sparsity) -> Manifest {
    Manifest {
        schema: SCHEMA,
        compiler: String::new(),
        pattern: sparsity.to_string(),
        sparsity: sparsity.clone(),
        config: ConfigRef {
            file: String::new(),
            model_type: String::new(),
            blake3: String::new(),
        },
        layers: Vec::new(),
        capacity: 1,
        proof: Proof::default(),
        variants: Vec::new(),
        kept: Vec::new(),
        kernels: Vec::new(),
        products: Vec::new(),
        scorers: Vec::new(),
        delta_rules: Vec::new(),
        grouped: Vec::new(),
        digest: String::new(),
    }
}

fn sparsity() -> impl Strategy<Value = Sparsity> {
    let layers = option::of(vec(any::<u32>(), 0..4)).prop_map(|layers| {
        layers.map(|mut layers| {
            layers.sort_unstable();
            layers.dedup();
            layers
        })
    });
    let header = (
        1..=limits::MAX_BLOCK,
        any::<bool>(),
        layers,
        option::of(any::<u32>()),
    );
    (header, pattern()).prop_map(
        |((block, by_layer, swapped_layers, stage), pattern)| Sparsity {
            block,
            stage_by: StageBy::ALL[usize::from(by_layer)],
            swapped_layers,
            stage,
            pattern,
        },
    )
}

proptest! {
    /// Text, JSON, manifests and patterns built in Rust have the same limit of depth: each form
    /// either reads a pattern back to an equal value, or all forms reject it.
    #[test]
    fn deep_patterns_are_read_from_each_form_or_from_none(pattern in deep()) {
        let sparsity = Sparsity::from(pattern);
        let accepted = sparsity.check().is_ok();
        let text = Sparsity::parse("text", &sparsity.to_string());
        let json = serde_json::to_string(&sparsity).expect("plain data");
        let read = json::parse("json", &json).map(|parsed| parsed.sparsity);
        prop_assert_eq!((text.is_ok(), read.is_ok()), (accepted, accepted));
        if accepted {
            prop_assert_eq!(text.as_ref(), Ok(&sparsity));
            prop_assert_eq!(read.as_ref(), Ok(&sparsity));
            if let Some(flat) = json::to_flat(&sparsity) {
                let flat = json::parse("flat", &flat).map(|parsed| parsed.sparsity);
                prop_assert_eq!(flat.as_ref(), Ok(&sparsity));
            }
            let written = manifest(&sparsity);
            let text = serde_json::to_string_pretty(&written).expect("plain data");
            let read: Result<Manifest, _> = serde_json::from_str(&text);
            prop_assert_eq!(read.expect("a manifest"), written);
        }
    }

    #[test]
    fn what_is_printed_reads_back(sparsity in sparsity()) {
        prop_assert_eq!(sparsity.check(), Ok(()));
        let text = sparsity.to_string();
        let parsed = Sparsity::parse_with_spans("printed", &text);
        let parsed = parsed.unwrap_or_else(|error| panic!("{error}"));
        let leaves = sparsity.pattern.leaves();
        prop_assert_eq!(parsed.leaves.len(), leaves.len());
        for (leaf, span) in leaves.iter().zip(&parsed.leaves) {
            prop_assert_eq!(leaf.to_string(), &text[span.clone()]);
        }
        prop_assert_eq!(&parsed.sparsity, &sparsity);
        prop_assert_eq!(Parsed::from(sparsity).leaves, parsed.leaves);
    }

    #[test]
    fn what_serde_writes_reads_back(sparsity in sparsity()) {
        let text = serde_json::to_string(&sparsity).expect("plain data");
        let parsed = json::parse("written", &text).map(|parsed| parsed.sparsity);
        prop_assert_eq!(parsed, Ok(sparsity));
    }

    #[test]
    fn any_text_parses_or_has_a_diagnostic(
        text in "[ -~\n\r\té☃\u{301}]{0,40}|(causal|sink|\\(|\\)|[0-9]|[,=|&\\[\\]{}:\"-]| ){0,30}",
    ) {
        if let Err(error) = Sparsity::parse_any("any", &text) {
            prop_assert!(error.to_string().starts_with("error: "));
        }
    }
}
