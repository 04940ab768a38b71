//! `butterfly logits`: tokens from a file → logits in a file.

use super::finite::{self, Watch};
use super::{Place, Setting, Task, chunk_of, open, policy, report, run_on, sparse, warn_of_length};
use crate::args::Logits as Command;
use crate::failure::Failure;
use crate::tensors::{self, Ids};
use crate::{output, source};
use butterfly::AttentionBackend;
use butterfly_ir::Dtype;
use butterfly_models::{Checkpoint, Extent, Logits, ModelError};
use butterfly_runtime::artifacts::check_file;
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    dtype: Dtype,
    batch: usize,
    tokens: usize,
    vocabulary: u32,
    capacity: usize,
    milliseconds: f64,
    /// Kernels that were compiled in this run; with artifacts there are none.
    compiled_kernels: Vec<String>,
    layers: Vec<report::LayerReport>,
    unused_tensors: Vec<String>,
    /// What is wrong with the logits, if not all are finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_finite: Option<String>,
    output: String,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let Ids {
        shape: [batch, length],
        tokens: ids,
        unread,
    } = tensors::ids(&command.inputs)?;
    if !unread.is_empty() {
        output::note(format_args!(
            "note: {}: only `input_ids` and `attention_mask` are read, not {}",
            command.inputs.display(),
            unread.join(", ")
        ));
    }
    let folder = open(&command.model, &command.run)?;
    warn_of_length(&folder.config, length);
    let capacity = command
        .run
        .capacity
        .map_or(length, |tokens| tokens as usize);
    if capacity < length {
        return Err(Failure::Bad(format!(
            "--capacity {capacity} is less than the {length} tokens; give at least {length}"
        )));
    }
    let sparse = sparse(&command.run, capacity, (&folder.config, &folder.sizes))?;
    if let Some(sparse) = &sparse {
        source::check_tail(&sparse.sparsity.pattern, length)?;
    }
    let policy = policy(&folder.config, sparse.as_ref(), &command.model)?;
    check_file(&command.output).map_err(Failure::bad)?;
    let task = Work {
        command,
        folder: &folder,
        policy: &policy,
        ids: &ids,
        batch,
        length,
        capacity,
    };
    let setting = Setting {
        config: &folder.config,
        path: &command.model,
        // Logits are meant to be compared with other software, so f32 is the default.
        dtype: Dtype::F32,
        sparse: sparse.as_ref(),
    };
    let report = run_on(&command.run, &setting, task)?;
    crate::print(json, &report, || {
        format!(
            "logits of {batch} x {length} tokens on {} ({}) in {:.0} ms: {}\n{}",
            report.device,
            report.device_name,
            report.milliseconds,
            report.output,
            report::text(&report.layers)
        )
    })?;
    finite::check(report.not_finite)
}

struct Work<'a> {
    command: &'a Command,
    folder: &'a Checkpoint,
    policy: &'a butterfly_models::Policy,
    ids: &'a [u32],
    batch: usize,
    length: usize,
    capacity: usize,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let [batch, length] = [self.batch, self.length].map(|n| n as u64);
        let chunk = u64::from(chunk_of::<B>(&self.command.run)).min(length);
        let capacity = self.capacity as u64;
        let extent = Extent {
            batch,
            capacity,
            cached: self.policy.cached(capacity, chunk),
            expanded: self.policy.expanded(capacity, chunk),
            chunk,
            logits: chunk,
        };
        // All logits three times: in f32, as bytes, and as the file; those of a chunk once more.
        let each = 4 * u64::from(self.folder.sizes.vocabulary);
        let tokens = batch.saturating_mul(3 * length + chunk);
        let (model, unused_tensors, _) =
            place.load(self.folder, extent, each.saturating_mul(tokens))?;
        let vocabulary = model.sizes.vocabulary as usize;
        let mut state = model.state(self.batch, Some(self.capacity), self.policy);
        state.set_prompt(self.length);
        let mut logits = vec![0.0; self.batch * self.length * vocabulary];
        let mut watch = Watch::default();
        let started = Instant::now();
        let bar = crate::progress(self.length as u64, "tokens");
        let chunk = chunk_of::<B>(&self.command.run) as usize;
        for first in (0..self.length).step_by(chunk) {
            let count = chunk.min(self.length - first);
            let rows = self.ids.chunks(self.length);
            let tokens: Vec<u32> = rows
                .flat_map(|row| row[first..first + count].to_vec())
                .collect();
            let part = model.forward(&tokens, &mut state, self.policy, Logits::All);
            let part = part.map_err(|error: ModelError| Failure::bad(error))?;
            let part = super::floats(part)?;
            for (b, part) in part.chunks(count * vocabulary).enumerate() {
                watch.see(part, vocabulary, [b, first]);
                let to = (b * self.length + first) * vocabulary;
                logits[to..to + part.len()].copy_from_slice(part);
            }
            bar.inc(count as u64);
        }
        bar.finish_and_clear();
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        let shape = vec![self.batch, self.length, vocabulary];
        let tensor = ("logits", shape, Dtype::F32, logits.as_slice());
        tensors::write(&self.command.output, &[tensor])?;
        Ok(Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            batch: self.batch,
            tokens: self.length,
            vocabulary: model.sizes.vocabulary,
            capacity: self.capacity,
            milliseconds,
            compiled_kernels: butterfly::compiled(),
            layers: report::layers(self.policy),
            unused_tensors,
            not_finite: watch.says(Some(self.folder), place.dtype),
            output: self.command.output.display().to_string(),
        })
    }
}
