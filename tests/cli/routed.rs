//! Patterns whose rows choose blocks by content, through the commands.

use butterfly_tests::{close, fixture, floats};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// One of the two kv heads of most layers chooses, after the tail all is dense.
const PATTERN: &str = "block 16 causal & (tail(20) | per_layer { 1 => all; else => per_head { 0 => all; else => local(0) | sink(1) | routed(1, pool=4, every=4) } })";
/// The same without a choice.
const FIXED: &str = "block 16 causal & (tail(20) | per_layer { 1 => all; else => per_head { 0 => all; else => local(0) | sink(1) } })";

fn butterfly(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    let command = command.args(args).env_remove("VIRTUAL_ENV");
    command
        .env_remove("BUTTERFLY_NVRTC")
        .output()
        .expect("runs")
}

fn good(args: &[&str]) -> Value {
    let output = butterfly(&[args, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Checks that a command is refused, by an error with these parts.
fn refuses(args: &[&str], parts: &[&str]) {
    let output = butterfly(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{args:?}: {error}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

fn llama() -> PathBuf {
    fixture("models").join("llama")
}

fn logits(more: &[&str]) -> Vec<f32> {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("logits.safetensors");
    let (dir, inputs) = (llama(), llama().join("expected.safetensors"));
    let args = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
    good(&[&args[..], &["--output", text(&output)], more].concat());
    floats(&output, "logits")
}

/// From artifacts and without, in chunks of whole blocks, on both kinds of devices: the same logits, which
/// are not those of the pattern without its choice.
#[test]
fn a_model_chooses_the_same_however_it_runs() {
    let folder = tempfile::tempdir().expect("folder");
    let artifacts = folder.path().join("artifacts");
    let config = llama().join("config.json");
    let compile = ["compile", text(&config), "--pattern", PATTERN];
    let made_for = ["--target", "vulkan,cpu", "--dtype", "f32"];
    good(&[&compile[..], &made_for, &["-o", text(&artifacts)]].concat());
    let whole = logits(&["--device", "cpu", "--pattern", PATTERN]);
    let fixed = logits(&["--device", "cpu", "--pattern", FIXED]);
    let off = whole.iter().zip(&fixed).map(|(a, b)| (a - b).abs());
    assert!(off.fold(0.0, f32::max) > 1e-3);
    for device in ["cpu", "vulkan"] {
        for more in [["--artifacts", text(&artifacts)], ["--pattern", PATTERN]] {
            for chunk in ["16", "48"] {
                let flags = ["--device", device, "--chunk", chunk];
                let got = logits(&[&flags[..], &more].concat());
                close(&got, &whole, 2e-4, 0.0).expect("logits");
            }
        }
    }
    let generated = good(&[
        "generate",
        "-m",
        text(&llama()),
        "--tokens",
        "1,2,3,4,5,6,7,8,9",
        "-n",
        "40",
        "--device",
        "cpu",
        "--pattern",
        "block 16 causal & (local(0) | routed(1, pool=8))",
    ]);
    assert_eq!(
        generated["tokens"].as_array().map(Vec::len),
        Some(40),
        "{generated}"
    );
}

/// Folders for Hopper hold the kernels that score blocks: both passes for each head size and type, which are
/// listed, made again with the same bytes, and kept when others are added.
#[test]
fn artifacts_hold_scorers() {
    let folder = tempfile::tempdir().expect("folder");
    let artifacts = folder.path().join("artifacts");
    let config = fixture("configs").join("qwen3-8b.json");
    let compile = |pattern: &str, more: &[&str]| {
        let args = [
            "compile",
            text(&config),
            "--pattern",
            pattern,
            "-o",
            text(&artifacts),
        ];
        let target = ["--target", "cuda:sm_90a"];
        good(&[&args[..], &target, more].concat());
        let manifest = good(&["inspect", text(&artifacts)]);
        let scorers = manifest["scorers"].as_array().cloned().unwrap_or_default();
        let of = |entry: &Value| {
            let scorer = &entry["scorer"];
            format!(
                "{} {} d{} g{} e{}",
                scorer["pass"],
                scorer["dtype"],
                scorer["head_dim"],
                scorer["group"],
                scorer["every"]
            )
        };
        scorers.iter().map(of).collect::<Vec<_>>()
    };
    let chosen = "block 64 causal & (local(1) | routed(4, pool=16, every=8))";
    let bf16 = [
        r#""weigh" "bf16" d128 g4 e8"#,
        r#""score" "bf16" d128 g4 e8"#,
    ];
    let sorted = |mut names: Vec<String>| {
        names.sort_unstable();
        names
    };
    let both = |kinds: &[&str]| sorted(kinds.iter().map(ToString::to_string).collect());
    assert_eq!(sorted(compile(chosen, &["--dtype", "bf16"])), both(&bf16));
    let report = good(&["verify", text(&artifacts)]);
    assert_eq!(
        report["different"].as_array().map(Vec::len),
        Some(0),
        "{report}"
    );
    let f16 = [r#""weigh" "f16" d128 g4 e8"#, r#""score" "f16" d128 g4 e8"#];
    let all = both(&[bf16, f16].concat());
    assert_eq!(sorted(compile(chosen, &["--dtype", "f16", "--add"])), all);
    let listed = String::from_utf8(butterfly(&["inspect", text(&artifacts)]).stdout);
    assert!(listed.expect("utf-8").contains("butterfly_score"));
    let none: [&str; 0] = [];
    assert_eq!(compile("causal & local(1)", &["--dtype", "bf16"]), none);
}

/// With as many blocks as there are, a query sees all that dense attention sees.
#[test]
fn who_may_choose_all_blocks_sees_all() {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("o.safetensors");
    let inputs = fixture("attention").join("dense_causal.safetensors");
    let attend = |device: &str, pattern: &str| {
        let args = [
            "attend",
            "--inputs",
            text(&inputs),
            "--output",
            text(&output),
        ];
        good(&[&args[..], &["--device", device, "--pattern", pattern]].concat());
        floats(&output, "o")
    };
    let dense = attend("cpu", "causal & all");
    for device in ["cpu", "vulkan"] {
        let all = attend(device, "block 32 causal & (local(0) | routed(64, pool=8))");
        close(&all, &dense, 2e-5, 0.0).expect("dense attention");
        let some = attend(device, "block 32 causal & (local(0) | routed(1, pool=8))");
        assert!(close(&some, &dense, 2e-5, 0.0).is_err());
    }
}

#[test]
fn what_is_not_known_beforehand_is_bounded() {
    let pattern = "block 64 causal & (local(1) | sink(1) | routed(4))";
    let length = ["--seq-len", "8192"];
    let proof = good(
        &[
            &["prove", "--pattern", pattern, "--layers", "3"],
            &length[..],
        ]
        .concat(),
    );
    assert_eq!(proof["max_degree"], 7);
    assert_eq!(proof["max_in_degree"], 128);
    let coverage = |name: &str| proof[name][2].as_f64().expect("a share");
    assert!(coverage("coverage") < 0.2, "{proof}");
    assert_eq!(coverage("coverage_at_most"), 1.0);
    let said = butterfly(
        &[
            &["prove", "--pattern", pattern, "--layers", "3"],
            &length[..],
        ]
        .concat(),
    );
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("holds for any choice"), "{said}");

    let config = fixture("configs").join("qwen3-8b.json");
    let explain = [
        "explain",
        text(&config),
        "--pattern",
        pattern,
        "--target",
        "cpu",
    ];
    let report = good(&[&explain[..], &length].concat());
    // Rows 3 to 6 choose 1 to 4 blocks, all others 4, beside the 3 that all see from the third row on.
    let blocks = 1 + 2 + 3 + 3 * 125 + (1 + 2 + 3 + 4 * 122);
    assert_eq!(report["work"]["blocks"], blocks);
    assert_eq!(report["routing"]["blocks"], 4);
    // Rows 7 to 127 have more than 4 blocks to choose from: 64 queries, 4 means a block, 32 q heads of 128.
    let products: u64 = (7..128).map(|row| 64 * 4 * row).sum();
    assert_eq!(report["routing"]["score_flop"], products * 32 * 128 * 4);

    let listed = butterfly(&[&["topology", "--pattern", pattern], &length[..]].concat());
    assert!(listed.status.success());
    let note = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(note.contains("up to 4 more blocks by content"), "{note}");
}

#[test]
fn bad_choices_are_errors() {
    let seq = ["--seq-len", "256"];
    let topology = |pattern: &str, parts: &[&str]| {
        refuses(
            &[&["topology", "--pattern", pattern], &seq[..]].concat(),
            parts,
        );
    };
    topology(
        "causal & (local(1) | routed(0))",
        &["at least 1", "routed(0)"],
    );
    topology("causal & (local(1) | routed(2, pool=0))", &["at least 1"]);
    topology(
        "block 64 causal & (local(1) | routed(2, pool=48))",
        &["`pool` must divide the block of 64"],
    );
    topology("causal & (local(1) - routed(2))", &["joined by `|`"]);
    topology(
        "causal & (local(1) | routed(2) | routed(1))",
        &["one `routed`"],
    );
    let choosing = "block 16 causal & (local(0) | routed(1))";
    let inputs = llama().join("expected.safetensors");
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("logits.safetensors");
    let run = [
        "logits",
        "--model",
        text(&llama()),
        "--inputs",
        text(&inputs),
        "--output",
        text(&output),
    ]
    .map(str::to_owned);
    let run: Vec<&str> = run.iter().map(String::as_str).collect();
    let flags = ["--device", "cpu", "--pattern", choosing, "--chunk", "24"];
    refuses(
        &[&run[..], &flags].concat(),
        &["chunks of 24 tokens cut blocks of 16", "--chunk 32"],
    );
    assert!(!output.exists());
    refuses(
        &[
            "bench",
            "attention",
            "--pattern",
            choosing,
            "--device",
            "cpu",
        ],
        &["chooses blocks by content", "bench model"],
    );
}
