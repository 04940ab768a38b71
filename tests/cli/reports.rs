//! What the reporting commands print.

use std::process::{Command, Output};

fn butterfly(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .args(args)
        .output()
        .expect("runs")
}

fn object(args: &[&str]) -> serde_json::Value {
    let run = butterfly(args);
    assert!(
        run.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&run.stderr)
    );
    serde_json::from_slice(&run.stdout).expect("one JSON object")
}

const PATTERN: &str =
    "block 128\ncausal & (local(1) | partner(causal_shift, radix=2, count=1) | sink(1))";

#[test]
fn topology_names_stage_and_rows() {
    let by_stage = object(&[
        "topology",
        "--json",
        "--pattern",
        PATTERN,
        "--seq-len",
        "1100",
        "--stage",
        "6",
    ]);
    assert_eq!(by_stage["num_blocks"], 9);
    assert_eq!(
        (
            &by_stage["width"],
            &by_stage["stage_count"],
            &by_stage["stage"]
        ),
        (&4.into(), &4.into(), &2.into())
    );
    assert_eq!(by_stage["rows"][8], serde_json::json!([0, 4, 7, 8]));
    let layers = [
        "topology",
        "--format",
        "json",
        "--pattern",
        PATTERN,
        "--seq-len",
        "1100",
        "--layers",
        "3,7,11",
    ];
    let by_layer = object(&[&layers[..], &["--layer", "11"]].concat());
    assert_eq!(by_layer, by_stage);
    let svg = butterfly(&[
        "topology",
        "--format",
        "svg",
        "--pattern",
        PATTERN,
        "--seq-len",
        "1100",
    ]);
    let svg = String::from_utf8(svg.stdout).expect("utf-8");
    assert!(
        svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.matches("<rect").count() > 9
    );
}

#[test]
fn prove_reports_coverage() {
    let prove = [
        "prove",
        "--json",
        "--seq-len",
        "32768",
        "--layers",
        "3,7,11,15,19,23,27,31",
        "--pattern",
    ];
    let swapped = object(&[&prove[..], &[PATTERN]].concat());
    assert_eq!(
        (&swapped["coverage"][7], &swapped["causal"]),
        (&1.0.into(), &true.into())
    );
    assert_eq!(swapped["coverage"].as_array().map(Vec::len), Some(8));
    let by_layer = format!("stage_by layer_index\n{PATTERN}");
    let absolute = object(&[&prove[..], &[&by_layer]].concat());
    assert!((absolute["coverage"][7].as_f64().expect("number") - 0.3549).abs() < 5e-5);
    assert!(absolute["full_at"].is_null());
}

#[test]
fn a_proof_that_does_not_hold_exits_with_1() {
    let run = butterfly(&[
        "prove",
        "--json",
        "--seq-len",
        "300",
        "--layers",
        "2",
        "--pattern",
        "causal & sink(0)",
    ]);
    assert_eq!(run.status.code(), Some(1));
    let object: serde_json::Value = serde_json::from_slice(&run.stdout).expect("one object");
    assert_eq!(object["empty_queries"], 600);
}

#[test]
fn completions_name_every_command() {
    let bash = butterfly(&["completions", "bash"]);
    let script = String::from_utf8(bash.stdout).expect("utf-8");
    for command in ["topology", "prove", "attend"] {
        assert!(script.contains(command), "{command}");
    }
}

#[test]
fn bench_prints_predicted_beside_measured() {
    let bench = [
        "bench",
        "attention",
        "--json",
        "--dense",
        "--repeats",
        "2",
        "--seq-len",
        "600,1200",
    ];
    let shape = [
        "--q-heads",
        "2",
        "--kv-heads",
        "1",
        "--head-dim",
        "32",
        "--pattern",
        PATTERN,
    ];
    let report = object(&[&bench[..], &shape[..]].concat());
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4);
    for row in rows {
        let positive = |field: &str| row[field].as_f64().expect("number") > 0.0;
        assert!(
            positive("median_ms") && positive("predicted_ms") && positive("tile_gflops"),
            "{row}"
        );
    }
    assert_eq!(
        (&rows[0]["tokens"], &rows[3]["tokens"]),
        (&600.into(), &1200.into())
    );
    assert!(rows[0]["against_dense"].is_f64() && rows[1]["against_dense"].is_null());
}
