use super::super::{Diagnostic, Parsed, Sparsity, build::*, limits};
use super::check_errors;
use crate::{PartnerRule, Pattern, StageBy};

#[test]
fn bad_text_has_these_diagnostics() {
    check_errors("doc.pattern", include_str!("bad_text.txt"));
}

/// Expressions, and how they are printed.
#[test]
fn good_text_prints_as() {
    let same = [
        "causal",
        "all",
        "none",
        "local(1)",
        "local(1, 2)",
        "window(128)",
        "partner(xor, radix=2, count=1)",
        "partner(causal_shift, radix=16, count=2)",
        "sink(0)",
        "sink_tokens(4)",
        "global(1)",
        "table([])",
        "table([[], [0, 1]])",
        "causal & local(1) | sink(1)",
        "causal & (local(1) | sink(1))",
        "all - local(1) & causal",
        "all - (local(1) & causal)",
        "all - sink(1) - sink(2)",
        "all - (sink(1) - sink(2))",
        "causal | (sink(1) | sink(2))",
    ];
    let changed = [
        ("((causal))", "causal"),
        ("causal()", "causal"),
        ("local(1, 0)", "local(1)"),
        ("local(before=1, after=2)", "local(1, 2)"),
        ("local(after=2, before=1)", "local(1, 2)"),
        ("window(tokens=1_024,)", "window(1024)"),
        ("partner(xor)", "partner(xor, radix=2, count=1)"),
        (
            "partner(causal_shift, 3, 2)",
            "partner(causal_shift, radix=3, count=2)",
        ),
        (
            "partner(count=2, rule=benes)",
            "partner(benes, radix=2, count=2)",
        ),
        ("sink_tokens(n=4)", "sink_tokens(4)"),
        ("global(blocks=1)", "global(1)"),
        ("table(rows=[[0],[0,1,],])", "table([[0], [0, 1]])"),
        ("(causal & sink(1)) | all", "causal & sink(1) | all"),
        ("causal & (all - sink(1))", "causal & all - sink(1)"),
        ("\u{feff}causal # & all\r\n\t& all", "causal & all"),
    ];
    for (text, printed) in same.map(|text| (text, text)).into_iter().chain(changed) {
        let parsed = Sparsity::parse("doc.pattern", text);
        let parsed = parsed.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(parsed.pattern.to_string(), printed, "{text}");
    }
}

#[test]
#[expect(clippy::precedence, reason = "the precedence is what is tested")]
fn operators_bind_as_in_rust() -> Result<(), Diagnostic> {
    let parse = |text| Sparsity::parse("doc.pattern", text).map(|sparsity| sparsity.pattern);
    assert_eq!(
        parse("causal & all - sink(1) | none & global(2) | local(1)")?,
        causal() & all() - sink(1) | none() & global(2) | local(1),
    );
    assert_eq!(parse("all - sink(1) - sink(2)")?, all() - sink(1) - sink(2));
    assert_eq!(parse("all - (sink(1) | none)")?, all() - (sink(1) | none()));
    Ok(())
}

#[test]
fn every_leaf_equals_its_constructor() -> Result<(), Diagnostic> {
    let cases: [(&str, Pattern); 10] = [
        ("causal", causal()),
        ("local(2, 1)", local_around(2, 1)),
        ("window(8)", window(8)),
        ("partner(benes, count=2)", partner(PartnerRule::Benes, 2, 2)),
        ("sink(1)", sink(1)),
        ("sink_tokens(3)", sink_tokens(3)),
        ("global(1)", global(1)),
        ("table([[0], [0, 1]])", table([vec![0], vec![0, 1]])),
        ("all", all()),
        ("none", none()),
    ];
    for (text, built) in cases {
        assert_eq!(Sparsity::parse("doc.pattern", text)?.pattern, built);
    }
    Ok(())
}

#[test]
fn header() -> Result<(), Diagnostic> {
    let plain = Sparsity::parse("doc.pattern", "causal")?;
    assert_eq!(plain, Sparsity::from(causal()));
    assert_eq!((plain.block, plain.stage_by), (128, StageBy::SwappedIndex));

    let text = "stage 2 # fixed\nlayers 3, 7\nstage_by layer_index\nblock 64\ncausal";
    let full = Sparsity::parse("doc.pattern", text)?;
    assert_eq!(full.swapped_layers.as_deref(), Some(&[3, 7][..]));
    assert_eq!(full.stage, Some(2));
    let printed = "block 64\nstage_by layer_index\nlayers 3,7\nstage 2\ncausal";
    assert_eq!(full.to_string(), printed);

    let none = Sparsity::parse("doc.pattern", "layers none none")?;
    assert_eq!(none.swapped_layers, Some(Vec::new()));
    assert_eq!(none.pattern, super::super::build::none());
    Ok(())
}

#[test]
fn leaves_know_where_they_stand() -> Result<(), Diagnostic> {
    let text = "block 8\ncausal & (sink(0) | local( 1 ))";
    let parsed = Sparsity::parse_with_spans("doc.pattern", text)?;
    let places: Vec<_> = parsed
        .leaves
        .iter()
        .map(|span| &text[span.clone()])
        .collect();
    assert_eq!(places, ["causal", "sink(0)", "local( 1 )"]);
    let error = parsed.at_leaf(1, "query block 0 attends to no key", "admits no block");
    assert_eq!(
        error.to_string(),
        "error: query block 0 attends to no key\n\
         \x20 ┌─ doc.pattern:2:11\n\
         2 │ causal & (sink(0) | local( 1 ))\n\
         \x20 │           ^^^^^^^ admits no block"
    );
    let built = Parsed::from(Sparsity::from(causal() & sink(0)));
    let error = built.at_leaf(1, "empty", "").to_string();
    assert!(error.contains("<pattern>:3:10"), "{error}");
    Ok(())
}

#[test]
fn deep_text_is_an_error_and_no_overflow() {
    const DEPTH: usize = limits::MAX_DEPTH as usize;
    let nested = |depth| format!("{}causal{}", "(".repeat(depth), ")".repeat(depth));
    let chain = |depth| format!("causal{}", " | all".repeat(depth));
    let right = |depth| format!("{}all{}", "(all & ".repeat(depth), ")".repeat(depth));
    for text in [nested(DEPTH), chain(DEPTH), right(DEPTH)] {
        let parsed = Sparsity::parse("deep", &text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Sparsity::parse("deep", &parsed.to_string()), Ok(parsed));
    }
    let texts = [
        nested(DEPTH + 1),
        chain(DEPTH + 1),
        right(DEPTH + 1),
        nested(1 << 20),
        chain(1 << 20),
    ];
    for text in texts
        .into_iter()
        .chain(["(".repeat(1 << 20), "[".repeat(1 << 20)])
    {
        let error = Sparsity::parse("deep", &text).expect_err("too deep");
        let deep = "a pattern must nest at most 50";
        let wrong = "expected a pattern, found `[`";
        assert!(error.message.starts_with(deep) || error.message == wrong);
    }
}

#[test]
fn the_form_follows_the_content() {
    for (name, text) in [
        ("a.wf", "causal"),
        ("argument", "(wayfinder (degree 4))"),
        ("argument", "\n ( wayfinder\n(degree 4))"),
    ] {
        let error = Sparsity::parse_any(name, text).expect_err("not supported");
        assert_eq!(error.message, "the .wf form is not supported yet");
    }
    let json = Sparsity::parse_any("argument", " {\"rule\": \"xor\"}");
    let text = Sparsity::parse_any("argument", "causal & (local(1) | partner(xor) | sink(1))");
    assert_eq!(
        json.map(|json| json.sparsity),
        text.map(|text| text.sparsity)
    );
    assert!(Sparsity::parse_any("a.json", "causal").is_err());
}

/// A pattern built by operators in Rust is not limited by a parser.
#[test]
fn deep_expressions_are_an_error_and_no_overflow() {
    let deep = |depth| (0..depth).fold(causal(), |pattern, _| pattern & all());
    assert_eq!(Sparsity::from(deep(limits::MAX_DEPTH)).check(), Ok(()));
    for depth in [limits::MAX_DEPTH + 1, 1 << 20] {
        let pattern = Sparsity::from(deep(depth));
        let error = pattern.check().expect_err("too deep");
        assert!(error.to_string().contains("50 operators deep"), "{error}");
    }
    let mut wide: Vec<Pattern> = vec![causal(); limits::MAX_LEAVES + 1];
    while wide.len() > 1 {
        let pairs = wide.chunks(2).map(|pair| match pair {
            [a, b] => a.clone() | b.clone(),
            rest => rest[0].clone(),
        });
        wide = pairs.collect();
    }
    let wide = Sparsity::from(wide.remove(0));
    let error = wide.check().expect_err("too many leaves");
    assert!(error.to_string().contains("this one has 257"), "{error}");
    assert!(Sparsity::parse("wide", &wide.to_string()).is_err());
}

/// Of a long line, the part around the mistake is shown; long words, numbers and names are
/// shortened.
#[test]
fn long_input_has_short_messages() {
    let row = vec!["[0, 1, 2]"; 10_000].join(", ");
    let name = format!("{}doc.pattern", "folder/".repeat(1000));
    let long = "x".repeat(100_000);
    let texts = [
        format!("block 64\ncausal & table([{row}]) & windw(8)"),
        format!("causal & table([{row}, [x]])"),
        format!("causal & {long}"),
        format!("causal & window({})", "9".repeat(100_000)),
        format!("causal & window({}x)", "9".repeat(100_000)),
        format!("causal & partner({long})"),
        format!("causal & local({long}=1)"),
        format!("stage_by {long} causal"),
        format!("{}window(0)", "é ☃ ".repeat(50_000)),
        format!("causal & ({} & none", "all | ".repeat(40_000)),
        format!("{{\"rule\": \"{long}\"}}"),
        format!("{{\"{long}\": 1, \"{long}\": 1}}"),
        format!(
            "{{\"rule\": \"xor\", \"swapped_layers\": [{}3]}}",
            "3, ".repeat(50_000)
        ),
        format!("{{\"pattern\": {{\"leaf\": \"{long}\"}}}}"),
        format!("(wayfinder {long})"),
    ];
    for text in texts {
        let error = Sparsity::parse_any(&name, &text)
            .expect_err("a mistake")
            .to_string();
        let widest = error.lines().map(|line| line.chars().count()).max();
        assert!(
            widest <= Some(260),
            "{} columns: {}",
            widest.unwrap_or(0),
            &error[..900.min(error.len())]
        );
        assert!(error.contains("…"), "{error}");
    }
    // The excerpt contains the mistake, and has its line and column numbers.
    let text = format!("block 64\ncausal & table([{row}]) & windw(8) & causal");
    let error = Sparsity::parse_any("doc.pattern", &text).expect_err("a mistake");
    let column = 1 + text
        .lines()
        .nth(1)
        .expect("a line")
        .find("windw")
        .expect("a word");
    let error = error.to_string();
    assert!(
        error.contains(&format!("doc.pattern:2:{column}\n2 │ …")),
        "{error}"
    );
    assert!(error.contains("]]) & windw(8) & causal\n"), "{error}");
    assert!(error.contains(" ^^^^^"), "{error}");
    let (pointer, pointed) = (error.lines().nth(3), error.lines().nth(2));
    let at = |line: Option<&str>, what| {
        line.and_then(|line| Some(line[..line.find(what)?].chars().count()))
    };
    assert_eq!(at(pointer, "^^^^^"), at(pointed, "windw"));
}
