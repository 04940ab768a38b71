//! What is printed: results on stdout, remarks on stderr.
//!
//! Invariant: nothing else in this command prints. A reader that went away (`… | head`) has seen
//! what it wanted: that is no failure, and nothing more is said. Any other failure of stdout is one.

use crate::failure::Failure;
use std::fmt::{Arguments, Display};
use std::io::{ErrorKind, Write};

/// Prints a part of the result as it comes; says whether somebody still reads.
pub(crate) fn stream(part: impl Display) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    let written = write!(out, "{part}").and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Bad(format!("stdout: cannot write: {error}"))),
    }
}

/// Prints the result, or all that is left of it.
pub(crate) fn out(text: impl Display) -> Result<(), Failure> {
    stream(text).map(|_| ())
}

/// Prints a remark, in a line of its own. There is nowhere to say that it could not be printed.
pub(crate) fn note(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
