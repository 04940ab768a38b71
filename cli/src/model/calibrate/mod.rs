//! `butterfly calibrate`: which layers or kv heads of a model a pattern can replace.
//!
//! In:  a model, a text, a pattern. Out: a policy file. The text is cut into windows, and as many as
//! are asked for, at even distances, are used: every second one to choose on, the others to verify.

mod measure;
mod page;
mod partial;
mod report;

use super::{Setting, open, run_on, warn_of_length};
use crate::args::{By, Calibrate as Command};
use crate::failure::Failure;
use crate::output::note;
use crate::source;
use butterfly_compiler::config;
use butterfly_ir::Sparsity;
use butterfly_models::calibrate::{Site, Unit, same, sites};
use butterfly_models::{Chat, Checkpoint, ModelShape};
use butterfly_runtime::artifacts::{check_file, write_file};
use measure::Work;
use partial::Partial;
use std::path::Path;

/// Replaces attention if no pattern is given: 512 keys, of which 64 are the first ones.
const PATTERN: &str = "block 64\ncausal & (window(448) | sink(1))";
/// Tokens of a window, if the model takes as many.
const WINDOW: u32 = 4096;

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
        config: &task.folder.config,
        path: &command.model,
        dtype: task.folder.config.dtype,
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
    folder: Checkpoint,
    /// BLAKE3 of the text.
    text_digest: String,
    tokens: Vec<u32>,
    /// What replaces, and in which layers.
    sparsity: Sparsity,
    /// The parts that are replaced, each alone at first.
    sites: Vec<Site>,
    /// Tokens of a window.
    window: usize,
    /// Number of windows that the choice is made on, and of those that it is verified on.
    windows: usize,
    /// First tokens of a window that see the same by the pattern.
    same: usize,
    /// First scored position.
    skip: usize,
    every: usize,
    tail: Option<u32>,
    capacity: usize,
}

impl<'a> Calibration<'a> {
    fn new(command: &'a Command) -> Result<Self, Failure> {
        if let Some(path) = &command.run.policy {
            return Err(Failure::Bad(format!(
                "--policy {}: a policy is what calibration makes; give the pattern that replaces attention by --pattern",
                path.display()
            )));
        }
        if let Some(dir) = &command.run.artifacts {
            return Err(Failure::Bad(format!(
                "--artifacts {}: calibration runs patterns for which no folder has kernels; leave it out, and compile for the policy afterwards",
                dir.display()
            )));
        }
        let folder = open(&command.model)?;
        let limit = folder.config.max_positions;
        let window = command.window.unwrap_or(WINDOW.min(limit)).max(2);
        warn_of_length(&folder.config, window as usize);
        let text = source::read_text(&command.text)?;
        let chat = Chat::open(&command.model).map_err(Failure::bad)?;
        let tokens = chat.encode(&text, false).map_err(Failure::bad)?;
        let windows = command.windows as usize;
        let needed = 2 * windows * window as usize;
        if tokens.len() < needed {
            let error = format!(
                "has {} tokens, {needed} are needed: {windows} windows of {window} to choose on and as many to verify; give a longer text, or --window {} or less",
                tokens.len(),
                tokens.len() / (2 * windows)
            );
            return Err(Failure::file(&command.text, error));
        }
        let capacity = command.run.capacity.unwrap_or(window);
        if capacity < window {
            return Err(Failure::Bad(format!(
                "--capacity {capacity} is less than a window of {window} tokens; give at least {window}"
            )));
        }
        let sparsity = sparsity(command, capacity)?;
        let of_model = |error| Failure::file(&command.model, error);
        let layers = config::swapped(&folder.config, &sparsity).map_err(of_model)?;
        let layers: Vec<u32> = layers.into_iter().map(|swapped| swapped.layer).collect();
        let sites = sites(&folder.config, command.by.into(), &layers);
        if sites.is_empty() {
            let error =
                "no layer is left to calibrate; name layers with softmax attention in --swap";
            return Err(Failure::file(&command.model, error));
        }
        let same = same(&folder.config, &sparsity, window, capacity).map_err(of_model)?;
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
        for path in std::iter::once(&command.output).chain(&command.report) {
            check_file(path).map_err(Failure::bad)?;
        }
        Ok(Self {
            command,
            folder,
            text_digest: blake3::hash(text.as_bytes()).to_hex().to_string(),
            tokens,
            sparsity,
            sites,
            window: window as usize,
            windows,
            same: same as usize,
            skip: skip as usize,
            every: command.every as usize,
            tail: (tail > 0).then_some(tail),
            capacity: capacity as usize,
        })
    }

    /// The digest of everything that measurements depend on.
    fn digest(&self) -> Result<String, Failure> {
        let shape = ModelShape::new(&self.folder.config, &self.folder.sizes);
        let run = &self.command.run;
        let parts = (
            env!("CARGO_PKG_VERSION"),
            shape.digest,
            files(&self.command.model)?,
            &self.text_digest,
            self.sparsity.to_string(),
            Unit::from(self.command.by).name(),
            [
                self.window,
                self.windows,
                self.skip,
                self.every,
                self.capacity,
            ],
            (self.tail, run.chunk, run.dtype, format!("{:?}", run.device)),
        );
        let text = serde_json::to_string(&parts).map_err(Failure::bad)?;
        Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
    }

    /// The tokens of window `i` of those that the choice is made on, or that it is verified on.
    fn window(&self, i: usize, verify: bool) -> &[u32] {
        let (all, used) = (self.tokens.len() / self.window, 2 * self.windows);
        let at = (2 * i + usize::from(verify)) * all / used;
        &self.tokens[at * self.window..(at + 1) * self.window]
    }
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

/// The files of a model, by which one that was changed is told from what it was: names, lengths and
/// times.
fn files(model: &Path) -> Result<Vec<(String, u64, u128)>, Failure> {
    let failed = |error| Failure::file(model, format!("cannot read: {error}"));
    let entry = |path: &Path| {
        let meta = std::fs::metadata(path)?;
        let since = meta.modified()?.duration_since(std::time::UNIX_EPOCH);
        let time = since.map_or(0, |since| since.as_nanos());
        Ok((path.display().to_string(), meta.len(), time))
    };
    let model = model.canonicalize().map_err(failed)?;
    if model.is_file() {
        return Ok(vec![entry(&model).map_err(failed)?]);
    }
    let list = || -> std::io::Result<Vec<_>> {
        let entries = std::fs::read_dir(&model)?;
        let mut files = Vec::new();
        for found in entries {
            let path = found?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".safetensors") || name == "config.json" || name == "tokenizer.json" {
                files.push(entry(&path)?);
            }
        }
        files.sort();
        Ok(files)
    };
    list().map_err(failed)
}

#[cfg(test)]
mod tests {
    /// As [`super::Calibration::window`] places them.
    #[test]
    fn windows_are_spread_and_disjoint() {
        for windows in 1..5usize {
            for all in 2 * windows..30 {
                let at = |i: usize| i * all / (2 * windows);
                let places: Vec<usize> = (0..2 * windows).map(at).collect();
                assert!(places.is_sorted_by(|a, b| a < b) && places[2 * windows - 1] < all);
            }
        }
    }
}
