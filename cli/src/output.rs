//! Prints results on stdout, and remarks on stderr.
//!
//! Invariant: nothing else in this command prints, except clap (help and usage) and progress bars.
//! A reader of stdout that has gone away (`… | head`) is not a failure; the rest is dropped
//! silently. Any other error of stdout is a failure.

use crate::failure::Failure;
use std::fmt::{Arguments, Display};
use std::io::{ErrorKind, Write};

/// Prints a part of the result at once. Returns false if the reader has gone away.
pub(crate) fn stream(part: impl Display) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    let written = write!(out, "{part}").and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Bad(format!("stdout: cannot write: {error}"))),
    }
}

/// Prints the result, or the rest of it.
pub(crate) fn out(text: impl Display) -> Result<(), Failure> {
    stream(text).map(|_| ())
}

/// Prints a remark on a line of its own. An error of stderr is ignored: there is nowhere to report
/// it.
pub(crate) fn note(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
