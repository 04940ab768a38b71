//! `butterfly calibrate`: which layers or kv heads of a model a pattern can replace.
//!
//! In:  a model, a text, a pattern. Out: a policy file. The text is cut into windows, and as many as
//! are asked for, at even distances, are used: every second one to choose on, the others to verify.
//! Random weights read random tokens, and tell time and memory.

mod earlier;
mod measure;
mod page;
mod partial;
mod recall;
mod report;
mod room;
mod subject;
mod text;

use super::{Setting, jit, run_on, warn_of_length};
use crate::args::{By, Calibrate as Command};
use crate::failure::Failure;
use crate::output::note;
use crate::source;
use butterfly_compiler::config;
use butterfly_ir::Sparsity;
use butterfly_models::calibrate::{Reading, Site, Unit, compose, same, sites};
use butterfly_models::{Chat, Policy};
use butterfly_runtime::artifacts::{check_file, write_file};
use earlier::Earlier;
use measure::Work;
use partial::Partial;
use recall::Questions;
use subject::Subject;
use text::Text;

/// Replaces attention if no pattern is given: 512 keys, of which 64 are the first ones.
const PATTERN: &str = "block 64\ncausal & (window(448) | sink(1))";
/// Tokens of a window, if the model takes as many.
const WINDOW: u32 = 4096;
/// Bytes that dense logits of a window take at most, unless `--every` asks for more of them.
const LOGITS: u64 = 2 << 30;

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let task = Calibration::new(command)?;
    let digest = task.digest()?;
    let partial = Partial::open(&command.output, &digest)?;
    if partial.len() > 0 {
        note(format_args!(
            "note: {} measurements of an earlier start are used",
            partial.len()
        ));
    }
    let setting = Setting {
        config: &task.subject.config,
        path: &task.subject.path,
        dtype: task.subject.config.dtype,
        sparse: None,
    };
    let work = Work {
        task: &task,
        partial,
    };
    let (report, policy, partial) = run_on(&command.run, &setting, work)?;
    let text = policy.text().map_err(Failure::bad)?;
    write_file(&command.output, text.as_bytes()).map_err(Failure::bad)?;
    if let Some(path) = &command.report {
        let page = crate::page::html(&page::page(&report))?;
        write_file(path, page.as_bytes()).map_err(Failure::bad)?;
    }
    partial.remove()?;
    crate::print(json, &report, || report::text(&report))
}

impl From<By> for Unit {
    fn from(by: By) -> Self {
        match by {
            By::Head => Self::Head,
            By::Layer => Self::Layer,
        }
    }
}

/// A calibration whose input was checked.
struct Calibration<'a> {
    command: &'a Command,
    subject: Subject,
    text: Text,
    /// What replaces, and in which layers.
    sparsity: Sparsity,
    /// The parts that are replaced, each alone at first.
    sites: Vec<Site>,
    /// Their damages, if they are not to be measured.
    earlier: Option<Earlier>,
    /// First tokens of a window that see the same by the pattern.
    same: usize,
    /// First scored position.
    skip: usize,
    every: usize,
    tail: Option<u32>,
    capacity: usize,
    /// Prompts with a hidden fact, if they are asked for.
    questions: Option<Questions>,
}

impl<'a> Calibration<'a> {
    fn new(command: &'a Command) -> Result<Self, Failure> {
        if let Some(path) = &command.run.policy {
            return Err(Failure::Bad(format!(
                "--policy {}: a policy is what calibration makes; give the pattern that replaces attention by --pattern, or the policy that damages are taken from by --from",
                path.display()
            )));
        }
        if let Some(dir) = &command.run.artifacts {
            return Err(Failure::Bad(format!(
                "--artifacts {}: calibration runs patterns for which no folder has kernels; leave it out, and compile for the policy afterwards",
                dir.display()
            )));
        }
        let subject = Subject::open(command)?;
        let limit = subject.config.max_positions;
        let window = command.window.unwrap_or(WINDOW.min(limit)).max(2);
        warn_of_length(&subject.config, window as usize);
        let sizes = [window as usize, command.windows as usize];
        let (text, chat) = match &command.text {
            Some(path) => {
                let chat = Chat::open(&subject.path).map_err(Failure::bad)?;
                (Text::read(path, &chat, sizes)?, Some(chat))
            }
            None => {
                note(format_args!(
                    "note: weights and tokens are random: damages, KL and perplexity mean nothing; time and memory do"
                ));
                (Text::drawn(command.seed, &subject, sizes)?, None)
            }
        };
        let capacity = command.run.capacity.unwrap_or(window);
        if capacity < window {
            return Err(Failure::Bad(format!(
                "--capacity {capacity} is less than a window of {window} tokens; give at least {window}"
            )));
        }
        let sparsity = sparsity(command, capacity)?;
        super::check_chunk(&command.run, &sparsity)?;
        let of_model = |error| Failure::file(&subject.path, error);
        let layers = config::swapped(&subject.config, &sparsity).map_err(of_model)?;
        let layers: Vec<u32> = layers.into_iter().map(|swapped| swapped.layer).collect();
        let unit = command.by.into();
        let sites = sites(&subject.config, unit, &layers);
        if sites.is_empty() {
            let error =
                "no layer is left to calibrate; name layers with softmax attention in --swap";
            return Err(Failure::file(&subject.path, error));
        }
        let same = same(&subject.config, &sparsity, window, capacity).map_err(of_model)?;
        if same >= window {
            return Err(Failure::Bad(format!(
                "--pattern: every query of a window of {window} tokens sees all that it sees by the model's own attention, so nothing would be measured; give a larger --window, or a pattern of fewer keys"
            )));
        }
        let tail = command.tail;
        if u64::from(tail) + u64::from(same) >= u64::from(window) {
            return Err(Failure::Bad(format!(
                "--tail {tail}: with it every query of a window of {window} tokens sees all keys, so nothing would be measured; give less than {}",
                window - same
            )));
        }
        let skip = command.skip.unwrap_or(same);
        if skip >= window {
            return Err(Failure::Bad(format!(
                "--skip {skip}: a window of {window} tokens has no such position; give less than {window}"
            )));
        }
        let earlier = command.from.as_deref();
        let earlier = earlier.map(|path| earlier::read(path, &subject, (unit, &sites)));
        let questions = match (command.retrieval, chat) {
            (Some(prompts), Some(chat)) => {
                let seed = (command.seed, prompts);
                Some(Questions::new(chat, seed, [window, capacity])?)
            }
            _ => None,
        };
        for path in std::iter::once(&command.output).chain(&command.report) {
            check_file(path).map_err(Failure::bad)?;
        }
        Ok(Self {
            command,
            earlier: earlier.transpose()?,
            every: every(command, &subject, window - skip),
            subject,
            text,
            sparsity,
            sites,
            same: same as usize,
            skip: skip as usize,
            tail: (tail > 0).then_some(tail),
            capacity: capacity as usize,
            questions,
        })
    }

    /// The digest of everything that measurements of sets and parts depend on.
    fn digest(&self) -> Result<String, Failure> {
        let run = &self.command.run;
        let earlier = self.earlier.as_ref().map(|earlier| &earlier.digest);
        let parts = (
            env!("CARGO_PKG_VERSION"),
            self.subject.shape().digest,
            (self.subject.files()?, self.subject.seed()),
            (&self.text.digest, earlier),
            self.sparsity.to_string(),
            Unit::from(self.command.by).name(),
            [
                self.text.window,
                self.text.windows,
                self.skip,
                self.every,
                self.capacity,
            ],
            (self.tail, run.chunk, run.dtype),
            format!("{:?} {:?}", run.device, run.activations),
        );
        let text = serde_json::to_string(&parts).map_err(Failure::bad)?;
        Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
    }

    /// How windows are read, in chunks of at most so many tokens: of about the same length, since
    /// memory is kept for one, and of whole blocks.
    fn reading(&self, chunk: usize) -> Reading {
        let rest = self.text.window - self.same;
        let even = rest.div_ceil(rest.div_ceil(chunk));
        let even = even.next_multiple_of(self.sparsity.block as usize);
        Reading {
            same: self.same,
            skip: self.skip,
            every: self.every,
            chunk: even.min(chunk),
            capacity: self.capacity,
        }
    }

    /// The pattern that replaces `chosen`.
    fn pattern(&self, chosen: &[Site]) -> Result<Sparsity, Failure> {
        compose(&self.subject.config, &self.sparsity, chosen, self.tail)
            .map_err(|error| Failure::file(&self.subject.path, error))
    }

    /// The policy that runs a pattern.
    fn policy(&self, pattern: &Sparsity) -> Result<Policy, Failure> {
        let plan = jit(pattern.clone())?;
        let policy = Policy::new(&self.subject.config, &plan, pattern);
        policy.map_err(|error| Failure::file(&self.subject.path, error))
    }

    /// Damages, and whether each part is chosen, by layer and head.
    fn table(&self, damages: &[(Site, f64)], chosen: &[Site]) -> (Vec<Vec<f64>>, Vec<Vec<bool>>) {
        let rows = |layer: u32| damages.iter().filter(move |(site, _)| site.layer == layer);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a model has at most 4096 layers"
        )]
        let layers = 0..self.subject.config.layers.len() as u32;
        let row = |layer| {
            let row = rows(layer).map(|(site, damage)| (*damage, chosen.contains(site)));
            row.unzip::<_, _, Vec<_>, Vec<_>>()
        };
        layers.map(row).unzip()
    }
}

/// Every how many of `positions` positions one is scored.
fn every(command: &Command, subject: &Subject, positions: u32) -> usize {
    if let Some(every) = command.every {
        return every as usize;
    }
    let all = 4 * u64::from(subject.sizes.vocabulary) * u64::from(positions);
    let every = all.div_ceil(LOGITS).max(1);
    if every > 1 {
        note(format_args!(
            "note: one of {every} positions is scored, so that dense logits take at most 2 GiB; --every gives another number"
        ));
    }
    usize::try_from(every).unwrap_or(usize::MAX)
}

/// What replaces: the pattern of the command line, in the layers that --swap names.
fn sparsity(command: &Command, capacity: u32) -> Result<Sparsity, Failure> {
    let parsed = match &command.run.pattern {
        Some(pattern) => source::read(pattern)?,
        None => {
            note(format_args!(
                "note: attention is replaced by `{}`; --pattern gives another",
                PATTERN.replace('\n', " ")
            ));
            Sparsity::parse_any("the default pattern", PATTERN).map_err(Failure::bad)?
        }
    };
    super::check(&parsed, capacity)?;
    let mut sparsity = parsed.sparsity;
    if command.run.swap.is_some() {
        sparsity.swapped_layers.clone_from(&command.run.swap);
    }
    Ok(sparsity)
}
