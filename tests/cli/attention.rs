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

#[test]
fn every_case_is_within_tolerance_on_the_cpu() {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("o.safetensors");
    for case in cases() {
        let report = attend(&case, &output, &[]);
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&case).expect("case")).expect("json");
        assert_eq!(report["stage"], meta["stage"], "{}", case.display());
        for name in ["o", "lse"] {
            let got = floats(&output, name);
            let want = floats(&case.with_extension("safetensors"), name);
            close(&got, &want, 2e-5, 1e-5)
                .unwrap_or_else(|error| panic!("{} {name}: {error}", case.display()));
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let (one, three) = (folder.path().join("1"), folder.path().join("3"));
    for case in cases().iter().take(4) {
        attend(case, &one, &["--threads", "1"]);
        attend(case, &three, &["--threads", "3"]);
        assert_eq!(
            std::fs::read(&one).expect("one"),
            std::fs::read(&three).expect("three")
        );
    }
}
