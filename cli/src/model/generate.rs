//! `butterfly generate`: continues a text.

use super::continuation::Continuation;
use super::finite::{self, Watch};
use super::{Place, Setting, Task, open, policy, report, run_on, sparse, warn_of_length};
use crate::args::Generate as Command;
use crate::failure::Failure;
use crate::{output, source};
use butterfly::AttentionBackend;
use butterfly_ir::Dtype;
use butterfly_models::{Chat, Extent, Folder, Message, Policy, Sampler, Sampling, Stream};
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    dtype: Dtype,
    prompt_tokens: usize,
    capacity: usize,
    tokens: Vec<u32>,
    text: Option<String>,
    /// Whether the model gave a token that ends the text.
    ended: bool,
    /// From the start of the command to the first token, including loading weights and kernels.
    first_token_seconds: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: Option<f64>,
    memory_bytes: Option<u64>,
    /// Kernels that were compiled in this run; with artifacts there are none.
    compiled_kernels: Vec<String>,
    /// What is wrong with the logits, if not all are finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_finite: Option<String>,
    layers: Vec<report::LayerReport>,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let started = Instant::now();
    let folder = open(&command.model)?;
    say_defaults(command, &folder);
    let chat = match &command.tokens {
        Some(_) => None,
        None => Some(Chat::open(&command.model).map_err(Failure::bad)?),
    };
    let prompt = prompt(command, chat.as_ref())?;
    if prompt.is_empty() {
        return Err(Failure::Bad(
            "the prompt has no tokens; give some text".into(),
        ));
    }
    let all = prompt.len() + command.max_new_tokens as usize;
    warn_of_length(&folder.config, all);
    let capacity = command.run.capacity.map_or(all, |tokens| tokens as usize);
    if capacity < all {
        return Err(Failure::Bad(format!(
            "--capacity {capacity} is less than {} tokens of prompt and {} new ones; give at least {all}",
            prompt.len(),
            command.max_new_tokens
        )));
    }
    let sparse = sparse(&command.run, capacity)?;
    let policy = policy(&folder.config, sparse.as_ref(), &command.model)?;
    let work = Work {
        command,
        folder: &folder,
        policy: &policy,
        chat: chat.as_ref(),
        prompt: &prompt,
        capacity,
        started,
        json,
    };
    let setting = Setting {
        config: &folder.config,
        path: &command.model,
        dtype: folder.config.dtype,
        sparse: sparse.as_ref(),
    };
    let report = run_on(&command.run, &setting, work)?;
    if json {
        crate::print(true, &report, String::new)?;
        return finite::check(report.not_finite);
    }
    output::out("\n")?;
    let decode = report.decode_tokens_per_second;
    output::note(format_args!(
        "{} on {} ({}): first token after {:.2} s; {} tokens of prompt at {:.0} a second, {} new ones{}{}",
        report.dtype.name(),
        report.device,
        report.device_name,
        report.first_token_seconds,
        report.prompt_tokens,
        report.prefill_tokens_per_second,
        report.tokens.len(),
        decode.map_or(String::new(), |rate| format!(" at {rate:.1} a second")),
        report.memory_bytes.map_or(String::new(), |bytes| format!(
            "; {:.2} GB",
            bytes as f64 / 1e9
        )),
    ));
    output::note(format_args!("{}", report::text(&report.layers).trim_end()));
    finite::check(report.not_finite)
}

/// Notes the settings of `generation_config.json` that are not followed. Without flags the most
/// likely token is taken, so that a command always gives the same text.
fn say_defaults(command: &Command, folder: &Folder) {
    let path = command.model.join("generation_config.json");
    let defaults = &folder.defaults;
    if defaults.ends.as_ref().is_some_and(Vec::is_empty) {
        output::note(format_args!(
            "note: {}: no token ends a text",
            path.display()
        ));
    }
    if !defaults.sampling.is_empty() && command.temperature == 0.0 {
        let named = |name| defaults.sampling.iter().any(|(other, _)| other == name);
        let mut flags = match named("temperature") {
            true => String::new(),
            false => " --temperature 1".into(),
        };
        for (name, value) in &defaults.sampling {
            flags += &format!(" --{} {value}", name.replace('_', "-"));
        }
        output::note(format_args!(
            "note: {} asks for sampling; the most likely token is taken: give{flags} for what it asks",
            path.display()
        ));
    }
    if !defaults.ignored.is_empty() {
        let ignored = defaults.ignored.iter();
        let ignored: Vec<_> = ignored
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        output::note(format_args!(
            "note: {}: {} not followed: there is nothing like it here",
            path.display(),
            ignored.join(", ")
        ));
    }
}

/// The tokens to continue.
fn prompt(command: &Command, chat: Option<&Chat>) -> Result<Vec<u32>, Failure> {
    let Some(chat) = chat else {
        return Ok(command.tokens.clone().unwrap_or_default());
    };
    let text = match (&command.prompt, &command.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => source::read_text(path)?,
        (None, None) => String::new(),
    };
    if !command.chat {
        return chat.encode(&text, true).map_err(Failure::bad);
    }
    let message = |role: &str, content: String| Message {
        role: role.into(),
        content,
    };
    let system = command.system.clone();
    let system = system.map(|content| message("system", content));
    let messages: Vec<_> = system.into_iter().chain([message("user", text)]).collect();
    let text = chat.apply(&messages).map_err(Failure::bad)?;
    chat.encode(&text, false).map_err(Failure::bad)
}

struct Work<'a> {
    command: &'a Command,
    folder: &'a Folder,
    policy: &'a Policy,
    chat: Option<&'a Chat>,
    prompt: &'a [u32],
    capacity: usize,
    started: Instant,
    json: bool,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let capacity = self.capacity as u64;
        let chunk = u64::from(self.command.run.chunk).min(self.prompt.len() as u64);
        let extent = Extent {
            batch: 1,
            capacity,
            cached: self.policy.cached(capacity, chunk),
            chunk,
            logits: 1,
        };
        let (model, _) = place.load(self.folder, extent, 0)?;
        let mut continuation = Continuation {
            model: &model,
            policy: self.policy,
            state: model.state(1, Some(self.capacity), self.policy),
            sampler: Sampler::new(Sampling {
                temperature: self.command.temperature,
                top_k: self.command.top_k.unwrap_or(0),
                top_p: self.command.top_p,
                seed: self.command.seed,
            }),
            watch: Watch::default(),
        };

        let prefill = Instant::now();
        let chunk = self.command.run.chunk as usize;
        let bar = crate::progress(self.prompt.len() as u64, "prompt");
        let mut next = continuation.prefill(self.prompt, chunk, &bar)?;
        bar.finish_and_clear();
        let prefill_seconds = prefill.elapsed().as_secs_f64();
        let first_token_seconds = self.started.elapsed().as_secs_f64();

        let mut shown = Shown::new(self.chat, !self.json);
        let mut tokens = Vec::new();
        let mut steps = 0;
        let decode = Instant::now();
        let ends = &model.sizes.ends;
        let ended = loop {
            let Some(token) = next else {
                break false;
            };
            if ends.contains(&token) && !self.command.ignore_end {
                break true;
            }
            tokens.push(token);
            let read = shown.show(token)?;
            if !read || tokens.len() == self.command.max_new_tokens as usize {
                break false;
            }
            next = continuation.next(&[token])?;
            steps += 1;
        };
        let decode_seconds = decode.elapsed().as_secs_f64();
        Ok(Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            prompt_tokens: self.prompt.len(),
            capacity: self.capacity,
            text: shown.finish()?,
            tokens,
            ended,
            first_token_seconds,
            prefill_tokens_per_second: self.prompt.len() as f64 / prefill_seconds,
            decode_tokens_per_second: (steps > 0).then(|| steps as f64 / decode_seconds),
            memory_bytes: place.memory.taken(),
            compiled_kernels: butterfly::compiled(),
            not_finite: continuation.watch.says(Some(self.folder), place.dtype),
            layers: report::layers(self.policy),
        })
    }
}

/// Prints the text while it is generated.
struct Shown<'a> {
    /// Decodes tokens to text; without a tokenizer, token numbers are printed.
    text: Option<Stream<'a>>,
    stream: bool,
    first: bool,
}

impl<'a> Shown<'a> {
    fn new(chat: Option<&'a Chat>, stream: bool) -> Self {
        Self {
            text: chat.map(Chat::stream),
            stream,
            first: true,
        }
    }

    /// Prints the text that a token adds; an incomplete character waits for the rest of its bytes.
    /// Returns false if the reader has gone away.
    fn show(&mut self, token: u32) -> Result<bool, Failure> {
        let comma = if std::mem::take(&mut self.first) {
            ""
        } else {
            ","
        };
        let new = match &mut self.text {
            None => format!("{comma}{token}"),
            Some(text) => text.push(token),
        };
        self.print(&new)
    }

    /// Prints the rest, including an incomplete character, and returns the whole text.
    fn finish(mut self) -> Result<Option<String>, Failure> {
        let Some(text) = self.text.take() else {
            return Ok(None);
        };
        let (rest, whole) = text.finish().map_err(Failure::bad)?;
        self.print(&rest)?;
        Ok(Some(whole))
    }

    fn print(&self, text: &str) -> Result<bool, Failure> {
        match self.stream && !text.is_empty() {
            true => output::stream(text),
            false => Ok(true),
        }
    }
}
