//! What a user says, line by line: from a terminal with an editor, or from anything else.

use super::interrupt::Interrupt;
use super::prompts::{utf8, without_newline};
use crate::failure::Failure;
use rustyline::error::ReadlineError;
use rustyline::{Behavior, Config, DefaultEditor};
use std::io::{BufRead, IsTerminal};

/// Where lines come from.
pub(super) enum Lines {
    /// A terminal. Lines can be edited and called back while the program runs; none are saved.
    Terminal(Box<DefaultEditor>),
    /// A pipe or a file, of which so many lines were read.
    Other(usize),
}

/// What there is to read.
pub(super) enum Input {
    Line(String),
    /// Ctrl-C at the prompt of a terminal.
    Interrupted,
    End,
}

impl Lines {
    /// Those of stdin. A terminal is spoken to directly, so that stdout may be a file.
    pub(super) fn of_stdin() -> Result<Self, Failure> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Other(0));
        }
        let config = Config::builder()
            .behavior(Behavior::PreferTerm)
            .auto_add_history(true)
            .build();
        let editor = DefaultEditor::with_config(config).map_err(unusable)?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    pub(super) fn is_terminal(&self) -> bool {
        match self {
            Self::Terminal(_) => true,
            Self::Other(_) => false,
        }
    }

    /// Waits for the next line.
    pub(super) fn next(&mut self, interrupt: Interrupt) -> Result<Input, Failure> {
        match self {
            Self::Terminal(editor) => {
                // The editor reads Ctrl-C as a key, and has to put the terminal back at its end.
                interrupt.begin();
                match editor.readline("> ") {
                    Ok(line) => Ok(Input::Line(line)),
                    Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
                    Err(ReadlineError::Eof) => Ok(Input::End),
                    Err(error) => Err(unusable(error)),
                }
            }
            Self::Other(count) => {
                interrupt.wait();
                let mut bytes = Vec::new();
                let read = std::io::stdin().lock().read_until(b'\n', &mut bytes);
                interrupt.begin();
                read.map_err(|error| Failure::Bad(format!("stdin: cannot read: {error}")))?;
                if bytes.is_empty() {
                    return Ok(Input::End);
                }
                *count += 1;
                let line = utf8(bytes, "stdin", *count)?;
                Ok(Input::Line(without_newline(&line).to_string()))
            }
        }
    }
}

fn unusable(error: ReadlineError) -> Failure {
    Failure::Bad(format!(
        "the terminal: {error}; give the lines by a pipe instead"
    ))
}
