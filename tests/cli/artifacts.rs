//! Artifact folders: damaged ones are refused, and `compile` never leaves one half-written.

use butterfly_tests::fixture;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PATTERN: &str = "causal & (local(1) | partner(causal_shift) | sink(1))";

fn compile(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command
        .arg("compile")
        .arg(fixture("configs/gpt2.json"))
        .args(["--pattern", PATTERN, "--target", "metal,cpu", "-o"])
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn made(dir: &Path) {
    let run = compile(dir).output().expect("runs");
    assert!(run.status.success(), "{}", said(&run));
}

fn said(run: &Output) -> String {
    String::from_utf8_lossy(&run.stderr).into_owned()
}

fn on(command: &str, dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .arg(command)
        .arg(dir)
        .output()
        .expect("runs")
}

fn refused(dir: &Path, parts: &[&str]) {
    for command in ["inspect", "verify"] {
        let run = on(command, dir);
        assert_eq!(run.status.code(), Some(2), "{command}: {}", said(&run));
        for part in parts {
            assert!(said(&run).contains(part), "{part}: {}", said(&run));
        }
    }
}

fn whole(dir: &Path) {
    let run = on("verify", dir);
    assert!(run.status.success(), "{}", said(&run));
}

fn litter(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root).expect("folder");
    let names = entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(".tmp-")).collect()
}

#[test]
fn damaged_folders() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    made(&dir);
    whole(&dir);
    let manifest = dir.join("manifest.json");
    let good = std::fs::read_to_string(&manifest).expect("manifest");
    let with = |text: &str| std::fs::write(&manifest, text).expect("written");

    with(&good.replacen("\"layer\": 3", "\"layer\": 4", 1));
    refused(&dir, &["manifest.json", "digest", "compile"]);
    let schema = butterfly_ir::manifest::SCHEMA;
    with(&good.replacen(&format!("\"schema\": {schema}"), "\"schema\": 99", 1));
    refused(
        &dir,
        &["manifest.json", "99", &schema.to_string(), "compile"],
    );
    with(&good[..good.len() / 2]);
    refused(&dir, &["manifest.json"]);
    with(&good);
    whole(&dir);

    let kernels = std::fs::read_dir(dir.join("kernels")).expect("kernels");
    let kernel = kernels
        .map(|e| e.expect("entry").path())
        .min()
        .expect("a kernel");
    let name = kernel
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    let mut bytes = std::fs::read(&kernel).expect("kernel");
    bytes[10] ^= 1;
    std::fs::write(&kernel, &bytes).expect("written");
    refused(&dir, &[&name]);
    std::fs::remove_file(&kernel).expect("removed");
    refused(&dir, &[&name]);
    // Compiling again repairs it.
    made(&dir);
    whole(&dir);
    refused(&root.path().join("none"), &["none", "manifest.json"]);
}

#[test]
fn folders_that_cannot_be_written() {
    // Not even root can create folders in /proc.
    let run = compile(Path::new("/proc/butterfly/artifacts"))
        .output()
        .expect("runs");
    assert_eq!(run.status.code(), Some(2), "{}", said(&run));
    assert!(
        said(&run).contains("/proc/butterfly: cannot create the folder"),
        "{}",
        said(&run)
    );
}

#[test]
fn a_full_disk() {
    let root = tempfile::tempdir().expect("root");
    let here = root.path().display();
    let inner = format!(
        "exec '{}' compile '{}' --pattern '{PATTERN}' --target metal,cpu -o",
        env!("CARGO_BIN_EXE_butterfly"),
        fixture("configs/gpt2.json").display()
    );
    // A full disk: a file system of 16 kB in a mount namespace of its own or, where that is not
    // permitted, a limit on file sizes.
    let mounted = format!(
        "mount -t tmpfs -o size=16k tmpfs '{here}' && {{ ({inner} '{here}/artifacts'); code=$?; ls -A '{here}'; exit $code; }}"
    );
    let run = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &mounted])
        .output();
    let run = match run {
        Ok(run) if run.status.code() == Some(2) && said(&run).contains("artifacts") => run,
        _ => {
            let limited = format!("trap '' XFSZ; ulimit -f 8; {inner} '{here}/artifacts'");
            let run = Command::new("sh").args(["-c", &limited]).output();
            run.expect("sh")
        }
    };
    assert_eq!(run.status.code(), Some(2), "{}", said(&run));
    assert!(
        said(&run).contains("free space, or choose another folder"),
        "{}",
        said(&run)
    );
    let left = String::from_utf8_lossy(&run.stdout);
    assert!(!left.contains("artifacts"), "{left}");
    assert!(!root.path().join("artifacts").exists() && litter(root.path()).is_empty());
}

#[test]
fn two_compilers_leave_one_whole_folder() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    for _ in 0..3 {
        let both = [(); 2].map(|()| compile(&dir).spawn().expect("started"));
        let mut succeeded = 0;
        for child in both {
            let run = child.wait_with_output().expect("ended");
            match run.status.code() {
                Some(0) => succeeded += 1,
                code => {
                    assert_eq!(code, Some(2), "{}", said(&run));
                    assert!(said(&run).contains("another"), "{}", said(&run));
                }
            }
        }
        assert!(succeeded >= 1);
        whole(&dir);
        assert!(litter(root.path()).is_empty());
    }
}

#[test]
fn a_killed_compiler_leaves_the_old_folder() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    made(&dir);
    let before = std::fs::read(dir.join("manifest.json")).expect("manifest");
    let mut interrupted = 0;
    for _ in 0..60 {
        let mut child = compile(&dir).spawn().expect("started");
        while litter(root.path()).is_empty() && child.try_wait().expect("state").is_none() {}
        child.kill().expect("killed");
        child.wait().expect("ended");
        interrupted += usize::from(!litter(root.path()).is_empty());
        whole(&dir);
        if interrupted >= 2 {
            break;
        }
    }
    assert!(
        interrupted >= 2,
        "no compiler was interrupted in the middle"
    );
    // The next `compile` gets the lock, removes the leftovers, and makes the same bytes.
    made(&dir);
    assert!(litter(root.path()).is_empty());
    assert_eq!(
        std::fs::read(dir.join("manifest.json")).expect("manifest"),
        before
    );
}

fn on_model(command: &str, model: &str, artifacts: &Path, more: &[&str]) -> Output {
    let mut run = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    run.arg(command)
        .arg("--model")
        .arg(fixture("models").join(model))
        .arg("--artifacts")
        .arg(artifacts)
        .args(more);
    run.output().expect("runs")
}

/// Compiles for a model of `fixtures/models`, with only a pattern and the flags in `more`.
fn compiled(model: &str, dir: &Path, more: &[&str]) {
    let run = Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .arg("compile")
        .arg(fixture("models").join(model).join("config.json"))
        .args([
            "--pattern",
            "block 16 causal & (local(1) | partner(causal_shift) | sink(1))",
        ])
        .arg("-o")
        .arg(dir)
        .args(more)
        .env_remove("BUTTERFLY_NVRTC")
        .env_remove("VIRTUAL_ENV")
        .output()
        .expect("runs");
    assert!(run.status.success(), "{}", said(&run));
}

/// The targets and element types of a folder's kernels.
fn held(dir: &Path) -> Vec<(String, String)> {
    let text = std::fs::read(dir.join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let kernels = manifest["kernels"].as_array().expect("kernels").iter();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_string();
    let mut held: Vec<_> = kernels
        .map(|kernel| (text(&kernel["target"]), text(&kernel["spec"]["dtype"])))
        .collect();
    held.sort();
    held.dedup();
    held
}

const TOKENS: [&str; 5] = ["--tokens", "1,2,3", "--max-new-tokens", "3", "--ignore-end"];

/// Artifacts that were compiled without flags run without flags.
#[test]
fn defaults_fit_together() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    compiled("llama", &dir, &[]);
    for device in ["auto", "cpu", "vulkan"] {
        let flags = [&TOKENS[..], &["--device", device, "--json"]].concat();
        let run = on_model("generate", "llama", &dir, &flags);
        assert!(run.status.success(), "{device}: {}", said(&run));
        let report: serde_json::Value = serde_json::from_slice(&run.stdout).expect("object");
        assert_eq!(report["dtype"], "f32", "{device}");
        assert_eq!(report["compiled_kernels"], serde_json::json!([]));
        assert!(!said(&run).contains("kernels"), "{}", said(&run));
    }
    // The folder also has kernels in the model's own type.
    let flags = [&TOKENS[..], &["--device", "cpu", "--dtype", "bf16"]].concat();
    let run = on_model("generate", "llama", &dir, &flags);
    assert!(run.status.success(), "{}", said(&run));
}

/// If a folder lacks the default type, a run uses a type that the folder has, and says so.
#[test]
fn what_is_there_runs() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    compiled("llama", &dir, &["--target", "cpu", "--dtype", "f16"]);
    let flags = [&TOKENS[..], &["--device", "cpu", "--json"]].concat();
    let run = on_model("generate", "llama", &dir, &flags);
    assert!(run.status.success(), "{}", said(&run));
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).expect("object");
    assert_eq!(report["dtype"], "f16");
    let note = "note: the artifacts have no f32 kernels for cpu; running in f16";
    assert!(said(&run).contains(note), "{}", said(&run));
}

/// The command that an error advises adds the missing kernels and keeps all others.
#[test]
fn advice_adds() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("my artifacts");
    compiled("llama", &dir, &["--target", "metal,cpu"]);
    let before = held(&dir);
    let flags = [&TOKENS[..], &["--device", "cpu", "--dtype", "f16"]].concat();
    let run = on_model("generate", "llama", &dir, &flags);
    assert_eq!(run.status.code(), Some(2));
    let message = said(&run);
    let command = message
        .split_once("add them with: butterfly ")
        .expect("advice")
        .1;
    let command = command.split_once(" (CONFIG is the ").expect("advice").0;
    let config = fixture("models/llama/config.json");
    let command = command.replace("CONFIG", &config.display().to_string());
    let script = format!("'{}' {command}", env!("CARGO_BIN_EXE_butterfly"));
    let advised = Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("sh");
    assert!(advised.status.success(), "{script}: {}", said(&advised));
    let run = on_model("generate", "llama", &dir, &flags);
    assert!(run.status.success(), "{}", said(&run));
    let now = held(&dir);
    assert!(before.iter().all(|kind| now.contains(kind)), "{now:?}");
    assert_eq!(now.len(), before.len() + 1);
    whole(&dir);

    // The folder is the same as one that was made for these types from the start.
    let at_once = root.path().join("at once");
    compiled("llama", &at_once, &["--target", "metal", "--dtype", "bf16"]);
    let cpu = ["--target", "cpu", "--dtype", "f32,bf16,f16", "--add"];
    compiled("llama", &at_once, &cpu);
    let text = |dir: &Path| std::fs::read(dir.join("manifest.json")).expect("manifest");
    assert!(text(&dir) == text(&at_once));

    // Without `--add`, a note lists the kernels that are lost.
    let run = Command::new("sh")
        .args(["-c", &script.replace(" --add", "")])
        .output()
        .expect("sh");
    assert!(run.status.success());
    assert!(said(&run).contains("--add keeps them"), "{}", said(&run));
    assert_eq!(held(&dir), [("cpu".to_string(), "f16".to_string())]);
}

/// The error names both models, and does not advise a command that would replace the folder.
#[test]
fn artifacts_of_another_model() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    compiled("llama", &dir, &["--target", "cpu"]);
    let flags = [&TOKENS[..], &["--device", "cpu"]].concat();
    let run = on_model("generate", "qwen3", &dir, &flags);
    assert_eq!(run.status.code(), Some(2), "{}", said(&run));
    let path = fixture("models/qwen3").display().to_string();
    for part in [
        "was compiled for config.json (llama), head size 16/16, group 2",
        &format!("not for {path} (qwen3), head size 32/32, group 2"),
        "into another folder: butterfly compile",
    ] {
        assert!(said(&run).contains(part), "no `{part}` in: {}", said(&run));
    }
}
