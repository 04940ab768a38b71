//! `butterfly attend` on tensors computed by other software.

use butterfly_tests::{close, fixture, floats};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every case below `tests/fixtures/attention`, by the path of its JSON.
fn cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("attention")).expect("fixtures");
    let paths = entries.map(|entry| entry.expect("entry").path());
    let mut cases: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    cases.sort();
    assert_eq!(cases.len(), 13, "fixtures are missing");
    cases
}

fn attend(case: &Path, output: &Path, more: &[&str]) -> serde_json::Value {
    let run = Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .args(["attend", "--json", "--check", "--pattern"])
        .arg(case)
        .arg("--inputs")
        .arg(case.with_extension("safetensors"))
        .arg("--output")
        .arg(output)
        .args(more)
        .output()
        .expect("runs");
    assert!(
        run.status.success(),
        "{}: {}",
        case.display(),
        String::from_utf8_lossy(&run.stderr)
    );
    serde_json::from_slice(&run.stdout).expect("one JSON object")
}

/// Runs every case on `device` and compares o and lse; `artifacts` makes the folder to
/// take the kernels from, if any.
fn within_tolerance(device: &str, artifacts: Option<fn(&Path, &Path)>) {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("o.safetensors");
    let kernels = folder.path().join("artifacts");
    for case in cases() {
        let mut more = vec!["--device", device];
        if let Some(make) = artifacts {
            make(&case, &kernels);
            more.extend(["--artifacts", kernels.to_str().expect("utf-8")]);
        }
        let report = attend(&case, &output, &more);
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&case).expect("case")).expect("json");
        assert_eq!(report["stage"], meta["stage"], "{}", case.display());
        assert_eq!(report["device"], device);
        assert_eq!(
            report["kernel"].is_string(),
            artifacts.is_some() || device != "cpu"
        );
        for name in ["o", "lse"] {
            let got = floats(&output, name);
            let want = floats(&case.with_extension("safetensors"), name);
            close(&got, &want, 2e-5, 1e-5)
                .unwrap_or_else(|error| panic!("{} {name}: {error}", case.display()));
        }
    }
}

/// Compiles artifacts for a one-layer model of the shapes of `case`.
fn compile(case: &Path, kernels: &Path) {
    let meta: serde_json::Value =
        serde_json::from_slice(&std::fs::read(case).expect("case")).expect("json");
    let config = kernels.with_extension("json");
    let model = serde_json::json!({
        "model_type": "llama", "dtype": "float32", "num_hidden_layers": 1, "max_position_embeddings": 4096,
        "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "num_attention_heads": meta["q_heads"], "num_key_value_heads": meta["kv_heads"],
        "head_dim": meta["head_dim"],
    });
    std::fs::write(&config, model.to_string()).expect("config");
    // The fixture may name layers that a model of one layer does not have.
    let mut pattern = meta.clone();
    pattern
        .as_object_mut()
        .expect("object")
        .remove("swapped_layers");
    let path = kernels.with_extension("pattern.json");
    std::fs::write(&path, pattern.to_string()).expect("pattern");
    let run = Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .arg("compile")
        .arg(&config)
        .arg("--pattern")
        .arg(&path)
        .args(["--target", "vulkan,webgpu,cpu", "-o"])
        .arg(kernels)
        .output()
        .expect("runs");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[test]
fn cpu() {
    within_tolerance("cpu", None);
    within_tolerance("cpu", Some(compile));
}

#[test]
fn vulkan() {
    within_tolerance("vulkan", None);
    within_tolerance("vulkan", Some(compile));
}

#[test]
fn webgpu() {
    within_tolerance("webgpu", None);
    within_tolerance("webgpu", Some(compile));
}

#[test]
fn threads_do_not_change_a_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let (one, three) = (folder.path().join("1"), folder.path().join("3"));
    for case in cases().iter().take(4) {
        attend(case, &one, &["--device", "cpu", "--threads", "1"]);
        attend(case, &three, &["--device", "cpu", "--threads", "3"]);
        assert_eq!(
            std::fs::read(&one).expect("one"),
            std::fs::read(&three).expect("three")
        );
    }
}
