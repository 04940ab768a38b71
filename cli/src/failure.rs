//! How a command fails: what is printed, and the exit code.

use crate::output;
use std::fmt::Display;
use std::process::ExitCode;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A check did not hold; the result was printed. Exit code 1.
    Check(String),
    /// Bad input or environment. Exit code 2.
    Bad(String),
}

impl Failure {
    /// Bad input or environment, with the message of `error`.
    pub(crate) fn bad(error: impl Display) -> Self {
        Self::Bad(error.to_string())
    }

    /// Bad input in a file.
    pub(crate) fn file(path: &std::path::Path, error: impl Display) -> Self {
        Self::Bad(format!("{}: {error}", path.display()))
    }

    /// Prints the failure on stderr, and with `--json` as an object on stdout where the
    /// command did not print one.
    pub(crate) fn report(self, json: bool) -> ExitCode {
        let (message, code) = match self {
            Self::Check(message) => (message, 1),
            Self::Bad(message) => {
                if json {
                    let object = serde_json::json!({ "error": message });
                    // Where stdout is what failed, stderr and the exit code say so.
                    let _ = output::out(format_args!("{object}\n"));
                }
                (message, 2)
            }
        };
        let prefix = if message.starts_with("error") {
            ""
        } else {
            "error: "
        };
        output::note(format_args!("{prefix}{}", message.trim_end()));
        ExitCode::from(code)
    }
}
