//! `butterfly eval`: figures by position, tasks of retrieval, the report as a page, and bad input.

mod byte_model;

use byte_model::{butterfly, folder};
use serde_json::Value;
use std::fs;
use std::path::Path;

const PATTERN: &str = "block 16 causal & (local(1) | sink(1))";

/// A model with a byte tokenizer, and a text of so many bytes beside it.
fn model(bytes: usize) -> tempfile::TempDir {
    let folder = folder();
    let text = "Some blocks attend to others, and some do not. ".repeat(bytes / 47 + 1);
    fs::write(folder.path().join("text.txt"), &text[..bytes]).expect("written");
    folder
}

fn run(dir: &Path, more: &[&str]) -> std::process::Output {
    let text = dir.join("text.txt");
    let [dir, text] = [dir, &text].map(|path| path.to_str().expect("utf-8"));
    let args = ["eval", "--model", dir, "--text", text, "--device", "cpu"];
    butterfly(&[&args[..], more].concat())
}

fn report(dir: &Path, more: &[&str]) -> Value {
    let output = run(dir, &[more, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{more:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn refused(dir: &Path, more: &[&str], parts: &[&str]) {
    let output = run(dir, more);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{more:?}: {error}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn buckets_of_positions_sum_to_the_totals() {
    let folder = model(3000);
    let window = ["--window", "2500", "--pattern", PATTERN];
    let whole = report(folder.path(), &window);
    let sum = |report: &Value, of: &dyn Fn(&Value) -> f64| -> f64 {
        let buckets = report["by_position"].as_array().expect("buckets").iter();
        let parts = buckets.map(|bucket| number(&bucket["predicted"]) * of(bucket));
        parts.sum::<f64>() / number(&report["predicted"])
    };
    let ends = |report: &Value| -> Vec<(u64, u64, u64)> {
        let field = |bucket: &Value, name: &str| bucket[name].as_u64().expect("a number");
        let buckets = report["by_position"].as_array().expect("buckets").iter();
        let of = |b: &Value| (field(b, "from"), field(b, "end"), field(b, "predicted"));
        buckets.map(of).collect()
    };
    // Windows of 2500 and 500 tokens.
    assert_eq!(
        ends(&whole),
        [(0, 1024, 1024 + 499), (1024, 2048, 1024), (2048, 4096, 451)]
    );
    let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} {want}");
    close(
        sum(&whole, &|b| number(&b["dense_perplexity"]).ln()),
        number(&whole["dense_perplexity"]).ln(),
    );
    for name in ["kl_divergence", "top1_agreement"] {
        close(sum(&whole, &|b| number(&b[name])), number(&whole[name]));
    }
    assert!(number(&whole["kl_divergence"]) > 0.0);

    // Scored from a position on, the later buckets are what they were.
    let later = report(folder.path(), &[&window[..], &["--from", "1024"]].concat());
    assert_eq!(ends(&later), ends(&whole)[1..]);
    for i in 0..2 {
        let (got, want) = (&later["by_position"][i], &whole["by_position"][i + 1]);
        close(number(&got["perplexity"]), number(&want["perplexity"]));
    }
    // Without a pattern there is nothing to compare.
    let dense = report(folder.path(), &["--window", "2500"]);
    assert_eq!(dense["dense_perplexity"], whole["dense_perplexity"]);
    assert!(dense["by_position"][0]["kl_divergence"].is_null());
}

#[test]
fn tasks_are_put_to_both_and_repeat_by_seed() {
    let folder = model(1000);
    let tasks = ["--tasks", "needle,multikey,kv,tracking", "--lengths", "600"];
    let more = ["--depths", "0,1", "--trials", "2", "--pattern", PATTERN];
    let args = [&tasks[..], &more].concat();
    let first = report(folder.path(), &args);
    let all = first["retrieval"]["by_depth"].as_array().expect("rows");
    // Four tasks, two depths, two kinds of attention.
    assert_eq!(all.len(), 16);
    for row in all {
        assert_eq!((&row["prompts"], &row["tokens"]), (&2.into(), &600.into()));
        for name in ["found", "exact"] {
            let interval = &row[format!("{name}_interval")];
            let share = number(&row[name]);
            assert!(number(&interval[0]) <= share && share <= number(&interval[1]));
        }
    }
    let lengths = first["retrieval"]["by_length"].as_array().expect("rows");
    assert_eq!(lengths.len(), 8);
    assert!(
        lengths
            .iter()
            .all(|row| row["prompts"] == 4 && row["depth"].is_null())
    );
    // Prompts that run together are found as those that run alone.
    let together = report(folder.path(), &[&args[..], &["--batch", "3"]].concat());
    assert_eq!(first["retrieval"], together["retrieval"]);
    // The short form.
    let short = [
        "--needle",
        "600",
        "--depths",
        "0,1",
        "--trials",
        "2",
        "--pattern",
        PATTERN,
    ];
    let short = report(folder.path(), &short);
    assert_eq!(
        short["retrieval"]["by_depth"].as_array().expect("rows")[..],
        all[..4]
    );
    assert_eq!(short["retrieval"]["seed"], 0);
}

/// A policy file for the model, which `butterfly calibrate` writes.
fn calibrated(dir: &Path) -> String {
    let text = dir.join("text.txt");
    let policy = dir.join("half.json");
    let [dir, text, policy] = [dir, &text, &policy].map(|path| path.to_str().expect("utf-8"));
    let args = ["calibrate", "-m", dir, "--text", text, "--device", "cpu"];
    let more = ["--window", "128", "--tail", "16", "--pattern", PATTERN];
    let output = butterfly(&[&args[..], &more, &["-o", policy]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    policy.into()
}

#[test]
fn several_policies_are_each_what_they_are_alone() {
    let folder = model(900);
    let dir = folder.path();
    let policy = calibrated(dir);
    let file = dir.join("narrow.pattern");
    fs::write(&file, "block 16\ncausal & local(0)").expect("written");
    let file = file.to_str().expect("utf-8");
    let given = [
        ["--pattern", PATTERN],
        ["--policy", &policy],
        ["--pattern", file],
    ];
    let more = ["--window", "600", "--needle", "300,500", "--depths", "0.5"];
    let all = report(dir, &[&more[..], &given.concat()].concat());
    let names = ["pattern 1", "half", "narrow"];
    let policies = all["policies"].as_array().expect("policies");
    let found: Vec<_> = policies
        .iter()
        .map(|policy| policy["name"].as_str())
        .collect();
    assert_eq!(found, names.map(Some));
    assert_eq!(policies[0]["pattern"], PATTERN);
    assert_eq!(policies[1]["policy"], policy);
    // What is only a policy's is not in the place of all.
    for name in ["perplexity", "kl_divergence", "top1_agreement"] {
        assert!(all[name].is_null(), "{name}");
        assert!(all["by_position"][0][name].is_null(), "{name}");
    }
    let by_attention = |report: &Value, name: &str| -> Vec<Value> {
        let rows = report["retrieval"]["by_depth"].as_array().expect("rows");
        let rows = rows.iter().filter(|row| row["attention"] == name);
        rows.map(|row| {
            let mut row = row.clone();
            row["attention"] = Value::Null;
            row
        })
        .collect()
    };
    let mut perplexities = Vec::new();
    for ((given, policy), name) in given.iter().zip(policies).zip(names) {
        let alone = report(dir, &[&more[..], given].concat());
        for field in [
            "perplexity",
            "kl_divergence",
            "top1_agreement",
            "by_position",
            "layers",
        ] {
            assert_eq!(policy[field], alone[field], "{name}: {field}");
            assert_eq!(alone["policies"][0][field], alone[field], "{name}: {field}");
        }
        let ratio = number(&alone["perplexity"]) / number(&all["dense_perplexity"]);
        assert!((number(&policy["perplexity_ratio"]) - ratio).abs() < 1e-9);
        assert_eq!(all["dense_perplexity"], alone["dense_perplexity"]);
        assert_eq!(by_attention(&all, "dense"), by_attention(&alone, "dense"));
        assert_eq!(by_attention(&all, name).len(), 2);
        assert_eq!(by_attention(&all, name), by_attention(&alone, "butterfly"));
        perplexities.push(number(&policy["perplexity"]));
    }
    assert!(perplexities[0] != perplexities[1] && perplexities[1] != perplexities[2]);
    // Dense attention ran once: as often as beside one policy.
    let launches = |layers: &Value| layers[0]["kernels"][0][1].as_u64().expect("a count");
    let dense = report(dir, &more);
    assert_eq!(launches(&all["layers"]), launches(&dense["layers"]));
    assert_eq!(dense["policies"], Value::Array(Vec::new()));

    let page = dir.join("report.html");
    let path = ["--report", page.to_str().expect("utf-8")];
    let output = run(dir, &[&more[..], &given.concat(), &path].concat());
    let text = String::from_utf8(output.stdout).expect("utf-8");
    let page = fs::read_to_string(&page).expect("a page");
    for name in names {
        assert!(text.contains(&format!("{name} found")), "{text}");
        assert!(page.contains(&format!("needle, {name}")), "{page}");
        // A line in each of two charts.
        let lines = page.matches(&format!(">{name}</text>")).count();
        assert_eq!(lines, 2, "{name}: {page}");
    }
    assert!(text.contains(&format!("--policy {policy}")), "{text}");
}

#[test]
fn windows_are_at_even_distances() {
    let folder = model(3050);
    let dir = folder.path();
    let args = ["--window", "500", "--from", "100", "--pattern", PATTERN];
    let two = report(dir, &[&args[..], &["--windows", "2"]].concat());
    assert_eq!(
        (&two["tokens"], &two["predicted"]),
        (&1000.into(), &798.into())
    );
    // The first and the fourth of six.
    let text = fs::read(dir.join("text.txt")).expect("read");
    fs::write(
        dir.join("text.txt"),
        [&text[..500], &text[1500..2000]].concat(),
    )
    .expect("written");
    assert_eq!(two, report(dir, &args));
    refused(
        dir,
        &["--window", "500", "--windows", "3"],
        &[
            "text.txt",
            "has 1000 tokens, 1500 are needed",
            "--window 333 or less",
        ],
    );
}

#[test]
fn the_page_holds_all_and_needs_nothing_else() {
    let folder = model(600);
    let page = folder.path().join("report.html");
    let path = page.to_str().expect("utf-8");
    let args = ["--needle", "300", "--pattern", PATTERN, "--report", path];
    let write = || {
        let output = run(folder.path(), &args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        let text = String::from_utf8(output.stdout).expect("utf-8");
        assert!(
            text.contains("By position") && text.contains("0..1024"),
            "{text}"
        );
        fs::read_to_string(&page).expect("a page")
    };
    let text = write();
    for part in [
        "<!doctype html>",
        "causal &amp; (local(1) | sink(1))",
        "KL divergence",
        "needle, butterfly",
        "Retrieval by depth",
    ] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert_eq!(text.matches("<svg").count(), 3);
    assert_eq!(
        text.replace("http://www.w3.org/2000/svg", "")
            .matches("http")
            .count(),
        0
    );
    assert_eq!(text, write());
}

#[test]
fn bad_input_is_refused_before_anything_runs() {
    let folder = model(400);
    let dir = folder.path();
    let refused = |more: &[&str], parts: &[&str]| refused(dir, more, parts);
    refused(
        &["--tasks", "needles", "--lengths", "300"],
        &["needles", "needle, multikey, kv, tracking"],
    );
    refused(&["--tasks", "kv"], &["--lengths"]);
    refused(&["--lengths", "300"], &["--tasks"]);
    refused(
        &["--tasks", "kv", "--needle", "300", "--lengths", "300"],
        &["cannot be used with"],
    );
    refused(
        &["--tasks", "kv", "--lengths", "19,300"],
        &["--lengths 19", "task kv needs at least 20 tokens"],
    );
    refused(
        &["--needle", "8"],
        &["--needle 8", "task needle needs at least"],
    );
    refused(&["--needle", "300", "--depths", "1.5"], &["from 0 to 1"]);
    refused(&["--needle", "300", "--depths", "NaN"], &["from 0 to 1"]);
    refused(&["--needle", "300", "--trials", "0"], &["--trials", "1.."]);
    refused(
        &["--from", "399"],
        &[
            "text.txt",
            "400 tokens, in windows of 400",
            "--from at most 398",
        ],
    );
    refused(
        &["--window", "64", "--from", "63"],
        &["in windows of 64", "--from at most 62"],
    );
    refused(&["--plot", "plot.svg"], &["--needle"]);
    refused(
        &["--needle", "300", "--capacity", "350"],
        &["--capacity 350", "give at least 400"],
    );
    refused(
        &["--report", "/nowhere/report.html"],
        &["/nowhere/report.html", "name a folder that is there"],
    );
    let twice = [
        "--pattern",
        PATTERN,
        "--pattern",
        "causal",
        "--pattern",
        PATTERN,
    ];
    refused(&twice, &["--pattern block 16 causal", "is given twice"]);
    let kernels = [
        "--artifacts",
        "there",
        "--pattern",
        PATTERN,
        "--pattern",
        "causal",
    ];
    refused(
        &kernels,
        &[
            "--artifacts there",
            "the kernels of one pattern, but 2 are given",
        ],
    );
    let missing = ["--pattern", PATTERN, "--policy", "none.json"];
    refused(&missing, &["none.json"]);
    let leaks = ["--pattern", PATTERN, "--pattern", "all"];
    refused(&leaks, &["all"]);
    let last = report(dir, &["--from", "398"]);
    assert_eq!(last["predicted"], 1);
}
