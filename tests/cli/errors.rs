//! Bad input: the message says what is wrong and what to do, the exit code is 2, and
//! nothing is left behind.

use butterfly_tests::fixture;
use std::path::Path;
use std::process::{Command, Output};

fn butterfly(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .args(args)
        .output()
        .expect("runs")
}

/// Runs a command that must fail with code 2 and print every one of `parts`.
fn refuses(args: &[&str], parts: &[&str]) {
    let run = butterfly(args);
    let message = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{args:?}: {message}");
    assert!(run.stdout.is_empty(), "{args:?}");
    for part in parts {
        assert!(
            message.contains(part),
            "{args:?} should say {part:?}:\n{message}"
        );
    }
}

fn topology(pattern: &str) -> [&str; 5] {
    ["topology", "--seq-len", "300", "--pattern", pattern]
}

#[test]
fn patterns() {
    refuses(
        &topology("causal & (local(1) | partner(zigzag))"),
        &["zigzag", "causal_shift"],
    );
    refuses(
        &topology("block 0\ncausal & local(1)"),
        &["block", "at least 1"],
    );
    refuses(
        &topology("causal & sink(0)"),
        &["query 0", "attends to no key"],
    );
    refuses(
        &topology("causal & sink(1) - local(0)"),
        &["attends to no key"],
    );
    refuses(&topology("local(1, 1)"), &["later key", "causal &"]);
    refuses(
        &topology("causal & table([[0], [0, 7], [2]])"),
        &["table row"],
    );
    refuses(&topology("causal &"), &["error"]);
    refuses(
        &topology("missing.pattern"),
        &["missing.pattern", "cannot read"],
    );
}

/// The message of a command that must fail with code 2.
fn message(args: &[&str]) -> String {
    let run = butterfly(args);
    let message = String::from_utf8(run.stderr).expect("utf-8");
    assert_eq!(run.status.code(), Some(2), "{args:?}: {message}");
    message
}

#[test]
fn the_guilty_leaf_is_pointed_at() {
    for (pattern, place, leaf) in [
        (
            "block 128\nstage_by swapped_index\ncausal & sink(0)",
            ":3:10",
            "sink(0)",
        ),
        // Both sides admit keys, but none in common.
        (
            "# head\n\nblock 16\ncausal & (sink(1) - local(0))",
            ":4:21",
            "local(0)",
        ),
        ("block 16 window(8) & sink(1)", ":1:22", "sink(1)"),
        ("block 16 causal & (sink(0) | none)", ":1:20", "sink(0)"),
        (
            "block 16 causal & (partner(xor) | sink(1)) - all",
            ":1:46",
            "all",
        ),
        (
            "block 16\ncausal & sink(1) | local(0, 1)",
            ":2:20",
            "local(0, 1)",
        ),
        (
            r#"{"rule": "xor", "sink": 1, "local_window": 1, "pattern": {"leaf": "none"}}"#,
            ":1:3",
            "",
        ),
    ] {
        let message = message(&topology(pattern));
        if leaf.is_empty() {
            continue;
        }
        assert!(
            message.contains(&format!("--pattern{place}\n")),
            "{pattern}:\n{message}"
        );
        let pointer = message
            .lines()
            .find(|line| line.contains('^'))
            .expect("carets");
        assert_eq!(pointer.matches('^').count(), leaf.len(), "{message}");
    }
}

#[test]
fn long_input_has_short_messages() {
    let long = "x".repeat(100_000);
    let number = "9".repeat(100_000);
    let row = format!(
        "block 16 table([{}[0]]) & windw(3)",
        "[0, 1], ".repeat(10_000)
    );
    let folder = format!("{}missing.pattern", "folder/".repeat(10_000));
    for args in [
        &topology(&long)[..],
        &topology(&row),
        &topology(&folder),
        &["topology", "--seq-len", &number, "--pattern", "causal"],
        &[
            "topology",
            "--seq-len",
            "8",
            "--layer",
            "1",
            "--layers",
            &number,
            "--pattern",
            "causal",
        ],
        &[
            "attend",
            "--inputs",
            &folder,
            "--output",
            &long,
            "--pattern",
            "causal",
        ],
        &["compile", &folder, "--output", &long, "--pattern", "causal"],
        &[
            "compile",
            "config.json",
            "--target",
            &long,
            "--output",
            "x",
            "--pattern",
            "causal",
        ],
        &[&long],
    ] {
        let message = message(args);
        assert!(
            message.len() < 6000 && message.contains('…'),
            "{} bytes",
            message.len()
        );
    }
}

#[test]
fn json_errors_are_one_object() {
    let run = butterfly(&[
        "--json",
        "topology",
        "--seq-len",
        "300",
        "--pattern",
        "causal & sink(0)",
    ]);
    assert_eq!(run.status.code(), Some(2));
    let object: serde_json::Value = serde_json::from_slice(&run.stdout).expect("one object");
    assert!(
        object["error"]
            .as_str()
            .expect("text")
            .contains("attends to no key")
    );
}

/// A safetensors file of f32 tensors filled with `value`.
fn tensors(path: &Path, shapes: &[(&str, Vec<usize>, f32)]) {
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views = shapes.iter().zip(&data).map(|((name, shape, _), data)| {
        (
            *name,
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data)
                .expect("view"),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("file")).expect("written");
}

#[test]
fn attend_inputs() {
    let folder = tempfile::tempdir().expect("folder");
    let (inputs, output) = (
        folder.path().join("in.safetensors"),
        folder.path().join("out.safetensors"),
    );
    let (input_text, output_text) = (
        inputs.to_str().expect("utf-8"),
        output.to_str().expect("utf-8"),
    );
    let attend = [
        "attend",
        "--pattern",
        "causal & local(1)",
        "--inputs",
        input_text,
        "--output",
        output_text,
    ];
    let with = |q: &[usize], k: &[usize], v: &[usize], value: f32| {
        tensors(
            &inputs,
            &[
                ("q", q.to_vec(), value),
                ("k", k.to_vec(), 0.0),
                ("v", v.to_vec(), 0.0),
            ],
        );
    };
    refuses(&attend, &["in.safetensors", "cannot read"]);
    with(&[1, 4, 8, 16], &[1, 2, 8, 24], &[1, 2, 8, 16], 0.0);
    refuses(&attend, &["in.safetensors", "head sizes", "[1, 2, 8, 24]"]);
    with(&[1, 4, 8, 16], &[1, 3, 8, 16], &[1, 3, 8, 16], 0.0);
    refuses(&attend, &["4 q heads", "3 kv heads"]);
    with(&[1, 4, 9, 16], &[1, 2, 8, 16], &[1, 2, 8, 16], 0.0);
    refuses(&attend, &["more queries than keys"]);
    with(&[1, 4, 8, 16], &[1, 2, 8, 16], &[1, 2, 8, 16], 0.0);
    let more = |flags: &[&'static str]| [&attend[..], flags].concat();
    refuses(
        &more(&["--sinks"]),
        &["in.safetensors", "no tensor `sinks`"],
    );
    refuses(&more(&["--softcap", "0"]), &["--softcap 0", "positive"]);
    with(&[1, 4, 8, 16], &[1, 2, 8, 16], &[1, 2, 7, 16], 0.0);
    refuses(&attend, &["shapes disagree"]);
    tensors(&inputs, &[("q", vec![1, 1, 1, 8], 0.0)]);
    refuses(&attend, &["no tensor `k`"]);
    tensors(
        &inputs,
        &[
            ("q", vec![8, 8], 0.0),
            ("k", vec![8, 8], 0.0),
            ("v", vec![8, 8], 0.0),
        ],
    );
    refuses(&attend, &["`q`", "four dimensions"]);
    with(&[1, 4, 8, 16], &[1, 2, 8, 16], &[1, 2, 8, 16], f32::NAN);
    refuses(
        &[&attend[..], &["--check"]].concat(),
        &["`q`", "NaN", "[0, 0, 0, 0]"],
    );
    // Without --check the outputs are not finite, or the logits exceed the range of f32.
    let exits_1 = |parts: &[&str]| {
        let run = butterfly(&attend);
        let error = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
        std::fs::remove_file(&output).expect("written all the same");
    };
    exits_1(&["out.safetensors", "not finite", "`q`", "[0, 0, 0, 0]"]);
    let huge = |name, shape: [usize; 4]| (name, shape.to_vec(), 1e30);
    let [q, k] = [[1, 4, 8, 16], [1, 2, 8, 16]];
    tensors(&inputs, &[huge("q", q), huge("k", k), huge("v", k)]);
    exits_1(&["not finite", "range of f32", "--scale"]);
    let whole = std::fs::read(fixture("attention/dense_causal.safetensors")).expect("fixture");
    std::fs::write(&inputs, &whole[..whole.len() - 7]).expect("written");
    refuses(&attend, &["in.safetensors", "safetensors"]);
    assert!(!output.exists(), "a failed run left an output");
}

#[test]
fn unwritable_output_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let inputs = fixture("attention/dense_causal.safetensors");
    let file = folder.path().join("a-file");
    std::fs::write(&file, "").expect("written");
    let output = file.join("o.safetensors");
    let paths = [
        inputs.to_str().expect("utf-8"),
        output.to_str().expect("utf-8"),
    ];
    refuses(
        &[
            "attend",
            "--pattern",
            "causal & local(5)",
            "--inputs",
            paths[0],
            "--output",
            paths[1],
        ],
        &["o.safetensors", "cannot write"],
    );
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 1);
}

#[test]
fn dtypes_must_agree() {
    let folder = tempfile::tempdir().expect("folder");
    let inputs = folder.path().join("in.safetensors");
    let (wide, narrow) = ([0u8; 4 * 64], [0u8; 2 * 64]);
    let view = |dtype, data| {
        safetensors::tensor::TensorView::new(dtype, vec![1, 1, 8, 8], data).expect("view")
    };
    let views = [
        ("q", view(safetensors::Dtype::F32, &wide[..])),
        ("k", view(safetensors::Dtype::BF16, &narrow[..])),
        ("v", view(safetensors::Dtype::F32, &wide[..])),
    ];
    std::fs::write(&inputs, safetensors::serialize(views, None).expect("file")).expect("written");
    let path = inputs.to_str().expect("utf-8");
    refuses(
        &[
            "attend",
            "--pattern",
            "causal & local(1)",
            "--inputs",
            path,
            "--output",
            "/dev/null/o",
        ],
        &["dtypes disagree", "k bf16"],
    );
}
