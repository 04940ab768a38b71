//! A model with a byte tokenizer, and `butterfly generate` with it.

#![allow(dead_code, reason = "not every test generates")]

use butterfly_tests::fixture;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn butterfly(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command.env_remove("RUST_BACKTRACE").args(args);
    command.output().expect("runs")
}

/// A copy of a model folder with a byte tokenizer, to be changed by a test.
pub(crate) fn folder() -> tempfile::TempDir {
    folder_of("llama")
}

/// The same of any model of the fixtures: each has a token for every byte.
pub(crate) fn folder_of(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for from in [
        format!("models/{model}/config.json"),
        format!("models/{model}/model.safetensors"),
        "tokenizer/tokenizer.json".into(),
        "tokenizer/tokenizer_config.json".into(),
    ] {
        let from = fixture(&from);
        let name = from.file_name().expect("a name");
        // Not `fs::copy`: the original may be read-only.
        let bytes = fs::read(&from).expect("a fixture");
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    folder
}

pub(crate) fn generate(dir: &Path, more: &[&str]) -> Output {
    let dir = dir.to_str().expect("utf-8");
    let args = ["generate", "--model", dir, "--device", "cpu"];
    butterfly(&[&args[..], more].concat())
}

pub(crate) fn report(dir: &Path, more: &[&str]) -> Value {
    let output = generate(dir, &[more, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{more:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The message of a command that is refused: one line on stderr, one object on stdout, and exit
/// code 2.
pub(crate) fn refused(dir: &Path, more: &[&str]) -> String {
    let output = generate(dir, &[more, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{more:?}: {error}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let said = object["error"].as_str().expect("an error").to_string();
    assert_eq!(error.trim_end(), format!("error: {said}"));
    said
}
