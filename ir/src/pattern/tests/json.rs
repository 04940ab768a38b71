use super::super::{Diagnostic, Sparsity, build::*, json};
use super::check_errors;
use crate::{PartnerRule, StageBy};

#[test]
fn bad_json_has_these_diagnostics() {
    check_errors("doc.json", include_str!("bad_json.txt"));
}

/// Flat configurations, and the pattern text of the same meaning.
#[test]
fn flat_json_prints_as() {
    let cases = [
        (
            r#"{"rule": "xor"}"#,
            "block 128\nstage_by swapped_index\n\
             causal & (local(1) | partner(xor, radix=2, count=1) | sink(1))",
        ),
        (
            r#"{"rule": "random", "block_size": 8, "local_window": 0, "sink": 0,
                "partner_count": 1, "radix": 2, "stage": 1, "bits": [1], "scale": 0.25,
                "has_grads": false, "rows": [[0], [0, 1]], "swapped_layers": null}"#,
            "block 8\nstage_by swapped_index\nstage 1\n\
             causal & (local(0) | partner(random, radix=2, count=1))",
        ),
        (
            r#"{"rule": "causal_shift", "block_size": 8, "local_window": 1, "sink": 2,
                "partner_count": 2, "radix": 3, "stage_by": "layer_index",
                "swapped_layers": [3, 7], "layers": [{"layer": 3, "stage": 3}],
                "stage": null, "coverage": null}"#,
            "block 8\nstage_by layer_index\nlayers 3,7\n\
             causal & (local(1) | partner(causal_shift, radix=3, count=2) | sink(2))",
        ),
    ];
    for (text, printed) in cases {
        let parsed = json::parse("doc.json", text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(parsed.sparsity.to_string(), printed);
        assert_eq!(parsed.leaves.len(), parsed.sparsity.pattern.leaves().len());
        let flat = json::to_flat(&parsed.sparsity).expect("came from the flat form");
        let again = json::parse("flat.json", &flat).map(|parsed| parsed.sparsity);
        assert_eq!(again, Ok(parsed.sparsity));
    }
}

#[test]
fn flat_leaves_stand_at_their_fields() -> Result<(), Diagnostic> {
    let text = r#"{"rule": "xor", "local_window": 3, "sink": 2}"#;
    let parsed = json::parse("doc.json", text)?;
    let places: Vec<_> = parsed
        .leaves
        .iter()
        .map(|span| &text[span.clone()])
        .collect();
    assert_eq!(places, ["{", "3", "\"xor\"", "2"]);
    Ok(())
}

#[test]
fn structured_json_is_what_serde_writes() -> Result<(), Diagnostic> {
    let mut sparsity = Sparsity::from(causal() & (window(4) | table([vec![0], vec![]])));
    sparsity.stage_by = StageBy::LayerIndex;
    sparsity.swapped_layers = Some(vec![3]);
    let text = serde_json::to_string_pretty(&sparsity).expect("plain data");
    assert_eq!(json::parse("doc.json", &text)?.sparsity, sparsity);

    let short = r#"{"pattern": {"leaf": "causal"}}"#;
    assert_eq!(json::parse("doc.json", short)?.sparsity, causal().into());
    Ok(())
}

#[test]
fn other_patterns_have_no_flat_form() {
    let partner = || partner(PartnerRule::Xor, 2, 1);
    for pattern in [
        causal(),
        local(1) | partner(),
        causal() & local(1),
        causal() & (local_around(1, 1) | partner()),
        causal() & (local(1) | partner() | sink(0)),
        causal() & (local(1) | (partner() | sink(1))),
        causal() & (local(1) | partner() | sink(1) | sink(2)),
        all() & (local(1) | partner() | sink(1)),
    ] {
        assert_eq!(json::to_flat(&pattern.into()), None);
    }
}

#[test]
fn deep_json_is_an_error_and_no_overflow() {
    let deep = |field: &str| format!("{{\"rule\": \"xor\", \"{field}\": {}", "[".repeat(1 << 20));
    for field in ["sink", "rows", "pattern"] {
        assert!(json::parse("deep.json", &deep(field)).is_err());
        let closed = deep(field) + &"]".repeat(1 << 20) + "}";
        assert_eq!(json::parse("deep.json", &closed).is_ok(), field == "rows");
    }
}
