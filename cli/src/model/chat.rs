//! `butterfly chat`: a conversation, line by line.

use super::continuation::Continuation;
use super::conversation::{Answer, Conversation, Refused, Stop};
use super::defaults;
use super::finite::{self, Watch};
use super::interrupt::Interrupt;
use super::lines::{Input, Lines};
use super::memory::Use;
use super::prompts::{begin, message};
use super::shown::Shown;
use super::{Place, Setting, Task, chunk_of, open, policy, report, run_on, sparse, warn_of_length};
use crate::args::Chat as Command;
use crate::failure::Failure;
use crate::output;
use butterfly::AttentionBackend;
use butterfly_ir::Dtype;
use butterfly_models::{Chat, Checkpoint, Extent, Message, Policy};
use serde::Serialize;

/// Capacity of a conversation, in tokens, if none is given and the model was made for more.
const CAPACITY: usize = 8192;

const HELP: &str = "\
/help   lists these commands
/reset  begins a new conversation
/quit   ends, and so does Ctrl-D
Ctrl-C stops an answer; at the prompt, the second one ends.
Everything else is said to the model.";

#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    dtype: Dtype,
    capacity: usize,
    turns: Vec<Turn>,
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    #[serde(flatten)]
    memory: Use,
    /// Kernels that were compiled in this run; with artifacts there are none.
    compiled_kernels: Vec<String>,
    /// What is wrong with the logits, if not all are finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_finite: Option<String>,
    layers: Vec<report::LayerReport>,
}

#[derive(Serialize)]
struct Turn {
    user: String,
    /// The answer.
    text: String,
    tokens: Vec<u32>,
    /// Tokens of the conversation up to the answer.
    prompt_tokens: usize,
    /// Those of them that were in the caches.
    reused_tokens: usize,
    /// Whether the model gave a token that ends the text.
    ended: bool,
    /// Whether Ctrl-C stopped the answer.
    interrupted: bool,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let folder = open(&command.model, &command.run)?;
    defaults::note(&command.model, &folder.defaults, &command.draw);
    let chat = Chat::open(&command.model).map_err(Failure::bad)?;
    let begin = begin(command.system.as_deref());
    // A template that cannot be used is found before weights are loaded.
    let trial = [&begin[..], &[message("user", "Hello")]].concat();
    chat.apply(&trial).map_err(Failure::bad)?;
    let made_for = folder.config.max_positions as usize;
    let capacity = match command.run.capacity {
        Some(tokens) => tokens as usize,
        None => CAPACITY.min(made_for),
    };
    warn_of_length(&folder.config, capacity);
    let sparse = sparse(&command.run, capacity, (&folder.config, &folder.sizes))?;
    let policy = policy(&folder.config, sparse.as_ref(), &command.model)?;
    let work = Work {
        command,
        folder: &folder,
        policy: &policy,
        chat: &chat,
        begin,
        capacity,
        json,
    };
    let setting = Setting {
        config: &folder.config,
        path: &command.model,
        dtype: folder.config.dtype,
        sparse: sparse.as_ref(),
    };
    let report = run_on(&command.run, &setting, work)?;
    match json {
        true => crate::print(true, &report, String::new)?,
        false => output::note(format_args!("{}", text_of(&report))),
    }
    finite::check(report.not_finite)
}

fn text_of(report: &Report) -> String {
    let sum = |count: fn(&Turn) -> usize| report.turns.iter().map(count).sum::<usize>();
    let rate = |rate: Option<f64>| rate.map_or(String::new(), |n| format!(" at {n:.1} a second"));
    format!(
        "{} on {} ({}): {} answers; {} tokens of prompts, {} of them read before, the others{}; {} new ones{}{}\n{}",
        report.dtype.name(),
        report.device,
        report.device_name,
        report.turns.len(),
        sum(|turn| turn.prompt_tokens),
        sum(|turn| turn.reused_tokens),
        rate(report.prefill_tokens_per_second),
        sum(|turn| turn.tokens.len()),
        rate(report.decode_tokens_per_second),
        report.memory.text(),
        report::text(&report.layers).trim_end()
    )
}

struct Work<'a> {
    command: &'a Command,
    folder: &'a Checkpoint,
    policy: &'a Policy,
    chat: &'a Chat,
    begin: Vec<Message>,
    capacity: usize,
    json: bool,
}

/// What a line is.
enum Said<'a> {
    Nothing,
    Help,
    Reset,
    Quit,
    Unknown(&'a str),
    Text(&'a str),
}

impl<'a> Said<'a> {
    /// A command is a slash and a word, alone on the line: `/etc/hosts` is text.
    fn of(line: &'a str) -> Self {
        let word = line.trim().strip_prefix('/');
        let word = word.filter(|word| word.chars().all(char::is_alphabetic) && !word.is_empty());
        match word {
            None if line.trim().is_empty() => Self::Nothing,
            None => Self::Text(line),
            Some("help") => Self::Help,
            Some("reset") => Self::Reset,
            Some("quit") => Self::Quit,
            Some(word) => Self::Unknown(word),
        }
    }
}

/// Sums over answers.
#[derive(Default)]
struct Sums {
    read: usize,
    prefill_seconds: f64,
    drawn: usize,
    decode_seconds: f64,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let capacity = self.capacity as u64;
        let all = chunk_of::<B>(&self.command.run);
        let chunk = u64::from(all).min(capacity);
        let extent = Extent {
            batch: 1,
            capacity,
            cached: self.policy.cached(capacity, chunk),
            expanded: self.policy.expanded(capacity, chunk),
            chunk,
            logits: 1,
        };
        let (model, _, needs) = place.load(self.folder, extent, 0)?;
        let interrupt = Interrupt::listen()?;
        let mut conversation = Conversation {
            continuation: Continuation {
                model: &model,
                policy: self.policy,
                state: model.state(1, Some(self.capacity), self.policy),
                texts: vec![(self.command.draw.sampler(), 0)],
                watch: Watch::default(),
                interrupt: Some(interrupt),
            },
            chat: self.chat,
            messages: self.begin.clone(),
            begin: self.begin.clone(),
            read: Vec::new(),
            capacity: self.capacity,
            chunk: all as usize,
            most: self.command.max_new_tokens.map(|most| most as usize),
        };
        let (turns, sums) = self.talk(&mut conversation, interrupt)?;
        let rate = |tokens: usize, seconds| (tokens > 0).then(|| tokens as f64 / seconds);
        let watch = &conversation.continuation.watch;
        Ok(Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            capacity: self.capacity,
            turns,
            prefill_tokens_per_second: rate(sums.read, sums.prefill_seconds),
            decode_tokens_per_second: rate(sums.drawn, sums.decode_seconds),
            memory: place.memory.beside(&needs),
            compiled_kernels: butterfly::compiled(),
            not_finite: watch.says(Some(self.folder), place.dtype),
            layers: report::layers(self.policy),
        })
    }
}

impl Work<'_> {
    /// Answers lines until there are no more.
    fn talk<B: AttentionBackend>(
        &self,
        conversation: &mut Conversation<'_, B>,
        interrupt: Interrupt,
    ) -> Result<(Vec<Turn>, Sums), Failure> {
        let mut lines = Lines::of_stdin()?;
        if lines.is_terminal() {
            output::note(format_args!(
                "room for {} tokens; /help lists commands, Ctrl-D ends",
                self.capacity
            ));
        }
        let (mut turns, mut sums) = (Vec::new(), Sums::default());
        // Whether Ctrl-C was the last that happened.
        let mut interrupted = false;
        loop {
            let line = match lines.next(interrupt)? {
                Input::Line(line) => line,
                Input::Interrupted if !interrupted => {
                    output::note(format_args!("Ctrl-C again, or Ctrl-D, ends"));
                    interrupted = true;
                    continue;
                }
                Input::Interrupted | Input::End => return Ok((turns, sums)),
            };
            interrupted = false;
            let text = match Said::of(&line) {
                Said::Nothing => continue,
                Said::Quit => return Ok((turns, sums)),
                Said::Help => {
                    output::note(format_args!("{HELP}"));
                    continue;
                }
                Said::Reset => {
                    conversation.reset();
                    output::note(format_args!("a new conversation"));
                    continue;
                }
                Said::Unknown(word) => {
                    output::note(format_args!(
                        "there is no command /{word}; /help lists them"
                    ));
                    continue;
                }
                Said::Text(text) => text,
            };
            let shown = Shown::new(Some(self.chat), !self.json);
            let bar = crate::progress(0, "prompt");
            let answer = match conversation.say(text, shown, &bar) {
                Ok(answer) => answer,
                Err(Refused::Failed(failure)) => return Err(failure),
                Err(Refused::Text(error)) => {
                    output::note(format_args!("error: {error}"));
                    continue;
                }
                Err(Refused::Full(tokens)) => {
                    output::note(format_args!(
                        "error: with this line the conversation has {tokens} tokens, which leaves no room for an answer in a capacity of {}; the line was not taken: {WAY_OUT}",
                        self.capacity
                    ));
                    continue;
                }
            };
            if !self.json {
                output::out("\n")?;
            }
            sums.read += answer.read;
            sums.prefill_seconds += answer.prefill_seconds;
            sums.drawn += answer.decoded.drawn;
            sums.decode_seconds += answer.decoded.seconds;
            let stop = answer.stop;
            interrupted = stop == Stop::Interrupted;
            turns.push(turn(text, answer));
            match stop {
                Stop::Ended | Stop::Most => {}
                Stop::Capacity => output::note(format_args!(
                    "the answer stopped: the capacity of {} tokens is used up; {WAY_OUT}",
                    self.capacity
                )),
                Stop::Interrupted => output::note(format_args!("stopped by Ctrl-C")),
                Stop::NotFinite | Stop::Unread => return Ok((turns, sums)),
            }
        }
    }
}

/// What to do when a conversation is as long as there is room for.
const WAY_OUT: &str =
    "/reset begins a new conversation, a larger --capacity has room for a longer one";

fn turn(user: &str, answer: Answer) -> Turn {
    let new = answer.decoded.texts.into_iter().next().unwrap_or_default();
    Turn {
        user: user.into(),
        text: answer.text,
        tokens: new.tokens,
        prompt_tokens: answer.prompt,
        reused_tokens: answer.reused,
        ended: new.ended,
        interrupted: answer.stop == Stop::Interrupted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_word_alone() {
        let is = |line| match Said::of(line) {
            Said::Nothing => "nothing",
            Said::Help => "help",
            Said::Reset => "reset",
            Said::Quit => "quit",
            Said::Unknown(word) => word,
            Said::Text(_) => "text",
        };
        for (line, what) in [
            ("", "nothing"),
            (" \t", "nothing"),
            ("/help", "help"),
            (" /reset ", "reset"),
            ("/quit", "quit"),
            ("/exit", "exit"),
            ("/", "text"),
            ("/etc/hosts", "text"),
            ("/help me", "text"),
            ("help", "text"),
        ] {
            assert_eq!(is(line), what, "{line}");
        }
    }
}
