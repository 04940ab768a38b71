//! How a command fails: what is printed, and the exit code.

use crate::output;
use butterfly_ir::pattern::diagnostic::brief;
use std::any::Any;
use std::fmt::Display;
use std::process::ExitCode;

/// Most characters of a line of a message. Longer lines, which repeat a long value or name, are cut
/// in the middle.
const WIDTH: usize = 1000;

/// The exit code of a process that Ctrl-C ended, as shells give it: 128 and the signal's number.
pub(crate) const INTERRUPTED: u8 = 130;

/// Prints what is wrong with the command line, or the help that it asks for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    let short = brief(&text, WIDTH);
    if short == text {
        error.exit();
    }
    output::note(format_args!("{}", short.trim_end()));
    ExitCode::from(2)
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A check did not hold; the result was printed. Exit code 1.
    Check(String),
    /// Bad input or environment. Exit code 2.
    Bad(String),
    /// Ctrl-C stopped the command; what was done until then was printed. Exit code 130.
    Interrupted,
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

    /// Prints the failure on stderr; with `--json` also as an object on stdout, if the command has
    /// not printed one.
    pub(crate) fn report(self, json: bool) -> ExitCode {
        let (message, code) = match self {
            Self::Interrupted => return ExitCode::from(INTERRUPTED),
            Self::Check(message) => (message, 1),
            Self::Bad(message) => {
                if json {
                    let object = serde_json::json!({ "error": brief(&message, WIDTH) });
                    // If stdout itself has failed, stderr and the exit code still report it.
                    let _ = output::out(format_args!("{object}\n"));
                }
                (message, 2)
            }
        };
        let message = brief(&message, WIDTH);
        let prefix = if message.starts_with("error") {
            ""
        } else {
            "error: "
        };
        output::note(format_args!("{prefix}{}", message.trim_end()));
        ExitCode::from(code)
    }
}

/// The message of a panic.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it does not say why")
}
