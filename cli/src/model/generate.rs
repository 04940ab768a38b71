//! `butterfly generate`: continues a text, or each line of a file.

use super::batch::{self, Running, Sums};
use super::defaults;
use super::finite;
use super::interrupt::Interrupt;
use super::listing::{Line, Listing};
use super::memory::Use;
use super::prompts::{self, Prompt};
use super::shown::Shown;
use super::{Place, Setting, Task, open, policy, report, run_on, sparse, warn_of_length};
use crate::args::Generate as Command;
use crate::failure::Failure;
use crate::output;
use butterfly::AttentionBackend;
use butterfly_ir::Dtype;
use butterfly_models::{Chat, Checkpoint, Policy};
use indicatif::ProgressBar;
use serde::Serialize;
use std::time::Instant;

/// What was generated, and what it took.
#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    dtype: Dtype,
    /// Tokens that were read, of all prompts.
    prompt_tokens: usize,
    /// Of the longest text.
    capacity: usize,
    #[serde(flatten)]
    texts: Texts,
    /// Whether Ctrl-C stopped the command.
    interrupted: bool,
    /// From the start of the command to the first token, including loading weights and kernels.
    first_token_seconds: Option<f64>,
    prefill_tokens_per_second: f64,
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
#[serde(untagged)]
enum Texts {
    One {
        tokens: Vec<u32>,
        text: Option<String>,
        /// Whether the model gave a token that ends the text.
        ended: bool,
    },
    /// Those of a file that were begun, in the order of its lines.
    Lines {
        texts: Vec<Line>,
        /// Number of prompts in the file.
        prompts: usize,
        /// Number of batches that ran.
        batches: usize,
        /// Tokens of prompts and new ones, over the time that reading and generating them took.
        tokens_per_second: f64,
    },
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let started = Instant::now();
    let folder = open(&command.model, &command.run)?;
    defaults::note(&command.model, &folder.defaults, &command.draw);
    let chat = match &command.tokens {
        Some(_) => None,
        None => Some(Chat::open(&command.model).map_err(Failure::bad)?),
    };
    let prompts = prompts::read(command, chat.as_ref())?;
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max();
    let longest = longest.unwrap_or(0);
    let all = longest + command.max_new_tokens as usize;
    warn_of_length(&folder.config, all);
    let capacity = command.run.capacity.map_or(all, |tokens| tokens as usize);
    if capacity < all {
        return Err(Failure::Bad(format!(
            "--capacity {capacity} is less than {longest} tokens of prompt and {} new ones; give at least {all}",
            command.max_new_tokens
        )));
    }
    let sparse = sparse(&command.run, capacity, (&folder.config, &folder.sizes))?;
    let policy = policy(&folder.config, sparse.as_ref(), &command.model)?;
    let work = Work {
        command,
        folder: &folder,
        policy: &policy,
        chat: chat.as_ref(),
        prompts: &prompts,
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
    } else {
        if let Texts::One { .. } = report.texts {
            output::out("\n")?;
        }
        output::note(format_args!("{}", text_of(&report)));
    }
    finite::check(report.not_finite)?;
    match report.interrupted {
        true => Err(Failure::Interrupted),
        false => Ok(()),
    }
}

fn text_of(report: &Report) -> String {
    let (new, of) = match &report.texts {
        Texts::One { tokens, .. } => (tokens.len(), String::new()),
        Texts::Lines {
            texts,
            prompts,
            batches,
            tokens_per_second,
        } => (
            texts.iter().map(|text| text.tokens.len()).sum(),
            format!(
                "; {} of {prompts} prompts in {batches} {}, {tokens_per_second:.0} tokens a second over all",
                texts.len(),
                if *batches == 1 { "batch" } else { "batches" }
            ),
        ),
    };
    let first = match report.first_token_seconds {
        Some(seconds) => format!("first token after {seconds:.2} s"),
        None => "no token yet".into(),
    };
    let decode = report.decode_tokens_per_second;
    let rate = decode.map_or(String::new(), |rate| format!(" at {rate:.1} a second"));
    let memory = report.memory.text();
    let interrupted = match report.interrupted {
        true => "; stopped by Ctrl-C",
        false => "",
    };
    format!(
        "{} on {} ({}): {first}; {} tokens of prompt at {:.0} a second, {new} new ones{rate}{of}{memory}{interrupted}\n{}",
        report.dtype.name(),
        report.device,
        report.device_name,
        report.prompt_tokens,
        report.prefill_tokens_per_second,
        report::text(&report.layers).trim_end()
    )
}

struct Work<'a> {
    command: &'a Command,
    folder: &'a Checkpoint,
    policy: &'a Policy,
    chat: Option<&'a Chat>,
    prompts: &'a [Prompt],
    capacity: usize,
    started: Instant,
    json: bool,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let plan = batch::plan(&place, self.folder, self.policy, self.prompts, self.command)?;
        let (model, _, needs) = place.load(self.folder, plan.extent, 0)?;
        let interrupt = Interrupt::listen()?;
        let running = Running {
            command: self.command,
            prompts: self.prompts,
            model: &model,
            policy: self.policy,
            capacity: self.capacity,
            interrupt,
            started: self.started,
        };
        let mut sums = Sums::default();
        let texts = match (&self.command.prompt_file, self.chat) {
            (Some(path), Some(chat)) if self.command.batch => {
                let print = (!self.json).then_some(path.as_path());
                let mut listing = Listing::new(chat, self.prompts, print);
                let bar = crate::progress(self.prompts.len() as u64, "prompts");
                for batch in &plan.batches {
                    let hidden = ProgressBar::hidden();
                    let new = running.run(batch, &mut sums, &hidden, |_, _| Ok(true))?;
                    bar.inc(batch.len() as u64);
                    let read = bar.suspend(|| listing.add(batch, new))?;
                    if !read || interrupt.asked() {
                        break;
                    }
                }
                bar.finish_and_clear();
                Texts::Lines {
                    texts: listing.finish()?,
                    prompts: self.prompts.len(),
                    batches: sums.batches,
                    tokens_per_second: sums.tokens_per_second(),
                }
            }
            (_, chat) => {
                let bar = crate::progress(self.prompts[0].tokens.len() as u64, "prompt");
                let mut shown = Shown::new(chat, !self.json);
                let show = |_, token| shown.show(token);
                let new = running.run(&[0], &mut sums, &bar, show)?.remove(0);
                Texts::One {
                    tokens: new.tokens,
                    text: shown.finish()?,
                    ended: new.ended,
                }
            }
        };
        Ok(Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            prompt_tokens: sums.read,
            capacity: self.capacity,
            texts,
            interrupted: interrupt.asked(),
            first_token_seconds: sums.first_token_seconds,
            prefill_tokens_per_second: sums.read as f64 / sums.prefill_seconds,
            decode_tokens_per_second: (sums.drawn > 0)
                .then(|| sums.drawn as f64 / sums.decode_seconds),
            memory: place.memory.beside(&needs),
            compiled_kernels: butterfly::compiled(),
            not_finite: sums.watch.says(Some(self.folder), place.dtype),
            layers: report::layers(self.policy),
        })
    }
}
