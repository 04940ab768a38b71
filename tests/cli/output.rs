//! The outputs of commands: closed pipes, full disks, paths that cannot be written, permissions of
//! written files, and messages on stderr.

use butterfly_tests::fixture;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PATTERN: &str = "causal & (local(1) | partner(causal_shift) | sink(1))";

fn butterfly(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command.args(args);
    command
}

fn said(run: &Output) -> String {
    String::from_utf8_lossy(&run.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// The writing end of a pipe whose reading end is closed.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// Compiles artifacts of a small model, for the CPU.
fn artifacts(dir: &Path) {
    let config = fixture("models/llama/config.json");
    let args = ["compile", text(&config), "--pattern", PATTERN];
    let run = butterfly(&[&args[..], &["--target", "cpu", "-o", text(dir)]].concat())
        .output()
        .expect("runs");
    assert!(run.status.success(), "{}", said(&run));
}

#[test]
fn nobody_reads() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    artifacts(&dir);
    let config = fixture("models/llama/config.json");
    let topology = ["topology", "--pattern", PATTERN, "--seq-len", "100000"];
    let with = |more: &[&'static str]| [&topology[..], more].concat();
    let commands = [
        with(&[]),
        with(&["--json"]),
        with(&["--format", "svg"]),
        vec!["inspect", text(&dir)],
        vec!["inspect", "--json", text(&dir)],
        vec!["verify", text(&dir)],
        vec!["completions", "bash"],
        vec!["doctor"],
        vec!["help"],
        vec![
            "prove",
            "--pattern",
            PATTERN,
            "--seq-len",
            "4096",
            "--layers",
            "5",
        ],
        vec!["explain", text(&config), "--pattern", PATTERN],
    ];
    for args in &commands {
        let run = butterfly(args).stdout(closed()).output().expect("runs");
        assert_eq!(
            (run.status.code(), said(&run)),
            (Some(0), String::new()),
            "{args:?}"
        );
    }
    // Exit codes 1 and 2 stay the same if stdout is closed.
    let leak = [
        "prove",
        "--pattern",
        "all",
        "--seq-len",
        "512",
        "--layers",
        "2",
    ];
    for (args, code) in [(&leak[..], 1), (&["inspect", "--json", "none"], 2)] {
        let run = butterfly(args).stdout(closed()).output().expect("runs");
        assert_eq!(run.status.code(), Some(code), "{}", said(&run));
    }
    // All exit codes stay the same if stderr is closed.
    let compile = [
        "compile",
        text(&config),
        "--pattern",
        PATTERN,
        "--target",
        "vulkan",
    ];
    let compile = [&compile[..], &["-o", text(&dir)]].concat();
    for (args, code) in [(&leak[..], 1), (&["inspect", "none"], 2), (&compile, 0)] {
        let run = butterfly(args).stderr(closed()).output().expect("runs");
        assert_eq!(run.status.code(), Some(code), "{args:?}");
    }
}

/// Generation stops when nobody reads its text any more.
#[test]
fn generation_ends_with_its_reader() {
    let model = fixture("models/llama");
    let args = [
        "generate",
        "--model",
        text(&model),
        "--tokens",
        "1,2,3",
        "--device",
        "cpu",
    ];
    let more = ["--ignore-end", "--max-new-tokens", "400"];
    let run = butterfly(&[&args[..], &more].concat())
        .stdout(closed())
        .output()
        .expect("runs");
    assert_eq!(run.status.code(), Some(0), "{}", said(&run));
    assert!(said(&run).contains(" 1 new ones"), "{}", said(&run));
}

#[test]
fn results_that_cannot_be_printed() {
    for args in [
        &["completions", "bash"][..],
        &[
            "topology",
            "--pattern",
            PATTERN,
            "--seq-len",
            "1000",
            "--json",
        ],
    ] {
        let full = fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let run = butterfly(args).stdout(full).output().expect("runs");
        assert_eq!(run.status.code(), Some(2), "{args:?}");
        assert!(
            said(&run).contains("stdout: cannot write"),
            "{}",
            said(&run)
        );
    }
}

/// Command lines that write a file to `output`.
fn writers(output: &Path) -> Vec<Vec<String>> {
    let own = |args: &[&str]| args.iter().map(ToString::to_string).collect();
    let inputs = fixture("attention/dense_causal.safetensors");
    let model = fixture("models/llama");
    let ids = model.join("expected.safetensors");
    let output = text(output);
    vec![
        own(&[
            "attend",
            "--pattern",
            "causal & local(5)",
            "--inputs",
            text(&inputs),
            "--output",
            output,
        ]),
        own(&[
            "logits",
            "--model",
            text(&model),
            "--inputs",
            text(&ids),
            "--output",
            output,
            "--device",
            "cpu",
        ]),
    ]
}

/// Makes a model folder with a tokenizer, and a text; gives the arguments of `eval` for them.
fn evaluation(root: &Path, plot: &Path) -> Vec<String> {
    for (from, name) in [
        ("models/llama", "config.json"),
        ("models/llama", "model.safetensors"),
        ("tokenizer", "tokenizer.json"),
    ] {
        let bytes = fs::read(fixture(from).join(name)).expect("a fixture");
        fs::write(root.join(name), bytes).expect("written");
    }
    let document = root.join("text.txt");
    fs::write(
        &document,
        "Some blocks attend to others, and some do not. ".repeat(2),
    )
    .expect("written");
    let args = [
        "eval",
        "--model",
        text(root),
        "--text",
        text(&document),
        "--device",
        "cpu",
    ];
    let needle = ["--needle", "96", "--depths", "0", "--plot", text(plot)];
    args.iter()
        .chain(&needle)
        .map(ToString::to_string)
        .collect()
}

/// No partial file is left; the message names the path, and says what to do.
#[test]
fn places_that_cannot_be_written() {
    let root = tempfile::tempdir().expect("root");
    let (folder, file) = (root.path().join("folder"), root.path().join("file"));
    fs::create_dir(&folder).expect("folder");
    fs::write(&file, "mine").expect("written");
    for (place, why) in [
        (folder.clone(), "is a directory"),
        (file.join("output"), "a part of the path is a file"),
        (
            root.path().join("none/output"),
            "name a folder that is there",
        ),
        ("/proc/output".into(), "cannot write"),
    ] {
        let model = tempfile::tempdir().expect("folder");
        let mut commands = writers(&place);
        commands.push(evaluation(model.path(), &place));
        for args in commands {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let run = butterfly(&args).output().expect("runs");
            assert_eq!(run.status.code(), Some(2), "{args:?}: {}", said(&run));
            let message = said(&run);
            assert!(
                message.contains(why) && message.contains(text(&place)),
                "{message}"
            );
            assert!(run.stdout.is_empty());
        }
    }
    assert_eq!(fs::read_dir(root.path()).expect("root").count(), 2);
    assert_eq!(fs::read_dir(&folder).expect("folder").count(), 0);
    assert_eq!(fs::read(&file).expect("file"), b"mine");

    // An artifact folder where there is a file.
    let config = fixture("models/llama/config.json");
    let args = [
        "compile",
        text(&config),
        "--pattern",
        PATTERN,
        "--target",
        "cpu",
        "-o",
    ];
    let run = butterfly(&[&args[..], &[text(&file)]].concat())
        .output()
        .expect("runs");
    assert_eq!(run.status.code(), Some(2));
    assert!(
        said(&run).contains("is not an artifact folder"),
        "{}",
        said(&run)
    );
    // Two configs with the same name.
    let again = root.path().join("config.json");
    fs::copy(&config, &again).expect("copied");
    let args = [
        "compile",
        text(&config),
        text(&again),
        "--pattern",
        PATTERN,
        "--target",
        "cpu",
        "-o",
    ];
    let run = butterfly(&[&args[..], &[text(&folder)]].concat())
        .output()
        .expect("runs");
    assert_eq!(run.status.code(), Some(2));
    assert!(said(&run).contains("two configs"), "{}", said(&run));
    assert_eq!(fs::read_dir(&folder).expect("folder").count(), 0);
}

/// An existing file is unchanged if there is no room for the new one.
#[test]
fn disks_that_are_full() {
    let root = tempfile::tempdir().expect("root");
    let output = root.path().join("output.safetensors");
    fs::write(&output, "before").expect("written");
    for args in writers(&output) {
        // Limits every file to one block of `ulimit`, 512 or 1024 bytes, which stands in for a full
        // disk.
        let script = format!(
            "trap '' XFSZ; ulimit -f 1; exec '{}' \"$@\"",
            env!("CARGO_BIN_EXE_butterfly")
        );
        let run = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(&args)
            .output()
            .expect("sh");
        assert_eq!(run.status.code(), Some(2), "{args:?}: {}", said(&run));
        let message = said(&run);
        assert!(
            message.contains(text(&output)) && message.contains("free space"),
            "{message}"
        );
        assert_eq!(fs::read(&output).expect("as it was"), b"before");
        assert_eq!(fs::read_dir(root.path()).expect("root").count(), 1);
    }
}

/// Output files have the permissions that the umask leaves, as those of other programs do.
#[cfg(unix)]
#[test]
fn permissions_follow_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for (umask, of_files, of_folders) in [("022", 0o644, 0o755), ("007", 0o660, 0o770)] {
        let root = tempfile::tempdir().expect("root");
        let model = root.path().join("model");
        fs::create_dir(&model).expect("folder");
        let [file, plot, dir] =
            ["o.safetensors", "plot.svg", "made/artifacts"].map(|name| root.path().join(name));
        let config = fixture("models/llama/config.json");
        let compile = [
            "compile",
            text(&config),
            "--pattern",
            PATTERN,
            "--target",
            "cpu",
            "-o",
            text(&dir),
        ];
        let add = [&compile[..], &["--dtype", "f16", "--add"]].concat();
        let mut commands = writers(&file);
        commands.push(evaluation(&model, &plot));
        commands.push(compile.map(String::from).into());
        commands.push(add.into_iter().map(String::from).collect());
        for args in commands {
            let _ = fs::remove_file(&file);
            let script = format!(
                "umask {umask}; exec '{}' \"$@\"",
                env!("CARGO_BIN_EXE_butterfly")
            );
            let run = Command::new("sh")
                .args(["-c", &script, "sh"])
                .args(&args)
                .output()
                .expect("sh");
            assert!(run.status.success(), "{args:?}: {}", said(&run));
            if file.exists() {
                assert_eq!(mode(&file), of_files, "{args:?}");
            }
        }
        assert_eq!(mode(&plot), of_files);
        let kernels = dir.join("kernels");
        for folder in [&dir, &kernels, &root.path().join("made")] {
            assert_eq!(mode(folder), of_folders, "{}", folder.display());
        }
        assert_eq!(mode(&dir.join("manifest.json")), of_files);
        for kernel in fs::read_dir(&kernels).expect("kernels") {
            assert_eq!(mode(&kernel.expect("entry").path()), of_files);
        }
    }
}

/// Mesa prints an error about `XDG_RUNTIME_DIR` where nobody is logged in; the command hides it.
#[test]
fn nothing_is_said_of_a_desktop_that_is_not_there() {
    for set in [None, Some(""), Some("relative")] {
        let mut command = butterfly(&["doctor"]);
        match set {
            None => command.env_remove("XDG_RUNTIME_DIR"),
            Some(value) => command.env("XDG_RUNTIME_DIR", value),
        };
        let run = command.output().expect("runs");
        assert_eq!(
            (run.status.code(), said(&run)),
            (Some(0), String::new()),
            "{set:?}"
        );
    }
}

/// On a terminal, the progress of reading a prompt is shown.
#[test]
#[cfg(target_os = "linux")]
fn a_prompt_shows_its_progress() {
    let command = format!(
        "{} generate --model {} --tokens 1,2,3,4,5 --max-new-tokens 1 --chunk 1 --device cpu",
        env!("CARGO_BIN_EXE_butterfly"),
        text(&fixture("models/llama"))
    );
    // `script` runs the command on a terminal.
    let run = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .output()
        .expect("runs");
    let shown = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{shown}");
    assert!(
        shown.contains("prompt") && shown.contains("/5, "),
        "{shown}"
    );
}
