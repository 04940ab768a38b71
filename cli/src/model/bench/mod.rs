//! `butterfly bench model` and `bench layer`: prefill and decode, dense beside a pattern.

mod profile;
mod row;
mod table;

use super::finite::{self, Watch};
use super::weights::Weights;
use super::{
    Place, Setting, Sparse, Task, check_chunk_of_each, chunk_of, chunk_of_each, open, packing,
    policy, report, run_on, sparse, sync,
};
use crate::args::{BenchLayer, BenchModel, Measure, Run};
use crate::failure::Failure;
use crate::source;
use butterfly::{AttentionBackend, MOST_LAGS};
use butterfly_ir::model::{LayerKind, ModelConfig, ModelSizes};
use butterfly_models::{Extent, Footprint, Model, Policy, Taken, read_config};
use std::path::Path;
use std::time::Instant;
use table::{Report, text};

/// `bench model`.
pub(crate) fn model(command: &BenchModel, json: bool) -> Result<(), Failure> {
    let (measure, run) = (&command.measure, &command.run);
    let (path, config, sizes, weights) = match (&command.model, &command.random_weights) {
        (Some(dir), _) => {
            let folder = open(dir, run)?;
            let (config, sizes) = (folder.config.clone(), folder.sizes.clone());
            (dir, config, sizes, Weights::Stored(Box::new(folder)))
        }
        (None, Some(path)) => {
            let (config, sizes) = read_config(path).map_err(Failure::bad)?;
            (path, config, sizes, random(path, run)?)
        }
        (None, None) => return Err(Failure::Bad("give --model or --random-weights".into())),
    };
    let subject = Subject {
        path,
        config,
        sizes,
        weights,
        layer: None,
    };
    bench(&subject, measure, (run, &command.also), json)
}

/// Random weights, packed as a config says.
fn random(config: &Path, run: &Run) -> Result<Weights, Failure> {
    Ok(Weights::Random {
        packed: packing(config, run)?,
        seed: None,
    })
}

/// `bench layer`: a model with only that layer, and hardly any vocabulary. The layer runs the same
/// pattern and stage as in the whole model.
pub(crate) fn layer(command: &BenchLayer, json: bool) -> Result<(), Failure> {
    let path = &command.config;
    let (config, mut sizes) = read_config(path).map_err(Failure::bad)?;
    let softmax = |kind: &LayerKind| kind.is_softmax();
    let first = config.layers.iter().position(softmax).unwrap_or(0);
    let at = command.layer.map_or(first, |layer| layer as usize);
    if at >= config.layers.len() {
        return Err(Failure::Bad(format!(
            "--layer {at}: the model has {} layers; give one below that",
            config.layers.len()
        )));
    }
    sizes.vocabulary = 256;
    // Alone it is layer 0, and keeps its own feed-forward part.
    if let Some(experts) = &mut sizes.experts {
        let dense = experts.dense.iter().any(|layer| *layer as usize == at);
        experts.dense = Vec::from_iter(dense.then_some(0));
    }
    let subject = Subject {
        path,
        config,
        sizes,
        weights: random(path, &command.run)?,
        layer: Some(at),
    };
    bench(&subject, &command.measure, (&command.run, &[]), json)
}

/// What is measured.
struct Subject<'a> {
    path: &'a Path,
    /// Config of the whole model.
    config: ModelConfig,
    sizes: ModelSizes,
    weights: Weights,
    /// The only layer that is measured; `None` for the whole model.
    layer: Option<usize>,
}

impl Subject<'_> {
    /// The config of what is measured.
    fn built(&self) -> ModelConfig {
        let mut config = self.config.clone();
        if let Some(layer) = self.layer {
            config.layers = vec![config.layers[layer]];
        }
        config
    }

    /// What the measured layers run: the pattern of `sparse`, or dense attention.
    fn policy(&self, sparse: Option<&Sparse>) -> Result<Policy, Failure> {
        let whole = policy(&self.config, sparse, self.path)?;
        let Some(layer) = self.layer else {
            return Ok(whole);
        };
        let only = whole.layers[layer].clone();
        if sparse.is_some() && !only.as_ref().is_some_and(|only| only.swapped) {
            return Err(Failure::Bad(format!(
                "--layer {layer}: the pattern does not replace its attention; name it in --swap, or leave the pattern out"
            )));
        }
        Ok(Policy { layers: vec![only] })
    }
}

/// What replaces attention, with the name that its rows have.
struct Replacement {
    name: String,
    sparse: Sparse,
}

fn bench(
    subject: &Subject<'_>,
    measure: &Measure,
    (run, also): (&Run, &[String]),
    json: bool,
) -> Result<(), Failure> {
    let most = measure.prompt_tokens.iter().max().copied().unwrap_or(0) + measure.decode;
    let capacity = run.capacity.unwrap_or(most);
    if let Some(shortest) = measure.shortest_prompt
        && let Some(tokens) = measure
            .prompt_tokens
            .iter()
            .find(|tokens| **tokens < shortest)
    {
        return Err(Failure::Bad(format!(
            "--shortest-prompt {shortest} is longer than a prompt of {tokens} tokens (--prompt-tokens)"
        )));
    }
    if capacity < most {
        return Err(Failure::Bad(format!(
            "--capacity {capacity} is less than the {most} tokens of prompt and decode; give at least {most}"
        )));
    }
    let replacement = |name: &str, run: &Run| {
        let sparse = sparse(run, capacity as usize, (&subject.config, &subject.sizes))?;
        Ok::<_, Failure>(sparse.map(|sparse| Replacement {
            name: name.into(),
            sparse,
        }))
    };
    let mut replacements: Vec<Replacement> = replacement("butterfly", run)?.into_iter().collect();
    if replacements.is_empty() && measure.no_dense && also.is_empty() {
        return Err(Failure::Bad(
            "--no-dense without a pattern leaves nothing to measure; give --pattern".into(),
        ));
    }
    for given in also {
        let path = Path::new(given);
        let is_policy = source::is_policy(path);
        let run = Run {
            pattern: (!is_policy).then(|| given.clone()),
            policy: is_policy.then(|| path.to_path_buf()),
            ..run.clone()
        };
        let name = path.file_name().filter(|_| path.is_file());
        let name = name.map_or(given.into(), |name| name.to_string_lossy());
        replacements.extend(replacement(&name, &run)?);
    }
    let work = Work {
        subject,
        measure,
        run,
        replacements: &replacements,
        capacity: capacity.into(),
    };
    let setting = Setting {
        config: &subject.config,
        path: subject.path,
        dtype: subject.config.dtype,
        sparse: replacements.first().map(|first| &first.sparse),
    };
    let report = run_on(run, &setting, work)?;
    crate::print(json, &report, || text(&report))?;
    finite::check(report.not_finite)
}

struct Work<'a> {
    subject: &'a Subject<'a>,
    measure: &'a Measure,
    run: &'a Run,
    replacements: &'a [Replacement],
    /// Largest length of a sequence.
    capacity: u64,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let Subject {
            path,
            sizes,
            weights,
            ..
        } = self.subject;
        let config = &self.subject.built();
        let taken = weights.taken((config, sizes), &place)?;
        let file = match weights.checkpoint() {
            Some(folder) => folder.config_file(),
            None => path.to_path_buf(),
        };
        let policies = self.policies()?;
        let given = self.measure.batch.as_deref();
        let batches = given.unwrap_or(&[1]);
        for &batch in batches {
            let fits = self.check(&place, (&file, taken), &policies, batch);
            fits.map_err(|failure| match (failure, given) {
                (Failure::Bad(said), Some(_)) => Failure::Bad(format!("--batch {batch}: {said}")),
                (failure, _) => failure,
            })?;
        }
        let started = Instant::now();
        let model: Model<B> = weights.load((config, sizes), &place)?;
        sync::<B>(&place.device)?;
        let load_seconds = started.elapsed().as_secs_f64();
        let weights_bytes = place.memory.taken();

        let mut rows = Vec::new();
        let mut watch = Watch::default();
        let prompts = &self.measure.prompt_tokens;
        let all = prompts.len() * batches.len() * policies.len();
        let bar = crate::progress(all as u64, "measuring");
        for &tokens in prompts {
            for &batch in batches {
                let lengths = [batch, tokens].map(|n| n as usize);
                for (name, policy) in &policies {
                    let subject = (&model, policy, *name);
                    rows.push(self.row(&place, subject, taken, lengths, &mut watch)?);
                    bar.inc(1);
                }
            }
        }
        bar.finish_and_clear();
        Ok(Report {
            device: place.kind,
            dtype: place.dtype,
            model: path.display().to_string(),
            random_weights: weights.checkpoint().is_none(),
            chunk: chunk_of::<B>(self.run),
            batched: given.is_some(),
            load_seconds,
            weights_bytes,
            rows,
            not_finite: watch.says(weights.checkpoint(), place.dtype),
            device_name: place.name,
        })
    }
}

/// The sizes of a run of `batch` sequences, whose chunks have `chunk` tokens of each, and of which the shortest is `lag`
/// tokens behind the longest.
fn extent(policy: &Policy, [batch, capacity, chunk, lag]: [u64; 4]) -> Extent {
    Extent {
        batch,
        capacity,
        // What is behind keeps the tokens of a window from being forgotten.
        cached: policy.cached(capacity, chunk + lag),
        expanded: policy.expanded(capacity, chunk),
        chunk,
        logits: 1,
    }
}

impl Work<'_> {
    /// Checks that a batch of so many sequences may be cut into chunks, and that there is room for it,
    /// whichever of the policies runs.
    fn check<B: AttentionBackend>(
        &self,
        place: &Place<B>,
        (file, taken): (&Path, Taken),
        policies: &[(&str, Policy)],
        batch: u32,
    ) -> Result<(), Failure> {
        for Replacement { sparse, .. } in self.replacements {
            check_chunk_of_each([chunk_of::<B>(self.run), batch], sparse.plan.sparsity())?;
        }
        let (config, sizes) = (self.subject.built(), &self.subject.sizes);
        let longest = self.measure.prompt_tokens.iter().max().copied();
        let lag = match self.measure.shortest_prompt {
            Some(shortest) if batch > 1 => longest.unwrap_or(0).saturating_sub(shortest),
            Some(_) | None => 0,
        };
        if lag > 0 {
            let policies = policies.iter();
            let refused = policies.map(|(_, policy)| policy.takes_no_lags());
            let refused = refused.flatten().next();
            let too_many = (batch as usize > MOST_LAGS).then_some("at most 64 sequences");
            if let Some(what) = refused.or(too_many) {
                return Err(Failure::Bad(format!(
                    "--shortest-prompt: sequences of different lengths cannot run together: {what}"
                )));
            }
        }
        let chunk = chunk_of_each::<B>(self.run, batch as usize) as u64;
        for (_, policy) in policies {
            let extent = extent(policy, [batch.into(), self.capacity, chunk, lag.into()]);
            let needs = Footprint::new::<B>(&config, sizes, taken, place.target(), extent);
            place.check_room(file, &needs, 0)?;
        }
        Ok(())
    }

    /// What is measured, each with its name.
    fn policies(&self) -> Result<Vec<(&str, Policy)>, Failure> {
        let mut policies = Vec::new();
        if !self.measure.no_dense {
            policies.push(("dense", self.dense()?));
        }
        for Replacement { name, sparse } in self.replacements {
            policies.push((name.as_str(), self.subject.policy(Some(sparse))?));
        }
        Ok(policies)
    }

    /// A policy by which all layers keep their attention; its kernels are from the same artifacts as
    /// those of the pattern, if there are any.
    fn dense(&self) -> Result<Policy, Failure> {
        match self.replacements.first() {
            Some(Replacement { sparse, .. }) => {
                Policy::dense(&self.subject.built(), &sparse.plan).map_err(Failure::bad)
            }
            None => self.subject.policy(None),
        }
    }

    /// Reports of the layers, numbered as in the whole model.
    fn layers(&self, policy: &Policy) -> Vec<report::LayerReport> {
        let mut layers = report::layers(policy);
        for layer in &mut layers {
            layer.layer += self.subject.layer.unwrap_or(0);
        }
        layers
    }
}
