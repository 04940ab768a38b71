//! `butterfly eval`: how much a pattern changes what a model predicts on a text, and what it finds
//! in one.
//!
//! In:  a model, a text, and two policies: dense attention and the pattern. Out: a report of both.

mod compare;
mod interval;
mod report;
pub(crate) mod retrieval;
pub(crate) mod tasks;

use super::finite::{self, Watch};
use super::{Place, Setting, Task, chunk_of, open, policy, run_on, sparse, warn_of_length};
use crate::args::{Eval as Command, RetrievalTask};
use crate::chart;
use crate::failure::Failure;
use crate::source;
use butterfly::AttentionBackend;
use butterfly_models::{Chat, Checkpoint, Extent, Footprint, Model, Policy};
use butterfly_runtime::artifacts::{check_file, write_file};
use compare::{ByPosition, COMPARED};
use report::{Report, Retrieval};
use retrieval::{Questions, ask_all, tally};
use std::path::Path;
use tasks::{Case, Encode};

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let folder = open(&command.model)?;
    let chat = Chat::open(&command.model).map_err(Failure::bad)?;
    let text = source::read_text(&command.text)?;
    let encode = |text: &str| chat.encode(text, false).map_err(Failure::bad);
    let tokens = encode(&text)?;
    if tokens.len() < 2 {
        let error = format!("has {} tokens; give at least 2", tokens.len());
        return Err(Failure::file(&command.text, error));
    }
    let limit = folder.config.max_positions as usize;
    let window = command.window.map_or(limit, |n| n as usize);
    let window = window.min(tokens.len());
    if window < 2 {
        let config = command.model.join("config.json");
        let error = "`max_position_embeddings` is 1: no token is left to predict; give the model's own, or --window";
        return Err(Failure::file(&config, error));
    }
    let from = command.from as usize;
    if compare::scored(tokens.len(), window, from) == 0 {
        let error = format!(
            "has {} tokens, in windows of {window}: none is left to predict from position {from} on; give --from at most {}, or a longer text",
            tokens.len(),
            window - 2
        );
        return Err(Failure::file(&command.text, error));
    }
    let cases = cases(command);
    let answer = check_lengths(command, &cases, &encode)?;
    let longest = cases.iter().map(|case| case.length + answer).max();
    let most = window.max(longest.unwrap_or(0));
    warn_of_length(&folder.config, most);
    let given = command.run.capacity.map(|tokens| tokens as usize);
    let capacity = given.unwrap_or(most);
    if capacity < most {
        return Err(Failure::Bad(format!(
            "--capacity {capacity} is less than the {most} tokens of a window, or of a prompt and its answer; give at least {most}"
        )));
    }
    let sparse = sparse(&command.run, capacity, (&folder.config, &folder.sizes))?;
    if let Some(sparse) = &sparse {
        let prompts = cases.iter().map(|case| case.length);
        let shortest = prompts.min().unwrap_or(window).min(window);
        source::check_tail(&sparse.sparsity.pattern, shortest)?;
    }
    let dense = match &sparse {
        Some(sparse) => Policy::dense(&folder.config, &sparse.plan).map_err(Failure::bad)?,
        None => policy(&folder.config, None, &command.model)?,
    };
    let swapped = match &sparse {
        None => None,
        sparse => Some(policy(&folder.config, sparse.as_ref(), &command.model)?),
    };
    for path in [&command.plot, &command.report].into_iter().flatten() {
        check_file(path).map_err(Failure::bad)?;
    }
    let decode = |tokens: &[u32]| chat.decode(tokens).map_err(Failure::bad);
    let questions = Questions {
        cases: &cases,
        text: &tokens,
        encode: &encode,
        decode: &decode,
        answer,
        capacity: given,
    };
    let work = Work {
        command,
        folder: &folder,
        dense: &dense,
        swapped: swapped.as_ref(),
        tokens: &tokens,
        questions: &questions,
        window,
        from,
        given,
    };
    let setting = Setting {
        config: &folder.config,
        path: &command.model,
        dtype: folder.config.dtype,
        sparse: sparse.as_ref(),
    };
    let report = run_on(&command.run, &setting, work)?;
    if let (Some(path), Some(retrieval)) = (&command.plot, &report.retrieval) {
        let plot = chart::heat_map(&report::map(retrieval));
        write_file(path, plot.as_bytes()).map_err(Failure::bad)?;
    }
    if let Some(path) = &command.report {
        let page = crate::page::html(&report::page(command, &report))?;
        write_file(path, page.as_bytes()).map_err(Failure::bad)?;
    }
    crate::print(json, &report, || report::text(&report))?;
    finite::check(report.not_finite)
}

/// The prompts that a command asks for; those of a length stand together.
fn cases(command: &Command) -> Vec<Case> {
    let (tasks, lengths) = match command.needle.is_empty() {
        true => (&command.tasks[..], &command.lengths),
        false => (&[RetrievalTask::Needle][..], &command.needle),
    };
    let mut cases = Vec::new();
    for &length in lengths {
        for &task in tasks {
            for &depth in &command.depths {
                cases.extend((0..command.trials).map(|trial| Case {
                    task,
                    seed: command.seed,
                    trial,
                    length: length as usize,
                    depth,
                }));
            }
        }
    }
    cases
}

/// Checks that every prompt has room for what its task asks about. Returns the most tokens of an
/// answer.
fn check_lengths(command: &Command, cases: &[Case], encode: Encode<'_>) -> Result<usize, Failure> {
    let mut most = 0;
    let mut short: Option<(&Case, usize)> = None;
    for case in cases {
        let (least, answer) = tasks::least(case, encode)?;
        most = most.max(answer);
        let longer = short.is_none_or(|(_, other)| least > other);
        if case.length < least && longer {
            short = Some((case, least));
        }
    }
    let Some((case, least)) = short else {
        return Ok(most);
    };
    let flag = match command.needle.is_empty() {
        true => "--lengths",
        false => "--needle",
    };
    Err(Failure::Bad(format!(
        "{flag} {}: task {} needs at least {least} tokens here",
        case.length,
        case.task.name()
    )))
}

struct Work<'a> {
    command: &'a Command,
    folder: &'a Checkpoint,
    dense: &'a Policy,
    swapped: Option<&'a Policy>,
    tokens: &'a [u32],
    questions: &'a Questions<'a>,
    window: usize,
    /// Positions of each window that are not scored.
    from: usize,
    /// The capacity that was asked for.
    given: Option<usize>,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let chunk = chunk_of::<B>(&self.command.run) as usize;
        let vocabulary = u64::from(self.folder.sizes.vocabulary);
        let taken = Model::<B>::check(self.folder, place.dtype, &place.device);
        let taken = taken.map_err(Failure::bad)?;
        let sizes = (&self.folder.config, &self.folder.sizes);
        let needs = |extent| Footprint::new::<B>(sizes.0, sizes.1, taken, place.dtype, extent);
        let compared = COMPARED.min(self.window);
        // Two sequences: one with the pattern, one without.
        let window = self.given.unwrap_or(self.window);
        let comparison = self.extent(2, window, (compared, compared));
        let asking = |length: usize, batch: usize| {
            let each = (chunk / batch).clamp(1, length);
            self.extent(batch, self.questions.room(length), (each, 1))
        };
        let mut batches = Vec::new();
        for (length, prompts) in self.questions.lengths() {
            let room = |n| place.has_room(Path::new(""), &needs(asking(length, n)));
            let given = self.command.batch.map(|n| n as usize);
            let batch = given.unwrap_or_else(|| retrieval::together(B::ON_HOST, prompts, room));
            batches.push((length, batch.min(prompts)));
        }
        let extents = batches
            .iter()
            .map(|(length, batch)| asking(*length, *batch));
        let extents = extents.chain([comparison]);
        let extent = extents.max_by_key(|extent| needs(*extent).total());
        // Logits in f32, and log-probabilities of a row in f64, each with the pattern and without.
        let threads = rayon::current_num_threads() as u64;
        let on_host = vocabulary.saturating_mul(2 * 4 * compared as u64 + 2 * 8 * threads);
        let (model, ..) = place.load(self.folder, extent.unwrap_or(comparison), on_host)?;

        let (mut sums, mut watch) = (ByPosition::default(), Watch::default());
        let bar = crate::progress(self.tokens.len() as u64, "tokens");
        let mut finite = true;
        for window in self.tokens.chunks(self.window) {
            finite = compare::window(&self, &model, window, &mut sums, (&mut watch, &bar))?;
            if !finite {
                break;
            }
        }
        bar.finish_and_clear();
        let swapped = self.swapped.map(|policy| ("butterfly", policy));
        let policies: Vec<_> = [Some(("dense", self.dense)), swapped]
            .into_iter()
            .flatten()
            .collect();
        let mut scores = Vec::new();
        // A model that gives no numbers answers nothing.
        if finite {
            scores = ask_all(
                self.questions,
                &model,
                &policies,
                (&batches[..], chunk),
                &mut watch,
            )?;
        }
        let sparse = self.swapped.is_some();
        let total = sums.total(sparse);
        let unlikely = || {
            let pattern = total.sparse.map_or(0.0, |sparse| sparse.perplexity);
            let beyond = !total.dense_perplexity.is_finite() || !pattern.is_finite();
            beyond.then(|| "the perplexity is beyond the range of numbers: the model rules out tokens of this text; give the config.json that belongs to these weights".to_string())
        };
        let said = watch.says(Some(self.folder), place.dtype);
        Ok(Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            tokens: self.tokens.len(),
            window: self.window,
            from: self.from,
            total,
            by_position: sums.buckets(sparse),
            retrieval: (!scores.is_empty()).then(|| Retrieval {
                seed: self.command.seed,
                trials: self.command.trials,
                by_depth: tally(&scores, true),
                by_length: tally(&scores, false),
            }),
            not_finite: said.or_else(unlikely),
            layers: super::report::layers(self.swapped.unwrap_or(self.dense)),
        })
    }
}

impl Work<'_> {
    /// The sizes of a run of so many sequences, in chunks of so many tokens, some with logits.
    fn extent(&self, batch: usize, capacity: usize, (chunk, logits): (usize, usize)) -> Extent {
        let [batch, capacity, chunk, logits] = [batch, capacity, chunk, logits].map(|n| n as u64);
        let policies = [Some(self.dense), self.swapped].into_iter().flatten();
        let cached = policies.map(|policy| policy.cached(capacity, chunk));
        Extent {
            batch,
            capacity,
            cached: cached.max().unwrap_or_default(),
            chunk,
            logits,
        }
    }
}
