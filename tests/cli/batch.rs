//! Prompts from stdin, and the lines of a file as prompts.

mod byte_model;

use byte_model::{butterfly, folder, generate, refused, report};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// As [`generate`], with something on stdin.
fn fed(dir: &Path, more: &[&str], stdin: &[u8]) -> Output {
    let dir = dir.to_str().expect("utf-8");
    let mut child = Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .args(["generate", "-m", dir, "--device", "cpu"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // A command that is refused reads nothing.
    let _ = child.stdin.take().expect("stdin").write_all(stdin);
    child.wait_with_output().expect("ends")
}

#[test]
fn a_prompt_comes_from_stdin() {
    let folder = folder();
    let length = |args: &[&str], stdin: &[u8]| {
        let args = [args, &["-n", "1", "--json"]].concat();
        let output = fed(folder.path(), &args, stdin);
        let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        object["prompt_tokens"]
            .as_u64()
            .unwrap_or_else(|| panic!("{object}"))
    };
    assert_eq!(length(&["-p", "-"], b"Blocks"), 6);
    // What `echo` adds is no part of a prompt; other newlines are.
    assert_eq!(length(&["--prompt", "-"], b"Blocks\n"), 6);
    assert_eq!(length(&["-p", "-"], b"Blocks\r\n"), 6);
    assert_eq!(length(&["-p", "-"], b"\nBlocks\n\n"), 8);
    assert_eq!(length(&["-p", "-", "--chat"], b"Hi\n"), 6 + 2 + 5 + 1 + 10);
    // A prompt file is taken as it is.
    assert_eq!(length(&["--prompt-file", "-"], b"Blocks\n"), 7);
    let file = folder.path().join("prompt.txt");
    fs::write(&file, "\u{feff}Blocks\nattend\n").expect("written");
    let file = file.to_str().expect("utf-8");
    assert_eq!(length(&["--prompt-file", file], b""), 14);

    let error = |args: &[&str], stdin: &[u8]| {
        let output = fed(folder.path(), args, stdin);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    for stdin in [&b""[..], b"\n"] {
        assert!(error(&["-p", "-"], stdin).contains("the prompt has no tokens"));
    }
    let said = error(&["-p", "-"], b"a\nb\xe4\n");
    assert!(
        said.contains("stdin: line 2: byte 2 of the line, 0xe4, is not UTF-8"),
        "{said}"
    );
}

/// Each line becomes what it would become alone with the same capacity, with a pattern and drawn by a seed, too; all
/// run together, and texts are listed in the order of the lines.
#[test]
fn lines_are_prompts() {
    let folder = folder();
    let lines = [
        "Blocks attend",
        "",
        "to",
        "Blocks wander",
        "a few others",
        "of",
    ];
    let file = folder.path().join("prompts.txt");
    let path = file.to_str().expect("utf-8");
    fs::write(&file, lines.join("\r\n").replacen("\r\n", "\n", 1)).expect("written");
    let pattern = "block 16 causal & (local(1) | partner(causal_shift) | sink(1))";
    for more in [
        &["-n", "6"][..],
        &[
            "-n",
            "6",
            "--ignore-end",
            "--temperature",
            "1.5",
            "--seed",
            "7",
        ],
        &[
            "-n",
            "20",
            "--ignore-end",
            "--pattern",
            pattern,
            "--chunk",
            "5",
            "--capacity",
            "40",
        ],
        &["-n", "6", "--chat", "--system", "Be short"],
    ] {
        let batch = [&["--prompt-file", path, "--batch"], more].concat();
        let all = report(folder.path(), &batch);
        let texts = all["texts"].as_array().expect("texts");
        let numbers: Vec<_> = texts.iter().map(|text| text["line"].as_u64()).collect();
        assert_eq!(numbers, [Some(1), Some(3), Some(4), Some(5), Some(6)]);
        assert_eq!((&all["prompts"], &all["batches"]), (&json!(5), &json!(1)));
        assert_eq!(all["interrupted"], false);
        let mut read = 0;
        let mut listed = String::new();
        for text in texts {
            let line = text["line"].as_u64().expect("a line") as usize;
            let alone = report(folder.path(), &[&["-p", lines[line - 1]], more].concat());
            for field in ["prompt_tokens", "tokens", "text", "ended"] {
                assert_eq!(text[field], alone[field], "{more:?}: line {line}, {field}");
            }
            read += text["prompt_tokens"].as_u64().expect("a number");
            let gap = if line == 1 { "" } else { "\n" };
            let text = text["text"].as_str().expect("text");
            listed += &format!("{gap}==> {path}:{line} <==\n{text}\n");
        }
        assert_eq!(all["prompt_tokens"], read);
        assert!(all["tokens_per_second"].as_f64() > Some(0.0));

        let shown = generate(folder.path(), &batch);
        assert_eq!(String::from_utf8_lossy(&shown.stdout), listed);
        let said = String::from_utf8_lossy(&shown.stderr);
        assert!(
            said.contains("prompts.txt: 1 empty lines passed over"),
            "{said}"
        );
        assert!(said.contains("; 5 of 5 prompts in 1 batch, "), "{said}");
        assert!(said.contains("tokens a second over all"), "{said}");
        let bytes = fs::read(&file).expect("read");
        let args = [&["--prompt-file", "-", "--batch"], more].concat();
        let piped = fed(folder.path(), &args, &bytes).stdout;
        let listed = listed.replace(path, "-");
        assert_eq!(String::from_utf8_lossy(&piped), listed);
    }
}

/// A text that has ended does not hold up or change the others of its batch.
#[test]
fn texts_of_a_batch_end_by_themselves() {
    let folder = folder();
    let file = folder.path().join("prompts.txt");
    let path = file.to_str().expect("utf-8");
    let lines = ["Blocks", "attend", "others"];
    fs::write(&file, lines.join("\n") + "\n").expect("written");
    let args = ["--prompt-file", path, "--batch", "-n", "12"];
    let free = report(folder.path(), &[&args[..], &["--ignore-end"]].concat());
    // A token that comes early in the first text, and later or never in another.
    let tokens = |i: usize| {
        free["texts"][i]["tokens"]
            .as_array()
            .expect("tokens")
            .clone()
    };
    let end = tokens(0)[1].clone();
    let ends = json!({"eos_token_id": end});
    fs::write(
        folder.path().join("generation_config.json"),
        ends.to_string(),
    )
    .expect("written");
    let ended = report(folder.path(), &args);
    assert_eq!(ended["batches"], 1);
    let mut lengths = Vec::new();
    for i in 0..lines.len() {
        let all = tokens(i);
        let at = all.iter().position(|token| *token == end);
        let text = &ended["texts"][i];
        let kept = text["tokens"].as_array().expect("tokens");
        assert_eq!(kept[..], all[..at.unwrap_or(all.len())]);
        assert_eq!(text["ended"], at.is_some());
        lengths.push(kept.len());
    }
    assert!(
        lengths.iter().any(|length| *length != lengths[0]),
        "{lengths:?}"
    );
}

#[test]
fn prompt_files_that_are_wrong_are_named() {
    let folder = folder();
    let file = folder.path().join("prompts.txt");
    let args = ["--prompt-file", file.to_str().expect("utf-8"), "--batch"];
    let said = refused(folder.path(), &args);
    assert!(said.contains("prompts.txt: cannot read"), "{said}");
    for (bytes, part) in [
        (&b""[..], "holds no prompt"),
        (b"\n\r\n\n", "holds no prompt"),
        (
            b"\xff\xfea\0\n\0",
            "line 1: byte 1 of the line, 0xff, is not UTF-8",
        ),
        (
            b"a\r\n\nbc\xe2\x82\n",
            "line 3: byte 3 of the line, 0xe2, is not UTF-8",
        ),
        (
            b"a\nbc\xe2\x82",
            "line 2: byte 3 of the line, 0xe2, is not UTF-8",
        ),
    ] {
        fs::write(&file, bytes).expect("written");
        let said = refused(folder.path(), &args);
        let start = format!("{}: {part}", file.display());
        assert!(said.starts_with(&start), "{said}");
    }
    // The capacity is that of the longest text.
    fs::write(&file, "abc\nabcdef\n").expect("written");
    let capacity = ["-n", "10", "--capacity", "15"];
    let said = refused(folder.path(), &[&args[..], &capacity].concat());
    assert!(
        said.contains("6 tokens of prompt") && said.contains("at least 16"),
        "{said}"
    );
    // Without a file there are no lines.
    for prompt in [["-p", "a"], ["--tokens", "1"]] {
        let output = generate(folder.path(), &[&prompt[..], &["--batch"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("cannot be used with") && said.contains("'--batch'"),
            "{said}"
        );
    }
}

/// Completions know the commands and their flags.
#[test]
fn completions_know_chat() {
    let script = butterfly(&["completions", "bash"]).stdout;
    let script = String::from_utf8_lossy(&script);
    let from = script
        .find("butterfly__chat)")
        .or_else(|| script.find("butterfly__subcmd__chat)"));
    let part = &script[from.expect("the command")..];
    let flags = part
        .lines()
        .find(|line| line.contains("opts="))
        .expect("flags");
    for flag in [
        "-m ",
        "-n ",
        "--model ",
        "--system ",
        "--temperature ",
        "--pattern ",
        "--device ",
    ] {
        assert!(flags.contains(flag), "no `{flag}` in: {flags}");
    }
}
