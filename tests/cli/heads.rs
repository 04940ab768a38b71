//! Patterns that differ by layer and kv head, and the tail of a prompt, through the commands.

use butterfly_tests::{close, fixture, floats};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Four layers of two kv heads: one layer stays dense, and one head of the others.
const PATTERN: &str = "block 16 causal & (tail(20) | per_layer { 1 => all; else => per_head { 0 => all; else => local(0) | sink(1) } })";

fn butterfly(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command
        .args(args)
        .env_remove("VIRTUAL_ENV")
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

fn llama() -> PathBuf {
    fixture("models").join("llama")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

fn logits(more: &[&str]) -> Vec<f32> {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("logits.safetensors");
    let (dir, inputs) = (llama(), llama().join("expected.safetensors"));
    let args = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
    good(&[&args[..], &["--output", text(&output)], more].concat());
    floats(&output, "logits")
}

/// Artifacts have the kernels of every variant, and give what kernels made at first use give, at any
/// length of chunk.
#[test]
fn artifacts_hold_the_kernels_of_every_variant() {
    let folder = tempfile::tempdir().expect("folder");
    let artifacts = folder.path().join("artifacts");
    let config = llama().join("config.json");
    let compile = ["compile", text(&config), "--pattern", PATTERN];
    let made_for = ["--target", "vulkan,cpu", "--dtype", "f32"];
    good(&[&compile[..], &made_for, &["-o", text(&artifacts)]].concat());
    let manifest = std::fs::read(artifacts.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("json");
    assert_eq!(manifest["variants"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        manifest["kernels"].as_array().map(Vec::len),
        Some(2 * 2 * 2)
    );

    let whole = logits(&["--device", "cpu", "--pattern", PATTERN]);
    let dense = logits(&["--device", "cpu"]);
    let vocabulary = 256;
    // The tail of 101 tokens begins in block 5, at token 80; the first two blocks are all seen.
    let differs = |token: usize| {
        let row = token * vocabulary..(token + 1) * vocabulary;
        let pairs = whole[row.clone()].iter().zip(&dense[row]);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(
        differs(31) < 1e-4 && differs(40) > 1e-3,
        "{} {}",
        differs(31),
        differs(40)
    );
    for device in ["cpu", "vulkan"] {
        for more in [["--artifacts", text(&artifacts)], ["--pattern", PATTERN]] {
            for chunk in ["16", "33"] {
                let flags = ["--device", device, "--chunk", chunk];
                let got = logits(&[&flags[..], &more].concat());
                close(&got, &whole, 2e-4, 0.0).expect("logits");
            }
        }
    }
    // Layers that no variant of the folder is for.
    let (dir, inputs) = (llama(), llama().join("expected.safetensors"));
    let output = folder.path().join("none.safetensors");
    let run = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
    let other = "block 16 causal & per_layer { 1 => all; else => local(1) }";
    let more = ["--output", text(&output), "--artifacts", text(&artifacts)];
    refuses(
        &[&run[..], &more, &["--pattern", other]].concat(),
        &["was compiled for the pattern"],
    );
}

#[test]
fn heads_of_one_call_equal_heads_of_their_own() {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("o.safetensors");
    let inputs = fixture("attention").join("dense_causal.safetensors");
    let attend = |pattern: &str, more: &[&str]| {
        let args = [
            "attend",
            "--inputs",
            text(&inputs),
            "--output",
            text(&output),
        ];
        let report = good(&[&args[..], &["--pattern", pattern], more].concat());
        (report, floats(&output, "o"))
    };
    let [near, far] = ["causal & local(0)", "causal & (local(0) | sink(1))"];
    let both = format!("block 16 per_head {{ 0 => {far}; else => {near} }}");
    for device in ["cpu", "vulkan"] {
        let more = ["--device", device];
        let (report, mixed) = attend(&both, &more);
        let (first, of_first) = attend(&format!("block 16 {far}"), &more);
        let (_, of_rest) = attend(&format!("block 16 {near}"), &more);
        let [batch, q_heads, kv_heads] = ["batch", "q_heads", "kv_heads"]
            .map(|key| first[key].as_u64().expect("a number") as usize);
        assert!(kv_heads > 1);
        let head = mixed.len() / (batch * q_heads);
        for (i, got) in mixed.chunks(head).enumerate() {
            let kv_head = i % q_heads / (q_heads / kv_heads);
            let want = if kv_head == 0 { &of_first } else { &of_rest };
            close(got, &want[i * head..(i + 1) * head], 1e-5, 0.0).expect("o");
        }
        let pairs = |report: &Value| report["visible_pairs"].as_u64().expect("a number");
        assert!(pairs(&report) < pairs(&first));
    }
}

#[test]
fn the_layer_and_the_head_have_to_be_named() {
    let topology = ["topology", "--pattern", PATTERN, "--seq-len", "101"];
    refuses(&topology, &["--kv-head H"]);
    refuses(
        &[&topology[..], &["--kv-head", "1"]].concat(),
        &["--layer I"],
    );
    let rows = |head, layer| {
        let which = ["--kv-head", head, "--layer", layer, "--layers", "4"];
        good(&[&topology[..], &which].concat())["rows"].clone()
    };
    assert_eq!(rows("1", "0")[4], json!([0, 4]));
    assert_eq!(rows("1", "0")[5], json!([0, 1, 2, 3, 4, 5]));
    assert_eq!(rows("0", "0")[4], json!([0, 1, 2, 3, 4]));
    assert_eq!(rows("1", "1"), rows("0", "0"));
    let proof = good(&[
        "prove",
        "--pattern",
        PATTERN,
        "--seq-len",
        "4096",
        "--layers",
        "4",
    ]);
    assert_eq!(
        (&proof["full_at"], &proof["causal"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(proof["max_degree"], 256);
    let config = llama().join("config.json");
    let explain = [
        "explain",
        text(&config),
        "--pattern",
        PATTERN,
        "--seq-len",
        "512",
    ];
    let explained = good(&[&explain[..], &["--target", "cpu,cuda:sm_90a"]].concat());
    let heads = explained["heads"].as_array().expect("two kinds of heads");
    assert_eq!((heads.len(), &heads[1]["heads"]), (2, &json!([1])));
    // Half of the heads are dense: the mean lies between both kinds.
    let degree = |of: &Value| of["mean_degree"].as_f64().expect("a number");
    let mean = (degree(&heads[0]) + degree(&heads[1])) / 2.0;
    assert!((degree(&explained) - mean).abs() < 0.02, "{explained}");
}

#[test]
fn what_the_model_does_not_have_is_named() {
    let config = llama().join("config.json");
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("artifacts");
    let compile = |pattern| {
        [
            "compile",
            text(&config),
            "--pattern",
            pattern,
            "-o",
            text(&dir),
        ]
        .map(String::from)
    };
    let refused = |pattern, parts: &[&str]| {
        let args = compile(pattern);
        refuses(&args.each_ref().map(|arg| &arg[..]), parts);
        assert!(!dir.exists());
    };
    refused(
        "causal & per_head { 2 => local(1); else => all }",
        &["config.json", "kv head 2", "has 2"],
    );
    refused(
        "causal & per_layer { 3..5 => local(1); else => all }",
        &["config.json", "layer 4", "has 4"],
    );
    // The leaf because of which one head of one layer sees nothing, and an index in no case.
    let empty = "causal & per_layer { 2 => per_head { 1 => sink(0); else => all }; else => all }";
    refused(empty, &["sink(0)", "admits no block"]);
    refused(
        "causal & per_head { 0 => all }",
        &["attends to no key", "in no case"],
    );
    let (model, inputs) = (llama(), llama().join("expected.safetensors"));
    let output = folder.path().join("logits.safetensors");
    let run = ["logits", "--model", text(&model), "--inputs", text(&inputs)];
    let more = [
        "--output",
        text(&output),
        "--pattern",
        "causal & per_head { 5 => local(1); else => all }",
    ];
    refuses(&[&run[..], &more].concat(), &["kv head 5", "has 2"]);
    let qkv = fixture("attention").join("dense_causal.safetensors");
    let attend = ["attend", "--inputs", text(&qkv), "--output", text(&output)];
    let more = [
        "--pattern",
        "causal & per_head { 77 => local(1); else => all }",
    ];
    refuses(&[&attend[..], &more].concat(), &["kv head 77"]);
    let more = ["--pattern", "causal & (tail(77) | local(1))"];
    refuses(
        &[&attend[..], &more].concat(),
        &["tail(77)", "all 77 tokens", "shorter tail"],
    );
    let more = [
        "--output",
        text(&output),
        "--pattern",
        "causal & (tail(101) | local(1))",
    ];
    refuses(
        &[&run[..], &more].concat(),
        &["tail(101)", "all 101 tokens"],
    );
    let by_layer = "causal & per_layer { 1 => local(1); else => all }";
    refuses(
        &[&attend[..], &["--pattern", by_layer]].concat(),
        &["--layer I"],
    );
    let bench = [
        "bench",
        "attention",
        "--device",
        "cpu",
        "--pattern",
        by_layer,
    ];
    refuses(&bench, &["differs by layer", "bench model"]);
}
