//! The output of the commands that report.

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
fn help_has_the_language_of_patterns() {
    let help = butterfly(&["help", "patterns"]);
    assert!(help.status.success());
    let page = String::from_utf8(help.stdout).expect("utf-8");
    let parts = [
        "partner(rule[, radix=2][, count=1])",
        "causal_shift",
        "HEADER",
        "\"rule\"",
        "EXAMPLES",
    ];
    for part in parts {
        assert!(page.contains(part), "{part}:\n{page}");
    }
    assert_eq!(butterfly(&["patterns"]).stdout, page.as_bytes());
    let prove = butterfly(&["help", "prove"]);
    let prove = String::from_utf8(prove.stdout).expect("utf-8");
    assert!(prove.contains("--seq-len") && prove.contains("butterfly help patterns"));
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
    for what in ["attention", "decode"] {
        let bench = [
            "bench",
            what,
            "--json",
            "--check",
            "--batch",
            "2",
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
            "--device",
            "cpu",
            "--pattern",
            PATTERN,
        ];
        let report = object(&[&bench[..], &shape[..]].concat());
        let rows = report["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 4);
        for row in rows {
            let positive = |field: &str| row[field].as_f64().expect("number") > 0.0;
            assert!(
                row["within_tolerance"] == true
                    && positive("median_ms")
                    && positive("predicted_ms")
                    && positive("tile_gflops"),
                "{row}"
            );
        }
        assert_eq!(
            (&rows[0]["tokens"], &rows[3]["tokens"]),
            (&600.into(), &1200.into())
        );
        assert!(rows[0]["against_dense"].is_f64() && rows[1]["against_dense"].is_null());
    }
}

const CONFIG: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/configs/qwen3.5-9b.json"
);

#[test]
fn explain_shows_both_graphs_and_every_target() {
    let report = object(&["explain", CONFIG, "--json", "--pattern", PATTERN]);
    assert_eq!(
        (&report["layer"], &report["kv_len"]),
        (&3.into(), &32768.into())
    );
    let graph = |which: &str| {
        (
            report[which]["kernels"].as_u64(),
            report[which]["bytes"].as_u64(),
        )
    };
    let (before, after) = (graph("before"), graph("after"));
    assert!(
        after.0 < before.0 && after.1 < before.1,
        "{before:?} {after:?}"
    );
    assert_eq!(report["proof"]["full_at"], 8);
    let targets = report["targets"].as_array().expect("targets");
    let of = |name: &str| {
        let found = targets.iter().find(|t| t["target"] == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    };
    // The visible pairs are the same on every target; only the tiling differs.
    for target in targets {
        assert_eq!(
            target["cost"]["exact_flop"],
            targets[0]["cost"]["exact_flop"]
        );
        assert!(target["cost"]["tile_flop"].as_u64() >= target["cost"]["exact_flop"].as_u64());
        assert_eq!(
            target["predicted_ms"].is_f64(),
            target["target"] == "cuda:sm_90a"
        );
    }
    let reason = |name: &str| of(name)["reason"].as_str().expect("text").to_string();
    assert!(reason("cuda:sm_80").contains("matrix units"));
    assert!(reason("cuda:sm_90a").contains("wgmma"));
    assert!(reason("vulkan").contains("scalar"));
    let text = butterfly(&["explain", CONFIG, "--pattern", PATTERN, "--phase", "decode"]);
    let text = String::from_utf8(text.stdout).expect("utf-8");
    for part in [
        "fused",
        "attend{",
        "bound by",
        "closed form",
        "give --tflops",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let given = [
        "--tflops",
        "100",
        "--bandwidth",
        "1000",
        "--target",
        "vulkan",
    ];
    let report = object(
        &[
            &["explain", CONFIG, "--json", "--pattern", PATTERN][..],
            &given[..],
        ]
        .concat(),
    );
    assert!(report["targets"][0]["predicted_ms"].is_f64());
    let wrong = butterfly(&["explain", CONFIG, "--pattern", PATTERN, "--layer", "4"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("[3, 7, 11"));
}

/// The whole model, part by part: counts are exact, times are those of the card.
#[test]
fn explain_predicts_the_whole_model() {
    let args = ["explain", CONFIG, "--pattern", "causal", "--target", "cpu"];
    let whole = ["--model", "--tokens", "8192", "--card", "h200"];
    let report = object(&[&args[..], &whole, &["--json"]].concat());
    let model = &report["model"];
    assert_eq!(
        (&model["tokens"], &model["chunk"]),
        (&8192.into(), &8192.into())
    );
    let part = |phase: &str, name: &str| {
        let parts = model[phase]["parts"].as_array().expect("parts").iter();
        let found = parts.clone().find(|part| part["part"] == name);
        found.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    // 24 layers with linear and 8 with softmax attention: what goes in, what comes out; three matrices of
    // each feed-forward layer.
    let elements =
        4096.0 * (24.0 * (12352.0 + 4096.0) + 8.0 * (10240.0 + 4096.0) + 32.0 * 3.0 * 12288.0);
    let projections = part("prefill", "projections");
    assert_eq!(projections["flop"].as_f64(), Some(2.0 * 8192.0 * elements));
    assert_eq!(projections["kernels"], 32 * 4);
    let decoded = part("decode", "projections")["bytes"]
        .as_f64()
        .expect("bytes");
    assert!(
        (2.0 * elements..2.01 * elements).contains(&decoded),
        "{decoded}"
    );
    // Those of softmax attention; the gates of feed-forward layers are in their products.
    assert_eq!(part("decode", "gates")["kernels"], 8);
    assert_eq!(part("decode", "projections")["kernels"], 32 * 4);
    for phase in ["prefill", "decode"] {
        let sum = |field: &str| {
            let parts = model[phase]["parts"].as_array().expect("parts").iter();
            parts.filter_map(|part| part[field].as_f64()).sum::<f64>()
        };
        let all = model[phase]["predicted_ms"].as_f64().expect("a time");
        assert!((sum("predicted_ms") / all - 1.0).abs() < 1e-9);
        assert!(sum("roofline_ms") < all);
    }
    // A prompt in chunks has the same products, but more logits.
    let chunks = object(&[&args[..], &whole, &["--json", "--chunk", "2048"]].concat());
    let of = |report: &serde_json::Value, name: &str| {
        let parts = report["model"]["prefill"]["parts"]
            .as_array()
            .expect("parts");
        let found = parts.iter().find(|part| part["part"] == name);
        found.and_then(|part| part["flop"].as_f64()).expect("FLOP")
    };
    for (name, times) in [
        ("projections", 1.0),
        ("attention", 1.0),
        ("output projection", 4.0),
    ] {
        assert_eq!(of(&chunks, name), times * of(&report, name), "{name}");
    }
    let text = butterfly(&[&args[..], &whole].concat());
    let text = String::from_utf8(text.stdout).expect("utf-8");
    let line = |start: &str| {
        let found = text
            .lines()
            .find(|line| line.trim_start().starts_with(start));
        found
            .unwrap_or_else(|| panic!("{start}:\n{text}"))
            .to_string()
    };
    assert!(line("the whole model in bf16, on NVIDIA H200").contains("989 TFLOP/s"));
    assert!(line("output projection").contains("2.034"), "{text}");
    // All parts of this model were measured.
    assert!(!text.contains(">= "), "{text}");
    let none = object(&[&args[..], &["--json"]].concat());
    assert!(none.get("model").is_none());
}

/// Decode is bound by memory, whose bandwidth differs between cards.
#[test]
fn explain_predicts_for_a_card() {
    let on = |more: &[&str]| {
        let args = [
            "explain",
            CONFIG,
            "--json",
            "--pattern",
            PATTERN,
            "--phase",
            "decode",
            "--batch",
            "32",
            "--target",
            "cuda:sm_90a",
        ];
        let report = object(&[&args[..], more].concat());
        let target = &report["targets"][0];
        let name = target["machine"]["name"].as_str().expect("a name");
        let ms = target["predicted_ms"].as_f64().expect("a time");
        (name.to_string(), ms)
    };
    let (h100, h200) = (on(&["--card", "h100"]), on(&["--card", "h200"]));
    assert_eq!(
        (h100.0.as_str(), h200.0.as_str()),
        ("NVIDIA H100", "NVIDIA H200")
    );
    assert!(h200.1 < 0.9 * h100.1, "{h100:?} {h200:?}");
    assert_eq!(on(&[]), h100);
    let wrong = ["explain", CONFIG, "--pattern", PATTERN, "--card", "b200"];
    let wrong = butterfly(&wrong);
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains("h100, h200") && said.contains("--tflops"),
        "{said}"
    );
}

#[test]
fn compile_prints_stages_and_times() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("artifacts");
    let dir = dir.to_str().expect("utf-8");
    let compile = [
        "compile",
        CONFIG,
        "--pattern",
        PATTERN,
        "--target",
        "cpu,webgpu",
        "-o",
        dir,
    ];
    let more = ["--json", "--emit", "graph,plan,wgsl,topology"];
    let report = object(&[&compile[..], &more[..]].concat());
    let made = &report["artifacts"][0];
    let emitted = |stage: &str| made["emitted"][stage].as_str().expect("text");
    assert!(emitted("graph").contains("fused:") && emitted("wgsl").contains("@compute"));
    let plan: serde_json::Value = serde_json::from_str(emitted("plan")).expect("JSON");
    assert_eq!(plan["kernels"].as_array().map(Vec::len), Some(8));
    assert_eq!(emitted("topology").lines().count(), 256);
    let passes = made["passes"].as_array().expect("passes");
    let names: Vec<_> = passes.iter().filter_map(|pass| pass[0].as_str()).collect();
    assert!(names.contains(&"verify"), "{names:?}");
    assert_eq!(
        (names.first(), names.last()),
        (Some(&"swap"), Some(&"pack"))
    );
    // The manifest holds the proof.
    let manifest = object(&["inspect", "--json", dir]);
    assert_eq!(
        manifest["proof"]["coverage"].as_array().map(Vec::len),
        Some(8)
    );
    assert_eq!(manifest["capacity"], 32768);
}

#[test]
fn bench_runs_a_folder_and_compares_with_the_reference() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("artifacts");
    let dir = dir.to_str().expect("utf-8");
    let compile = [
        "compile",
        CONFIG,
        "--pattern",
        PATTERN,
        "--target",
        "cpu,vulkan",
        "-o",
        dir,
    ];
    object(&[&compile[..], &["--json"]].concat());
    for (device, dtype) in [("cpu", "bf16"), ("vulkan", "f16")] {
        let bench = [
            "bench",
            "attention",
            "--json",
            "--check",
            "--artifacts",
            dir,
            "--device",
            device,
        ];
        let shape = [
            "--pattern",
            PATTERN,
            "--seq-len",
            "300",
            "--kv-heads",
            "1",
            "--repeats",
            "1",
        ];
        let report = object(&[&bench[..], &shape[..]].concat());
        assert_eq!(
            (&report["device"], &report["dtype"]),
            (&device.into(), &dtype.into())
        );
        assert_eq!(report["rows"][0]["within_tolerance"], true, "{report}");
        assert!(report["rows"][0]["error"].as_f64().expect("number") > 0.0);
    }
    let other = [
        "--pattern",
        "causal & all",
        "--artifacts",
        dir,
        "--device",
        "cpu",
    ];
    let refused = butterfly(&[&["bench", "attention"][..], &other[..]].concat());
    assert_eq!(refused.status.code(), Some(2));
}
