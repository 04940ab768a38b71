//! `butterfly compile`: compiles model configs and a pattern to artifact folders.

use crate::args::Compile as Command;
use crate::failure::Failure;
use crate::kernel::{self, Files};
use crate::{output, show, source};
use butterfly_compiler::classify::ClassifyError;
use butterfly_compiler::config;
use butterfly_compiler::pipeline::{self, Lowered, PipelineError, Request};
use butterfly_ir::manifest::{KernelEntry, Manifest};
use butterfly_ir::model::ModelConfig;
use butterfly_ir::pattern::Parsed;
use butterfly_ir::plan::Plan;
use butterfly_ir::{Context, Dtype, Kernel, Target};
use butterfly_runtime::artifacts::{self, Artifacts};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    artifacts: Vec<Made>,
}

#[derive(Serialize)]
struct Made {
    config: String,
    dir: String,
    kernels: usize,
    bytes: u64,
    layers: usize,
    milliseconds: f64,
    /// The part of `milliseconds` that NVRTC took.
    nvrtc_milliseconds: f64,
    targets: Vec<TargetReport>,
    /// Milliseconds of each pass, in order.
    passes: Vec<(&'static str, f64)>,
    /// The output of `--emit`, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    emitted: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct TargetReport {
    target: Target,
    kernels: usize,
    dtypes: Vec<Dtype>,
    forms: Vec<String>,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let parsed = command.pattern.read()?;
    let targets = distinct(command.made_for.target.iter().copied());
    let mut made = Vec::new();
    for (path, dir) in command.configs.iter().zip(folders(command)?) {
        made.push(one(command, &parsed, &targets, path, &dir)?);
    }
    let report = Report { artifacts: made };
    crate::print(json, &report, || text(&report, command.timings))
}

/// The output folder of each config: the one that is given, or if there are several configs, a
/// folder for each inside it.
fn folders(command: &Command) -> Result<Vec<PathBuf>, Failure> {
    if let [_] = command.configs[..] {
        return Ok(vec![command.output.clone()]);
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in &command.configs {
        let folder = command
            .output
            .join(path.file_stem().unwrap_or(path.as_os_str()));
        if folders.contains(&folder) {
            let taken = "is the folder of two configs: rename one, or compile them one by one";
            return Err(Failure::file(&folder, taken));
        }
        folders.push(folder);
    }
    Ok(folders)
}

fn text(report: &Report, timings: bool) -> String {
    let mut text = String::new();
    for made in &report.artifacts {
        for (what, emitted) in &made.emitted {
            text += &format!("--- {what}\n{}\n", emitted.trim_end());
        }
        text += &format!(
            "{}: {} kernels for {} layers, {} bytes in {}, {:.0} ms ({:.0} without NVRTC)\n",
            made.config,
            made.kernels,
            made.layers,
            made.bytes,
            made.dir,
            made.milliseconds,
            made.milliseconds - made.nvrtc_milliseconds
        );
        for target in &made.targets {
            let dtypes: Vec<_> = target.dtypes.iter().map(|dtype| dtype.name()).collect();
            let (dtypes, forms) = (dtypes.join(", "), target.forms.join(", "));
            text += &format!(
                "  {:<14} {:>2} kernels  {:<9} {}\n",
                target.target.to_string(),
                target.kernels,
                dtypes,
                forms
            );
        }
        for (pass, milliseconds) in made.passes.iter().filter(|_| timings) {
            text += &format!("  {pass:<14} {milliseconds:>10.2} ms\n");
        }
    }
    text
}

fn one(
    command: &Command,
    parsed: &Parsed,
    targets: &[Target],
    path: &Path,
    dir: &Path,
) -> Result<Made, Failure> {
    let started = Instant::now();
    let text = source::read_text(path)?;
    let model = config::read(&path.display().to_string(), &text).map_err(Failure::bad)?;
    command.pattern.check_model(&model, (path, &text))?;
    let request = Request {
        targets,
        dtypes: &command.made_for.dtype,
        capacity: command.pattern.capacity,
        verify: command.verify,
    };
    let lowered = lower(parsed, &model, path, &request)?;
    let plan = &lowered.plan;
    note_substitutes(plan, targets, &command.made_for.dtype, model.dtype);
    note_coverage(plan);
    let mut passes = milliseconds(&lowered.timings);
    let bare = butterfly_build::manifest(plan, &model, (path, &text));
    if command.add && dir.join(artifacts::MANIFEST).exists() {
        let there = Artifacts::open(dir).map_err(Failure::bad)?;
        there.admits(&bare).map_err(Failure::bad)?;
    }

    let (kernels, mut files) = emit(plan, &mut passes)?;
    let (products, more) =
        butterfly_build::products(butterfly_build::product_dtypes(plan)).map_err(Failure::bad)?;
    files.extend(more);
    let (scorers, more) =
        butterfly_build::scorers(butterfly_build::wanted_scorers(plan)).map_err(Failure::bad)?;
    files.extend(more);
    let linear =
        config::linear(&path.display().to_string(), &text, &model).map_err(Failure::bad)?;
    let rules = butterfly_build::wanted_delta_rules(plan, linear.as_ref());
    let (delta_rules, more) = butterfly_build::delta_rules(rules).map_err(Failure::bad)?;
    files.extend(more);
    let name = path.display().to_string();
    let experts = config::expert_weights(&name, &text, &model).map_err(Failure::bad)?;
    let weights = experts
        .into_iter()
        .chain(config::linear_weights(&name, &text, &model));
    let wanted = butterfly_build::wanted_grouped(plan, &weights.collect::<Vec<_>>());
    let (grouped, more) = butterfly_build::grouped(wanted).map_err(Failure::bad)?;
    files.extend(more);
    let emitted = command.emit.iter();
    let emitted = emitted.map(|show| Ok((show.name(), show::text(*show, &lowered, &files)?)));
    let emitted = emitted.collect::<Result<_, Failure>>()?;

    let new = Manifest {
        kernels,
        products,
        scorers,
        delta_rules,
        grouped,
        ..bare
    };
    let packing = Instant::now();
    let manifest = match command.add {
        true => artifacts::add(dir, &new, &files).map_err(Failure::bad)?,
        false => {
            note_replaced(dir, &new);
            artifacts::write(dir, &new, &files).map_err(Failure::bad)?;
            new
        }
    };
    passes.push(("pack", packing.elapsed().as_secs_f64() * 1e3));
    Ok(Made {
        config: path.display().to_string(),
        dir: dir.display().to_string(),
        kernels: manifest.kernels.len(),
        bytes: manifest.files().map(|file| file.bytes).sum(),
        layers: manifest.layers.len(),
        milliseconds: started.elapsed().as_secs_f64() * 1e3,
        nvrtc_milliseconds: passes
            .iter()
            .find(|(pass, _)| *pass == "nvrtc")
            .map_or(0.0, |(_, ms)| *ms),
        targets: distinct(manifest.kernels.iter().map(|kernel| kernel.target))
            .into_iter()
            .map(|target| summary(target, &manifest.kernels))
            .collect(),
        passes,
        emitted,
    })
}

/// Runs the pipeline. Errors point at the leaf of the pattern, or name the config file.
pub(crate) fn lower(
    parsed: &Parsed,
    model: &ModelConfig,
    config: &Path,
    request: &Request<'_>,
) -> Result<Lowered, Failure> {
    let blame = |error: &ClassifyError, layer, kv_head| {
        let block = parsed.sparsity.block;
        let longest = request.capacity.unwrap_or(model.max_positions);
        let context = match *error {
            ClassifyError::EmptyQuery { kv_len, stage, .. } => Context::new(block, kv_len, stage),
            ClassifyError::CausalLeak { .. }
            | ClassifyError::Table { .. }
            | ClassifyError::TooManyRows(_) => Context::new(block, longest, 0),
        };
        let context = Context {
            layer,
            kv_head,
            ..context
        };
        source::blame(parsed, &context, error)
    };
    pipeline::lower(model, &parsed.sparsity, request).map_err(|error| match error {
        PipelineError::Pattern {
            error,
            layer,
            kv_head,
        } => blame(&error, layer, kv_head),
        PipelineError::Config(_)
        | PipelineError::Capacity { .. }
        | PipelineError::Prove(_)
        | PipelineError::NoLayers
        | PipelineError::Build(_)
        | PipelineError::Verify { .. }
        | PipelineError::Plan(_) => Failure::file(config, error),
    })
}

pub(crate) fn milliseconds(timings: &[(&'static str, f64)]) -> Vec<(&'static str, f64)> {
    let milliseconds = timings.iter().map(|(pass, seconds)| (*pass, seconds * 1e3));
    milliseconds.collect()
}

/// Emits every kernel of a plan, in the plan's order. First all texts are written, then NVRTC
/// compiles them, so that the two are timed separately.
fn emit(
    plan: &Plan,
    passes: &mut Vec<(&'static str, f64)>,
) -> Result<(Vec<KernelEntry>, Files), Failure> {
    let bar = crate::progress(2 * plan.kernels.len() as u64, "emitting kernels");
    let counted = |made| {
        bar.inc(1);
        made
    };
    let mut time = |pass, since: Instant| passes.push((pass, since.elapsed().as_secs_f64() * 1e3));
    let started = Instant::now();
    let written = plan.kernels.par_iter();
    let written = written.map(|planned| counted(kernel::write(&planned.spec, planned.target)));
    let written: Vec<Kernel> = written.collect::<Result<_, _>>()?;
    time("emit", started);
    let started = Instant::now();
    let made = written.into_par_iter();
    let made = made.map(|kernel| counted(kernel::assemble(kernel)).map(kernel::describe));
    let made: Vec<(KernelEntry, Files)> = made.collect::<Result<_, _>>()?;
    time("nvrtc", started);
    bar.finish_and_clear();
    let (kernels, files): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    Ok((kernels, files.into_iter().flatten().collect()))
}

/// Notes the targets that lack the element type that was asked for (by default the model's), and
/// which one their kernels have instead.
fn note_substitutes(plan: &Plan, targets: &[Target], asked: &[Dtype], model: Dtype) {
    let wanted = if asked.is_empty() { &[model] } else { asked };
    for (target, wanted) in targets
        .iter()
        .flat_map(|t| wanted.iter().map(move |w| (t, w)))
    {
        if target.has(*wanted) {
            continue;
        }
        let of = plan.kernels.iter().filter(|k| k.target == *target);
        let dtypes = distinct(of.map(|kernel| kernel.spec.dtype));
        let instead: Vec<_> = dtypes.iter().map(|dtype| dtype.name()).collect();
        output::note(format_args!(
            "note: {target} has no {}; making {} kernels for it",
            wanted.name(),
            instead.join(" and ")
        ));
    }
}

/// Notes which kernels of a folder are replaced although `--add` could have kept them.
fn note_replaced(dir: &Path, new: &Manifest) {
    let Some(old) = Artifacts::open(dir)
        .ok()
        .filter(|old| old.admits(new).is_ok())
    else {
        return;
    };
    let kinds = |manifest: &Manifest| -> BTreeSet<(Target, Dtype)> {
        let kernels = manifest.kernels.iter();
        kernels.map(|k| (k.target, k.spec.dtype)).collect()
    };
    let (old, new) = (kinds(&old.manifest), kinds(new));
    let lost = old.difference(&new);
    let lost: Vec<_> = lost
        .map(|(target, dtype)| format!("{target} {}", dtype.name()))
        .collect();
    if !lost.is_empty() {
        output::note(format_args!(
            "note: {} had kernels for {} too, which this replaces; --add keeps them",
            dir.display(),
            lost.join(", ")
        ));
    }
}

/// Notes if the layers do not reach every earlier block at the longest length, or if that was
/// proved only at a shorter one.
fn note_coverage(plan: &Plan) {
    let (proof, layers) = (&plan.proof, plan.layers.len());
    if proof.tokens < plan.capacity {
        output::note(format_args!(
            "note: what the layers reach is proved at {} tokens and not at {}, where this pattern has too many pairs of blocks to go through",
            proof.tokens, plan.capacity
        ));
    }
    if let (None, Some(reached)) = (proof.full_at, proof.coverage.last()) {
        output::note(format_args!(
            "note: at {} tokens {layers} layers reach {:.1} % of the earlier blocks; a larger radix or count, or more layers reach more (see `butterfly prove`)",
            proof.tokens,
            reached * 100.0
        ));
    }
}

fn summary(target: Target, kernels: &[KernelEntry]) -> TargetReport {
    let of: Vec<_> = kernels
        .iter()
        .filter(|kernel| kernel.target == target)
        .collect();
    let files = of.iter().flat_map(|kernel| &kernel.files);
    let forms = files.filter_map(|file| file.path.rsplit('.').next());
    TargetReport {
        target,
        kernels: of.len(),
        dtypes: distinct(of.iter().map(|kernel| kernel.spec.dtype)),
        forms: distinct(forms.map(str::to_string)),
    }
}

/// The values, sorted and without duplicates.
fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let values: BTreeSet<T> = values.collect();
    values.into_iter().collect()
}
