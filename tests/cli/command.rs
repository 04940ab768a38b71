//! The command as tests run it, and the models of the fixtures.

#![allow(dead_code, reason = "not every test needs all of it")]

use butterfly_tests::fixture;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) fn butterfly(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command.args(args).output().expect("runs")
}

pub(crate) fn good(args: &[&str]) -> Value {
    let output = butterfly(&[args, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The messages of a command that is refused: it must exit with 2.
pub(crate) fn bad(args: &[&str]) -> String {
    let output = butterfly(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    error
}

pub(crate) fn model(name: &str) -> PathBuf {
    fixture("models").join(name)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}
