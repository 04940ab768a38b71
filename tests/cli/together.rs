//! `butterfly bench model --batch`: sequences that run together.

mod command;

use command::{bad, butterfly, good, model, text};
use serde_json::Value;

fn number(row: &Value, name: &str) -> f64 {
    let number = row[name].as_f64();
    number.unwrap_or_else(|| panic!("no number {name}: {row}"))
}

/// Whether two numbers are equal but for rounding.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// A row for each length, size and attention; rates are those of all sequences.
#[test]
fn sequences_are_measured_together() {
    let config = model("llama").join("config.json");
    let bench = ["bench", "model", "--random-weights", text(&config)];
    let sizes = ["--prompt-tokens", "40,64", "--decode", "3", "--chunk", "32"];
    let pattern = ["--pattern", "block 16 causal & (local(1) | sink(1))"];
    let flags = [&bench[..], &sizes, &pattern, &["--device", "cpu"]].concat();
    let batches = [&flags[..], &["--batch", "1,3"]].concat();
    let report = good(&batches);
    let rows = report["rows"].as_array().expect("rows");
    let mut expected = Vec::new();
    for tokens in [40, 64] {
        for batch in [1, 3] {
            expected.extend(["dense", "butterfly"].map(|name| (tokens, batch, name)));
        }
    }
    assert_eq!(rows.len(), expected.len());
    for (row, (tokens, batch, name)) in rows.iter().zip(expected) {
        assert_eq!(row["prompt_tokens"], tokens);
        assert_eq!(row["batch"], batch);
        assert_eq!(row["attention"], name);
        let (tokens, batch) = (f64::from(tokens), f64::from(batch));
        let seconds = number(row, "prefill_seconds");
        let rate = number(row, "prefill_tokens_per_second");
        assert!(same(rate * seconds, batch * tokens), "{row}");
        let step = number(row, "decode_milliseconds");
        let rate = number(row, "decode_tokens_per_second");
        assert!(same(rate * step, 1e3 * batch), "{row}");
        // Keys and values of 2 heads of 16 elements in f32, of 4 layers.
        let caches = batch * (tokens + 3.0) * 4.0 * 256.0;
        assert!(same(number(row, "cache_bytes"), caches), "{row}");
    }

    // Only a table that was asked for batches has a column for them.
    let table = |args: &[&str]| {
        let output = butterfly(args);
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let said = table(&batches);
    let headed = said.lines().any(|line| {
        let titles: Vec<_> = line.split_whitespace().collect();
        titles.starts_with(&["attention", "batch", "tokens"]) && line.contains("decode tok/s")
    });
    assert!(headed, "{said}");
    assert!(said.contains("dense at 64, batch 3: "), "{said}");
    assert!(!table(&flags).contains(" batch "));
    let alone = good(&flags);
    let rows = alone["rows"].as_array().expect("rows");
    assert!(rows.len() == 4 && rows.iter().all(|row| row["batch"] == 1));
}

/// Sequences of different lengths: rates count the tokens that there are, and windows keep what the shortest sees.
#[test]
fn lengths_differ() {
    let sizes = ["--prompt-tokens", "40", "--decode", "3", "--chunk", "32"];
    let uneven = ["--batch", "4", "--shortest-prompt", "10"];
    for name in ["llama", "mistral", "qwen3_5"] {
        let config = model(name).join("config.json");
        let bench = ["bench", "model", "--random-weights", text(&config)];
        let flags = [&bench[..], &sizes, &uneven, &["--device", "cpu"]].concat();
        let report = good(&flags);
        let row = &report["rows"][0];
        assert_eq!(
            (&row["prompt_tokens"], &row["shortest_prompt"]),
            (&40.into(), &10.into())
        );
        let seconds = number(row, "prefill_seconds");
        let tokens = number(row, "prefill_tokens_per_second") * seconds;
        assert!(same(tokens, f64::from(40 + 30 + 20 + 10)), "{name}: {row}");
        let step = number(row, "decode_milliseconds");
        assert!(same(number(row, "decode_tokens_per_second") * step, 4e3));
        let shown = butterfly(&flags).stdout;
        assert!(String::from_utf8_lossy(&shown).contains("      10-40 "));
    }
}

/// What is predicted is that of all sequences, also where more of them run than a chunk has tokens.
#[test]
fn predictions_count_all_sequences() {
    let config = model("llama").join("config.json");
    let layer = ["bench", "layer", "--config", text(&config), "--profile"];
    let sizes = ["--prompt-tokens", "6", "--decode", "2", "--chunk", "2"];
    let more = ["--batch", "1,3", "--device", "cpu"];
    let report = good(&[&layer[..], &sizes, &more].concat());
    let flop = |row: usize, phase: &str| {
        let parts = report["rows"][row]["predicted"][phase]["parts"].as_array();
        let mut parts = parts.expect("parts").iter();
        let part = parts.find(|part| part["part"] == "projections");
        number(part.expect("projections"), "flop")
    };
    for phase in ["prefill", "decode"] {
        let [one, three] = [0, 1].map(|row| flop(row, phase));
        assert!(same(three, 3.0 * one), "{phase}: {one}, {three}");
    }
}

#[test]
fn batches_that_cannot_run_say_why() {
    let config = model("llama").join("config.json");
    let bench = ["bench", "model", "--random-weights", text(&config)];
    let refuses = |more: &[&str], parts: &[&str]| {
        let error = bad(&[&bench[..], &["--device", "cpu"], more].concat());
        for part in parts {
            assert!(error.contains(part), "no `{part}` in: {error}");
        }
    };
    refuses(&["--batch", "1,0"], &["'0'", "--batch", "1..=4096"]);
    refuses(&["--batch", "4097"], &["'4097'", "1..=4096"]);
    refuses(&["--batch", "two"], &["'two'", "--batch"]);
    refuses(
        &["--batch", "1,4096", "--prompt-tokens", "262144"],
        &["--batch 4096: cpu", "are needed", "for keys, values"],
    );
    let uneven = ["--shortest-prompt", "10", "--batch", "65"];
    refuses(
        &[&uneven[..], &["--prompt-tokens", "9"]].concat(),
        &["--shortest-prompt 10 is longer than a prompt of 9 tokens"],
    );
    let prompt = ["--prompt-tokens", "40"];
    refuses(&[&uneven[..], &prompt].concat(), &["at most 64 sequences"]);
    refuses(&uneven[..2], &["--batch"]);
    let tail = ["--pattern", "block 16 causal & (local(0) | tail(9))"];
    refuses(
        &[&uneven[..3], &["2"], &prompt, &tail].concat(),
        &[
            "sequences of different lengths",
            "`tail` counts from the end of the longest prompt",
        ],
    );
    // A chunk of 64 tokens has 21 of each of three sequences.
    let choosing = ["--pattern", "block 16 causal & (local(0) | routed(1))"];
    let sizes = ["--chunk", "64", "--prompt-tokens", "64", "--batch", "2,3"];
    refuses(
        &[&choosing[..], &sizes].concat(),
        &[
            "--batch 3: chunks of 21 tokens cut blocks of 16",
            "--chunk 96, or another multiple of 48",
        ],
    );
}
