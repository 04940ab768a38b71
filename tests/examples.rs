//! Runs the examples, and checks what they print.

use butterfly_tests::fixture;
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn stack() {
    assert!(run(env!("CARGO_BIN_EXE_stack"), &[]).contains("after"));
}

#[test]
fn swap() {
    assert!(run(env!("CARGO_BIN_EXE_swap"), &[]).contains("from Burn's own"));
}

#[test]
fn aot() {
    let shown = run(env!("CARGO_BIN_EXE_aot"), &[]);
    assert!(
        shown.contains("[1, 32, 2048, 128] by native prefill"),
        "{shown}"
    );
}

#[test]
fn generate() {
    let folder = tempfile::tempdir().expect("folder");
    for file in ["config.json", "model.safetensors"] {
        let from = fixture("models").join("qwen3").join(file);
        std::fs::copy(from, folder.path().join(file)).expect("copied");
    }
    let tokenizer = fixture("tokenizer").join("tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).expect("copied");
    let dir = folder.path().to_str().expect("utf-8");
    let once = run(env!("CARGO_BIN_EXE_generate"), &[dir, "A block of tokens"]);
    assert!(once.len() > 16, "{once}");
    assert_eq!(
        once,
        run(env!("CARGO_BIN_EXE_generate"), &[dir, "A block of tokens"])
    );
}
