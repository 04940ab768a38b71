//! `butterfly eval`: how much a pattern changes what a model predicts on a text, and what it finds
//! in one.
//!
//! In:  a model, a text, dense attention, and policies or patterns. Out: a report of all.

mod compare;
mod contenders;
mod interval;
mod report;
pub(crate) mod retrieval;
pub(crate) mod tasks;

use super::finite::{self, Watch};
use super::{Place, Setting, Task, chunk_of, open, policy, run_on, warn_of_length};
use crate::args::{Eval as Command, RetrievalTask};
use crate::chart;
use crate::failure::Failure;
use crate::source;
use butterfly::AttentionBackend;
use butterfly_models::{Chat, Checkpoint, Extent, Footprint, Model, Policy};
use butterfly_runtime::artifacts::{check_file, write_file};
use compare::{ByPosition, COMPARED, Difference, Means};
use contenders::{Contender, DENSE};
use report::{Compared, Report, Retrieval};
use retrieval::{Questions, ask_all, tally};
use std::path::Path;
use tasks::{Case, Encode};

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let folder = open(&command.model, &command.several.run)?;
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
    let windows = windows(command, &tokens, window)?;
    let from = command.from as usize;
    if compare::scored(&windows, from) == 0 {
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
    let given = command.several.run.capacity.map(|tokens| tokens as usize);
    let capacity = given.unwrap_or(most);
    if capacity < most {
        return Err(Failure::Bad(format!(
            "--capacity {capacity} is less than the {most} tokens of a window, or of a prompt and its answer; give at least {most}"
        )));
    }
    let prompts = cases.iter().map(|case| case.length);
    let shortest = prompts.min().unwrap_or(window).min(window);
    let of_model = (&folder.config, &folder.sizes, &*command.model);
    let contenders = contenders::read(&command.several, [shortest, capacity], of_model)?;
    // All kernels come from the same source.
    let sparse = contenders.first().map(|contender| &contender.sparse);
    let dense = match sparse {
        Some(sparse) => Policy::dense(&folder.config, &sparse.plan).map_err(Failure::bad)?,
        None => policy(&folder.config, None, &command.model)?,
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
        contenders: &contenders,
        windows: &windows,
        questions: &questions,
        window,
        from,
        given,
    };
    let setting = Setting {
        config: &folder.config,
        path: &command.model,
        dtype: folder.config.dtype,
        sparse,
    };
    let report = run_on(&command.several.run, &setting, work)?;
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

/// The windows that a command asks for: all of the text, or whole ones at even distances.
fn windows<'a>(
    command: &Command,
    tokens: &'a [u32],
    window: usize,
) -> Result<Vec<&'a [u32]>, Failure> {
    let Some(asked) = command.windows.map(|n| n as usize) else {
        return Ok(tokens.chunks(window).collect());
    };
    let whole: Vec<&[u32]> = tokens.chunks_exact(window).collect();
    if whole.len() < asked {
        let error = format!(
            "has {} tokens, {} are needed for --windows {asked} of {window}; give a longer text, or --window {} or less",
            tokens.len(),
            asked * window,
            tokens.len() / asked
        );
        return Err(Failure::file(&command.text, error));
    }
    Ok((0..asked).map(|i| whole[i * whole.len() / asked]).collect())
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
    contenders: &'a [Contender],
    /// What is predicted, each from its beginning.
    windows: &'a [&'a [u32]],
    questions: &'a Questions<'a>,
    /// Most tokens of a window.
    window: usize,
    /// Positions of each window that are not scored.
    from: usize,
    /// The capacity that was asked for.
    given: Option<usize>,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let chunk = chunk_of::<B>(&self.command.several.run) as usize;
        let vocabulary = u64::from(self.folder.sizes.vocabulary);
        let taken = Model::<B>::check(self.folder, place.dtype, &place.device);
        let taken = taken.map_err(Failure::bad)?;
        let sizes = (&self.folder.config, &self.folder.sizes);
        let needs = |extent| Footprint::new::<B>(sizes.0, sizes.1, taken, place.target(), extent);
        let compared = COMPARED.min(self.window);
        // Dense attention and each policy have caches of their own, and take turns in all else.
        let sequences = 1 + self.contenders.len();
        let window = self.given.unwrap_or(self.window);
        let mut comparison = needs(self.extent(1, window, (compared, compared)));
        comparison.caches = comparison.caches.saturating_mul(sequences as u64);
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
        let asked = batches
            .iter()
            .map(|(length, batch)| needs(asking(*length, *batch)));
        let most = asked.chain([comparison]).max_by_key(Footprint::total);
        // Logits in f32, by dense attention and by one policy at a time.
        let on_host = vocabulary.saturating_mul(2 * 4 * compared as u64);
        let config_file = self.folder.config_file();
        place.check_room(&config_file, &most.unwrap_or(comparison), on_host)?;
        let (model, _) = place.load_checked(self.folder)?;

        let mut watch = Watch::default();
        let mut sums = vec![ByPosition::default(); self.contenders.len().max(1)];
        let tokens = self.windows.iter().map(|window| window.len()).sum();
        let bar = crate::progress((tokens * sequences) as u64, "tokens");
        let mut finite = true;
        for window in self.windows {
            finite = compare::window(&self, &model, window, &mut sums, (&mut watch, &bar))?;
            if !finite {
                break;
            }
        }
        bar.finish_and_clear();
        let mut policies = vec![(DENSE, self.dense)];
        let contenders = self.contenders.iter();
        policies.extend(contenders.map(|contender| (&*contender.name, &contender.policy)));
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
        let policies: Vec<Compared> = self.contenders.iter().zip(&sums).map(summed).collect();
        // A policy that is alone stands beside dense attention, several have places of their own.
        let alone = policies.len() == 1;
        let total = Means::of(&sums[0].total(), alone);
        let unlikely = || {
            let mut all = policies.iter().map(|policy| policy.total.perplexity);
            let beyond = !total.dense_perplexity.is_finite() || all.any(|n| !n.is_finite());
            beyond.then(|| "the perplexity is beyond the range of numbers: the model rules out tokens of this text; give the config.json that belongs to these weights".to_string())
        };
        let said = watch.says(Some(self.folder), place.dtype);
        let not_finite = said.or_else(unlikely);
        let of_layers = match self.contenders {
            [only] => &only.policy,
            _ => self.dense,
        };
        Ok(Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            tokens,
            window: self.window,
            from: self.from,
            total,
            by_position: sums[0].buckets(alone),
            policies,
            retrieval: (!scores.is_empty()).then(|| Retrieval {
                seed: self.command.seed,
                trials: self.command.trials,
                by_depth: tally(&scores, true),
                by_length: tally(&scores, false),
            }),
            not_finite,
            layers: super::report::layers(of_layers),
        })
    }
}

/// What a policy is reported by.
fn summed((contender, sums): (&Contender, &ByPosition)) -> Compared {
    let total = sums.total();
    Compared {
        name: contender.name.clone(),
        given: contender.given.clone(),
        total: Difference::of(&total),
        perplexity_ratio: total.perplexity_ratio(),
        by_position: sums.buckets(true),
        layers: super::report::layers(&contender.policy),
    }
}

impl Work<'_> {
    /// The sizes of a run of so many sequences, in chunks of so many tokens, some with logits.
    fn extent(&self, batch: usize, capacity: usize, (chunk, logits): (usize, usize)) -> Extent {
        let [batch, capacity, chunk, logits] = [batch, capacity, chunk, logits].map(|n| n as u64);
        let policies = self.contenders.iter().map(|contender| &contender.policy);
        let policies = policies.chain([self.dense]);
        let cached = policies
            .clone()
            .map(|policy| policy.cached(capacity, chunk));
        let expanded = policies.map(|policy| policy.expanded(capacity, chunk));
        Extent {
            batch,
            capacity,
            cached: cached.max().unwrap_or_default(),
            expanded: expanded.max().unwrap_or_default(),
            chunk,
            logits,
        }
    }
}
