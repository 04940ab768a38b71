//! Ctrl-C: what was done is reported, a second one ends at once, and nothing is left behind.
#![cfg(target_os = "linux")]

use butterfly_tests::fixture;
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for something to happen.
const PATIENCE: Duration = Duration::from_secs(120);

fn start(args: &[&str]) -> Child {
    // A shell's background jobs ignore Ctrl-C, and what they start inherits that.
    Command::new("env")
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_butterfly")])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// What Ctrl-C on a terminal sends.
fn press(child: &Child) {
    let pid = child.id().to_string();
    let kill = Command::new("sh")
        .args(["-c", "kill -INT \"$1\"", "sh", &pid])
        .status();
    assert!(kill.expect("sh").success());
}

/// Waits until the process catches Ctrl-C, which it does from the first token of a prompt on.
fn wait_for_listening(child: &Child) {
    let status = format!("/proc/{}/status", child.id());
    let until = Instant::now() + PATIENCE;
    let caught = || {
        let text = fs::read_to_string(&status).ok()?;
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
        Some(mask >> 1 & 1 == 1)
    };
    while caught() != Some(true) {
        assert!(Instant::now() < until, "it never listens");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn end(child: Child) -> (Output, String) {
    let output = child.wait_with_output().expect("ends");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, error)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// The arguments of a text that takes minutes.
fn long<'a>(model: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let args = [
        "generate",
        "--device",
        "cpu",
        "--ignore-end",
        "-m",
        text(model),
    ];
    [&args[..], &["-n", "100000"], more].concat()
}

#[test]
fn the_text_so_far_is_reported() {
    let model = fixture("models/llama");
    let mut child = start(&long(&model, &["--tokens", "1,2,3"]));
    let mut stdout = child.stdout.take().expect("stdout");
    let mut shown = [0; 1];
    stdout.read_exact(&mut shown).expect("a token");
    press(&child);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the rest");
    let (output, error) = end(child);
    assert_eq!(output.status.code(), Some(130), "{error}");
    let tokens = String::from_utf8_lossy(&shown).into_owned() + &rest;
    let tokens = tokens.strip_suffix('\n').expect("a whole line");
    let count = tokens
        .split(',')
        .map(str::parse::<u32>)
        .filter(Result::is_ok);
    let count = count.count();
    assert!(count < 100_000 && tokens.split(',').count() == count);
    assert!(error.contains(&format!(" {count} new ones")), "{error}");
    assert!(error.contains("3 tokens of prompt") && error.contains("stopped by Ctrl-C"));
    assert!(error.contains("layers 0,1,2,3: dense"), "{error}");
}

#[test]
fn the_object_says_so() {
    let model = fixture("models/llama");
    let child = start(&long(&model, &["--tokens", "1,2,3", "--json"]));
    wait_for_listening(&child);
    press(&child);
    let (output, error) = end(child);
    assert_eq!(output.status.code(), Some(130), "{error}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(object["interrupted"], true);
    assert_eq!(object["ended"], false);
    assert!(object["tokens"].as_array().expect("tokens").len() < 100_000);
}

/// Between chunks a prompt is interrupted, too; the report counts what was read.
#[test]
fn a_prompt_is_interrupted_between_chunks() {
    let model = fixture("models/llama");
    let prompt = vec!["1"; 30_000].join(",");
    let args = ["--tokens", &prompt, "--chunk", "16", "--json"];
    let child = start(&long(&model, &args));
    wait_for_listening(&child);
    press(&child);
    let (output, error) = end(child);
    assert_eq!(output.status.code(), Some(130), "{error}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(object["interrupted"], true);
    assert_eq!(object["tokens"], serde_json::json!([]));
    assert_eq!(object["first_token_seconds"], Value::Null);
    let read = object["prompt_tokens"].as_u64().expect("a number");
    assert!(read < 30_000 && read.is_multiple_of(16), "{read}");
}

/// All of this prompt is one chunk, which takes long.
#[test]
fn the_second_ends_at_once() {
    let model = fixture("models/llama");
    let prompt = vec!["1"; 60_000].join(",");
    let args = ["--tokens", &prompt, "--chunk", "60000", "--json"];
    let child = start(&long(&model, &args));
    wait_for_listening(&child);
    // Before the chunk begins, one would end it.
    std::thread::sleep(Duration::from_millis(200));
    press(&child);
    // Two signals at the same time would be one.
    std::thread::sleep(Duration::from_millis(100));
    press(&child);
    let (output, error) = end(child);
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(
        output.stdout.is_empty() && error.lines().count() <= 1,
        "{error}"
    );
}

/// Lines that were begun are listed; the others are counted.
#[test]
fn a_batch_lists_what_it_began() {
    let folder = tempfile::tempdir().expect("folder");
    for from in [
        "models/llama/config.json",
        "models/llama/model.safetensors",
        "tokenizer/tokenizer.json",
    ] {
        let from = fixture(from);
        let name = from.file_name().expect("a name");
        fs::write(
            folder.path().join(name),
            fs::read(&from).expect("a fixture"),
        )
        .expect("written");
    }
    let prompts = folder.path().join("prompts.txt");
    // One more than run together; the shortest comes last.
    let lines = "one\n".to_string() + &"three\n".repeat(64);
    fs::write(&prompts, lines).expect("written");
    let args = ["--prompt-file", text(&prompts), "--batch", "--json"];
    let child = start(&long(folder.path(), &args));
    wait_for_listening(&child);
    press(&child);
    let (output, error) = end(child);
    assert_eq!(output.status.code(), Some(130), "{error}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let texts = object["texts"].as_array().expect("texts").iter();
    let lines = texts.map(|text| text["line"].as_u64());
    assert!(lines.eq((2..=65).map(Some)), "{object}");
    assert_eq!(object["prompts"], 65);
}

/// Before there is anything to report, Ctrl-C ends the process as it ends any other, and the file
/// that was to be written does not exist.
#[test]
fn loading_ends_at_once() {
    use std::os::unix::process::ExitStatusExt;
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("logits.safetensors");
    let model = fixture("models/llama");
    // Reading this pipe never ends.
    let inputs = folder.path().join("inputs.safetensors");
    assert!(
        Command::new("mkfifo")
            .arg(&inputs)
            .status()
            .expect("mkfifo")
            .success()
    );
    let args = ["logits", "-m", text(&model), "--inputs", text(&inputs)];
    let child = start(&[&args[..], &["--output", text(&output)]].concat());
    std::thread::sleep(Duration::from_millis(300));
    press(&child);
    let (run, _) = end(child);
    assert_eq!(run.status.signal(), Some(2));
    assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 1);
}
