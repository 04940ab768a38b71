//! Runs a case: gives the command's exit code, or the rule that it broke.

use crate::cases::Case;
use butterfly_tests::floats;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Limits of a command on files of a few kilobytes: seconds, and KiB of address space.
const SECONDS: u64 = 5;
const KIBIBYTES: u64 = 8 << 20;

/// The folder in which the files of a failed case are kept.
pub(crate) fn kept(seed: u64) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    target.join("mutations").join(seed.to_string())
}

/// Runs the command of `case` and checks how it ends.
pub(crate) fn judge(case: &Case) -> Result<i32, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    case.lay(folder.path());
    let (out, err) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let file = |path| File::create(path).map_err(|error| error.to_string());
    // The shell sets the memory limit, for this process only.
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -v {KIBIBYTES}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_butterfly"))
        .args(&case.args)
        .current_dir(folder.path())
        // With it set, a panic prints a backtrace.
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(file(&out)?)
        .stderr(file(&err)?)
        .spawn()
        .map_err(|error| error.to_string())?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if started.elapsed() > Duration::from_secs(SECONDS) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{:?}: more than {SECONDS} s", case.args));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let (stdout, stderr) = (read(&out), read(&err));
    let verdict = match status.code() {
        Some(code @ 0..=2) => ends(case, code, &stdout, &stderr, folder.path()).map(|()| code),
        Some(code) => Err(format!("exit code {code}")),
        None => Err(format!("ended by {status}")),
    };
    verdict.map_err(|fault| {
        let tail = |text: &str| text.chars().take(600).collect::<String>();
        format!(
            "{:?}: {fault}\n  stdout: {}\n  stderr: {}",
            case.args,
            tail(&stdout),
            tail(&stderr)
        )
    })
}

fn ends(case: &Case, code: i32, stdout: &str, stderr: &str, folder: &Path) -> Result<(), String> {
    if stderr.contains("panicked") {
        return Err("a panic".into());
    }
    if code != 0 && !stderr.contains("error") {
        return Err(format!("exit code {code} without an error on stderr"));
    }
    if stderr.len() > 20_000 {
        return Err(format!("{} bytes on stderr", stderr.len()));
    }
    if case.args.contains(&"--json".into()) {
        let object =
            serde_json::from_str(stdout).map_err(|error| format!("stdout is no JSON: {error}"))?;
        let serde_json::Value::Object(_) = object else {
            return Err("stdout is no JSON object".into());
        };
    }
    let output = folder.join(crate::cases::OUTPUT);
    match code {
        0 if output.is_file() => finite(&output),
        2 if output.exists() => Err("exit code 2 with an output".into()),
        _ => Ok(()),
    }?;
    match case.left(folder).as_slice() {
        [] => Ok(()),
        left => Err(format!("left behind: {left:?}")),
    }
}

/// Checks that all numbers of a safetensors output are finite. Only `lse` may be -infinity, for a
/// query without a key.
fn finite(output: &Path) -> Result<(), String> {
    let bytes = fs::read(output).map_err(|error| error.to_string())?;
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
    for name in file.names() {
        let good = |x: &f32| x.is_finite() || name == "lse" && *x == f32::NEG_INFINITY;
        if let Some(x) = floats(output, name).iter().find(|x| !good(x)) {
            return Err(format!("exit code 0, and `{name}` holds {x}"));
        }
    }
    Ok(())
}
