//! The prompts of `butterfly generate`: an argument, stdin, a file, or the lines of a file.

use crate::args::Generate;
use crate::failure::Failure;
use crate::output;
use butterfly_models::{Chat, Message};
use std::io::Read;
use std::path::Path;

/// A prompt.
pub(super) struct Prompt {
    /// The line of the file that holds it, counted from 1; `None` if all of the file does.
    pub(super) line: Option<usize>,
    pub(super) tokens: Vec<u32>,
}

/// Reads the prompts of a command; there is at least one, and each has a token.
pub(super) fn read(command: &Generate, chat: Option<&Chat>) -> Result<Vec<Prompt>, Failure> {
    let one = |tokens| Prompt { line: None, tokens };
    let prompts = match (chat, &command.prompt, &command.prompt_file) {
        (None, ..) => vec![one(command.tokens.clone().unwrap_or_default())],
        (Some(chat), Some(text), _) if text == "-" => {
            let text = from_stdin()?;
            vec![one(encode(command, chat, without_newline(&text))?)]
        }
        (Some(chat), Some(text), _) => vec![one(encode(command, chat, text)?)],
        (Some(chat), None, Some(path)) if command.batch => lines(command, chat, path)?,
        (Some(chat), None, Some(path)) => vec![one(encode(command, chat, &from_file(path)?)?)],
        (Some(_), None, None) => Vec::new(),
    };
    let empty = prompts.iter().find(|prompt| prompt.tokens.is_empty());
    match (empty, &command.prompt_file) {
        (None, _) => Ok(prompts),
        (Some(Prompt { line: Some(n), .. }), Some(path)) => Err(Failure::file(
            path,
            format!("line {n} has no tokens; give some text"),
        )),
        (Some(_), _) => Err(Failure::Bad(
            "the prompt has no tokens; give some text".into(),
        )),
    }
}

/// The lines of a file that are not empty.
fn lines(command: &Generate, chat: &Chat, path: &Path) -> Result<Vec<Prompt>, Failure> {
    let text = from_file(path)?;
    let mut empty = 0;
    let mut prompts = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        if text.is_empty() {
            empty += 1;
            continue;
        }
        prompts.push(Prompt {
            line: Some(line),
            tokens: encode(command, chat, text)?,
        });
    }
    if prompts.is_empty() {
        return Err(Failure::file(path, "holds no prompt; give one a line"));
    }
    if empty > 0 {
        let path = path.display();
        output::note(format_args!(
            "note: {path}: {empty} empty lines passed over"
        ));
    }
    Ok(prompts)
}

/// The tokens of a prompt; with `--chat`, of the conversation that it begins.
fn encode(command: &Generate, chat: &Chat, text: &str) -> Result<Vec<u32>, Failure> {
    if !command.chat {
        return chat.encode(text, true).map_err(Failure::bad);
    }
    let messages = begin(command.system.as_deref())
        .into_iter()
        .chain([message("user", text)]);
    let text = chat.apply(&messages.collect::<Vec<_>>());
    chat.encode(&text.map_err(Failure::bad)?, false)
        .map_err(Failure::bad)
}

/// The messages before the user's first.
pub(super) fn begin(system: Option<&str>) -> Vec<Message> {
    system
        .map(|text| message("system", text))
        .into_iter()
        .collect()
}

/// What `role` says.
pub(super) fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.into(),
        content: content.into(),
    }
}

fn from_file(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return from_stdin();
    }
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::file(path, format!("cannot read: {error}")))?;
    utf8(bytes, &path.display().to_string(), 1)
}

fn from_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|error| Failure::Bad(format!("stdin: cannot read: {error}")))?;
    utf8(bytes, "stdin", 1)
}

/// The text of `bytes`, which begin with the line numbered `first` of what `name` says. A byte-order
/// mark at the beginning of a file is no part of its text.
pub(super) fn utf8(bytes: Vec<u8>, name: &str, first: usize) -> Result<String, Failure> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let (before, wrong) = error.as_bytes().split_at(at);
        let newlines = before.iter().filter(|byte| **byte == b'\n').count();
        let line = before.rsplit(|byte| *byte == b'\n').next();
        Failure::Bad(format!(
            "{name}: line {}: byte {} of the line, {:#04x}, is not UTF-8; save the text as UTF-8",
            first + newlines,
            line.map_or(0, <[u8]>::len) + 1,
            wrong.first().copied().unwrap_or_default()
        ))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) if first == 1 => rest.to_string(),
        Some(_) | None => text,
    })
}

/// A text without the newline at its end.
pub(super) fn without_newline(text: &str) -> &str {
    let line = text.strip_suffix('\n');
    line.map_or(text, |line| line.strip_suffix('\r').unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_that_is_wrong_is_named() {
        let said = |bytes: &[u8]| match utf8(bytes.to_vec(), "file", 1) {
            Err(Failure::Bad(said)) => said,
            other => panic!("{other:?}"),
        };
        assert!(said(b"\xff\xfeO").starts_with("file: line 1: byte 1 of the line, 0xff,"));
        assert!(said(b"a\r\nb\xc3(").starts_with("file: line 2: byte 2 of the line, 0xc3,"));
        // A character that the end of the text cuts off.
        assert!(
            said(
                "a\n\n\u{e4}b\u{20ac}"
                    .as_bytes()
                    .split_last()
                    .expect("bytes")
                    .1
            )
            .starts_with("file: line 3: byte 4 of the line, 0xe2,")
        );
        let read =
            |text: &str, first| utf8(text.as_bytes().to_vec(), "file", first).expect("UTF-8");
        assert_eq!(read("\u{feff}\u{feff}a", 1), "\u{feff}a");
        assert_eq!(read("\u{feff}a", 2), "\u{feff}a");
    }

    #[test]
    fn one_newline_at_the_end() {
        for (text, line) in [("", ""), ("a\n\n", "a\n"), ("a\r\n", "a"), ("a\r", "a\r")] {
            assert_eq!(without_newline(text), line);
        }
    }
}
