//! `butterfly chat`: turns, what is read again, commands, room, Ctrl-C, a terminal.

use butterfly_tests::fixture;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A model folder with a byte tokenizer: each byte is a token.
fn folder(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for from in [
        &format!("models/{model}/config.json"),
        &format!("models/{model}/model.safetensors"),
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ] {
        let from = fixture(from);
        let name = from.file_name().expect("a name");
        // Not `fs::copy`: the original may be read-only.
        let bytes = fs::read(&from).expect("a fixture");
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    // No token ends a text, so that answers have the length that is asked for.
    fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": []}"#,
    )
    .expect("written");
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// Starts a command whose stdin is a pipe.
fn start(args: &[&str]) -> Child {
    Command::new("env")
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_butterfly")])
        .args(args)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn run(args: &[&str], lines: &[u8]) -> (Output, String) {
    let mut child = start(args);
    // A command that is refused reads nothing.
    let _ = child.stdin.take().expect("stdin").write_all(lines);
    let output = child.wait_with_output().expect("ends");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, error)
}

fn chat<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["chat", "--device", "cpu", "-m", text(dir)], more].concat()
}

/// The report of a conversation.
fn report(dir: &Path, more: &[&str], lines: &str) -> Value {
    let (output, error) = run(&chat(dir, &[more, &["--json"]].concat()), lines.as_bytes());
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn turns(report: &Value) -> &[Value] {
    report["turns"].as_array().expect("turns")
}

/// What `generate` gives for the text that the template makes of a conversation.
fn afresh(dir: &Path, more: &[&str], conversation: &str) -> Value {
    let args = ["generate", "--device", "cpu", "--json", "-m", text(dir)];
    let args = [&args[..], &["-p", "-"], more].concat();
    let (output, error) = run(&args, conversation.as_bytes());
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Each answer is the one that the whole conversation gives when it is read at once. Models whose
/// states can go back read only what is new.
#[test]
fn a_conversation_goes_on_from_the_cache() {
    let pattern = "block 16 causal & (local(1) | partner(causal_shift) | sink(1))";
    let dense: &[&str] = &["-n", "6", "--capacity", "400"];
    let sparse = [dense, &["--pattern", pattern, "--chunk", "7"]].concat();
    for (model, recurrent) in [("llama", false), ("qwen3_5", true)] {
        let folder = folder(model);
        for more in [dense, &sparse] {
            let report = report(folder.path(), more, "Blocks attend\nto\nothers\n");
            let turns = turns(&report);
            assert_eq!(turns.len(), 3);
            let mut conversation = String::new();
            let mut before = 0;
            for (turn, user) in turns.iter().zip(["Blocks attend", "to", "others"]) {
                assert_eq!(turn["user"], user);
                conversation += &format!("user: {user}<end>\nassistant:");
                let whole = afresh(folder.path(), more, &conversation);
                assert_eq!(turn["prompt_tokens"], whole["prompt_tokens"], "{model}");
                assert_eq!(turn["tokens"], whole["tokens"], "{model}: {conversation}");
                let reused = turn["reused_tokens"].as_u64().expect("a number");
                let prompt = turn["prompt_tokens"].as_u64().expect("a number");
                assert!(reused < prompt);
                match recurrent {
                    true => assert_eq!(reused, 0),
                    false => assert!(reused >= before, "{reused} of {before}"),
                }
                before = prompt;
                let answer = turn["text"].as_str().expect("text");
                conversation += &format!(" {}<end>\n", answer.trim());
            }
        }
    }
}

#[test]
fn commands_and_lines() {
    let folder = folder("llama");
    let more = ["-n", "4", "--system", "Be short"];
    // The last line has no newline, and what comes after /quit is not read.
    let lines = "\n/help\nHello\r\n/rest\n   \n/reset\nHello\n/etc/hosts";
    let (output, error) = run(&chat(folder.path(), &more), lines.as_bytes());
    assert!(output.status.success(), "{error}");
    for part in [
        "/reset  begins",
        "there is no command /rest;",
        "a new conversation",
        ": 3 answers; ",
        "layers 0,1,2,3: dense",
    ] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    let lines = lines.to_string() + "\n/quit\nmore\n";
    let report = report(folder.path(), &more, &lines);
    let turns = turns(&report);
    let said: Vec<_> = turns.iter().map(|turn| turn["user"].as_str()).collect();
    assert_eq!(said, [Some("Hello"), Some("Hello"), Some("/etc/hosts")]);
    // After /reset everything is as it was at the beginning, and read already.
    assert_eq!(turns[0]["tokens"], turns[1]["tokens"]);
    let prompt = "system: Be short<end>\nuser: Hello<end>\nassistant:".len();
    assert_eq!(turns[0]["prompt_tokens"], prompt);
    assert_eq!(turns[1]["prompt_tokens"], prompt);
    assert_eq!(turns[0]["reused_tokens"], 0);
    assert_eq!(turns[1]["reused_tokens"], prompt - 1);
    // One line for each answer, or more where it has newlines itself.
    let answers: String = turns
        .iter()
        .map(|turn| turn["text"].as_str().expect("text").to_string() + "\n")
        .collect();
    assert_eq!(String::from_utf8_lossy(&output.stdout), answers);
}

#[test]
fn without_lines_there_is_nothing_to_answer() {
    let folder = folder("llama");
    for lines in ["", "\n\n", "/quit\n"] {
        assert_eq!(report(folder.path(), &[], lines)["turns"], json!([]));
    }
}

#[test]
fn answers_are_drawn_by_the_seed() {
    let folder = folder("llama");
    let drawn = |seed| {
        let more = ["-n", "12", "--temperature", "1.5", "--seed", seed];
        report(folder.path(), &more, "Blocks\nattend\n")["turns"].clone()
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

/// The end of the capacity is said, with the way out, and nothing is lost.
#[test]
fn room_comes_to_an_end() {
    let folder = folder("llama");
    // "user: Hello<end>\nassistant:" has 27 bytes.
    let more = ["--capacity", "40"];
    let (output, error) = run(
        &chat(folder.path(), &more),
        b"Hello\nHello\n/reset\nHello\n",
    );
    assert!(output.status.success(), "{error}");
    let stopped = "the answer stopped: the capacity of 40 tokens is used up; /reset begins";
    assert_eq!(error.matches(stopped).count(), 2, "{error}");
    let refused =
        "leaves no room for an answer in a capacity of 40; the line was not taken: /reset";
    assert_eq!(error.matches(refused).count(), 1, "{error}");
    assert!(error.contains("a larger --capacity"), "{error}");
    let report = report(folder.path(), &more, "Hello\nHello\n/reset\nHello\n");
    let lengths = turns(&report)
        .iter()
        .map(|turn| turn["tokens"].as_array().map(Vec::len));
    assert_eq!(lengths.collect::<Vec<_>>(), [Some(13), Some(13)]);
    assert_eq!(report["capacity"], 40);
    // By default there is room for as many tokens as the model was made for.
    assert_eq!(self::report(folder.path(), &[], "")["capacity"], 512);
}

/// A line that the template refuses does not end the conversation.
#[test]
fn what_the_template_refuses_is_said() {
    let folder = folder("llama");
    let template = "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('No.') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    fs::write(folder.path().join("chat_template.jinja"), template).expect("written");
    let (output, error) = run(&chat(folder.path(), &["-n", "2"]), b"good\nbad\ngood\n");
    assert!(output.status.success(), "{error}");
    assert!(
        error.contains("error: ") && error.contains("chat_template.jinja"),
        "{error}"
    );
    assert!(error.contains(": 2 answers; "), "{error}");
}

#[test]
fn what_cannot_be_used() {
    let folder = folder("llama");
    let refused = |lines: &[u8], part: &str| {
        let (output, error) = run(&chat(folder.path(), &["-n", "2", "--json"]), lines);
        assert_eq!(output.status.code(), Some(2), "{error}");
        let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let said = object["error"].as_str().expect("an error");
        assert!(said.contains(part), "no `{part}` in: {said}");
    };
    refused(
        b"a\nb\xff\n",
        "stdin: line 2: byte 2 of the line, 0xff, is not UTF-8",
    );
    let config = folder.path().join("tokenizer_config.json");
    fs::write(config, "{}").expect("written");
    refused(b"Hello\n", "has no chat template");
}

/// On Linux, signals and terminals as a user makes them.
#[cfg(target_os = "linux")]
mod keys {
    use super::*;
    use std::io::Write;

    /// Reads until `part` has come; returns all that has.
    fn until(from: &mut impl Read, part: &str) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&bytes).contains(part) {
            match from.read(&mut byte) {
                Ok(1) => bytes.push(byte[0]),
                _ => panic!("no `{part}` in: {}", String::from_utf8_lossy(&bytes)),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A model that can talk for minutes.
    fn endless() -> tempfile::TempDir {
        let folder = folder("llama");
        let config = folder.path().join("config.json");
        let text = fs::read_to_string(&config).expect("config");
        let longer = text.replace(
            "\"max_position_embeddings\": 512",
            "\"max_position_embeddings\": 200000",
        );
        assert_ne!(text, longer);
        fs::write(&config, longer).expect("written");
        folder
    }

    fn press(child: &Child) {
        let pid = child.id().to_string();
        let kill = ["-c", "kill -INT \"$1\"", "sh", &pid];
        let killed = Command::new("sh").args(kill).status();
        assert!(killed.expect("sh").success());
    }

    #[test]
    fn ctrl_c_stops_the_answer_only() {
        let folder = endless();
        let mut child = start(&chat(folder.path(), &["--capacity", "100000"]));
        let mut stdin = child.stdin.take().expect("stdin");
        let mut stdout = child.stdout.take().expect("stdout");
        let mut stderr = child.stderr.take().expect("stderr");
        stdin.write_all(b"Hello\n").expect("written");
        stdout.read_exact(&mut [0]).expect("an answer");
        press(&child);
        until(&mut stderr, "stopped by Ctrl-C");
        stdin.write_all(b"/quit\n").expect("written");
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).expect("stderr");
        std::io::copy(&mut stdout, &mut std::io::sink()).expect("stdout");
        assert!(child.wait().expect("ends").success(), "{rest}");
        assert!(rest.contains(": 1 answers; "), "{rest}");
    }

    #[test]
    fn ctrl_c_ends_what_waits_for_a_line() {
        let folder = folder("llama");
        let mut child = start(&chat(folder.path(), &["-n", "1"]));
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(b"/help\n").expect("written");
        let mut stderr = child.stderr.take().expect("stderr");
        until(&mut stderr, "said to the model.\n");
        // From the help to the next line it is not far.
        std::thread::sleep(std::time::Duration::from_millis(200));
        press(&child);
        assert_eq!(child.wait().expect("ends").code(), Some(130));
    }

    /// A terminal on which the command runs; `script` makes it. Its shell is replaced by the
    /// command: dash would wait beside it, and end by Ctrl-C.
    fn terminal(folder: &Path, more: &str) -> Child {
        let command = format!(
            "exec {} chat --device cpu --model {} {more}",
            env!("CARGO_BIN_EXE_butterfly"),
            text(folder)
        );
        Command::new("env")
            .args([
                "--default-signal=INT",
                "script",
                "-qec",
                &command,
                "/dev/null",
            ])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script")
    }

    #[test]
    fn a_terminal_edits_lines() {
        let folder = folder("llama");
        let mut child = terminal(folder.path(), "-n 4");
        let mut keys = child.stdin.take().expect("stdin");
        let mut shown = child.stdout.take().expect("stdout");
        let said = until(&mut shown, "> ");
        assert!(said.contains("room for 512 tokens; /help"), "{said}");
        // A misspelt command, put right with backspace and Ctrl-A.
        keys.write_all(b"helpp\x7f\x01/\r").expect("typed");
        until(&mut shown, "said to the model.");
        until(&mut shown, "> ");
        // The line before, by the arrow up.
        keys.write_all(b"\x1b[A\r").expect("typed");
        until(&mut shown, "said to the model.");
        until(&mut shown, "> ");
        keys.write_all(b"\x03").expect("typed");
        until(&mut shown, "Ctrl-C again");
        until(&mut shown, "> ");
        keys.write_all(b"Hello\r").expect("typed");
        until(&mut shown, "> ");
        keys.write_all(b"\x04").expect("typed");
        let mut rest = String::new();
        shown.read_to_string(&mut rest).expect("the rest");
        assert!(child.wait().expect("ends").success(), "{rest}");
        assert!(rest.contains(": 1 answers; "), "{rest}");
    }

    #[test]
    fn ctrl_c_twice_ends_on_a_terminal() {
        let folder = endless();
        let mut child = terminal(folder.path(), "--capacity 100000");
        let mut keys = child.stdin.take().expect("stdin");
        let mut shown = child.stdout.take().expect("stdout");
        until(&mut shown, "> ");
        keys.write_all(b"Hello\r").expect("typed");
        until(&mut shown, "Hello");
        let mut some = [0; 64];
        shown.read_exact(&mut some).expect("an answer");
        keys.write_all(b"\x03").expect("typed");
        until(&mut shown, "stopped by Ctrl-C");
        until(&mut shown, "> ");
        keys.write_all(b"\x03").expect("typed");
        let mut rest = Vec::new();
        shown.read_to_end(&mut rest).expect("the rest");
        let rest = String::from_utf8_lossy(&rest);
        assert!(child.wait().expect("ends").success(), "{rest}");
        assert!(
            !rest.contains("Ctrl-C again") && rest.contains(": 1 answers; "),
            "{rest}"
        );
    }
}
