//! `butterfly compile`: model configs and a pattern to artifacts.

use crate::args::Compile as Command;
use crate::failure::Failure;
use crate::source;
use butterfly_compiler::{classify::ClassifyError, config, key, lengths, plan};
use butterfly_ir::manifest::{self, ConfigRef, FileEntry, KernelEntry, Manifest, SCHEMA};
use butterfly_ir::model::ModelConfig;
use butterfly_ir::pattern::Parsed;
use butterfly_ir::{Context, Dtype, Geometry, Kernel, KernelSpec, Target};
use butterfly_runtime::artifacts;
use rayon::prelude::*;
use serde::Serialize;
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
    targets: Vec<TargetReport>,
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
    let mut targets = command.target.clone();
    targets.sort_unstable();
    targets.dedup();
    let mut made = Vec::new();
    for path in &command.configs {
        let dir = match command.configs.len() {
            1 => command.output.clone(),
            _ => command
                .output
                .join(path.file_stem().unwrap_or(path.as_os_str())),
        };
        made.push(one(command, &parsed, &targets, path, &dir)?);
    }
    let report = Report { artifacts: made };
    crate::print(json, &report, || text(&report))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for made in &report.artifacts {
        text += &format!(
            "{}: {} kernels for {} layers, {} bytes in {}, {:.0} ms\n",
            made.config, made.kernels, made.layers, made.bytes, made.dir, made.milliseconds
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
    let layers =
        config::swapped(&model, &parsed.sparsity).map_err(|error| Failure::file(path, error))?;
    check_lengths(parsed, &model, command.pattern.capacity)?;
    let wanted = command.dtype.unwrap_or(model.dtype);
    let jobs = jobs(&model, parsed, targets, wanted);
    let bar = crate::progress(jobs.len() as u64, "emitting kernels");
    let emitted = jobs
        .into_par_iter()
        .map(|(spec, target)| {
            let entry = emit(&spec, target);
            bar.inc(1);
            entry
        })
        .collect::<Result<Vec<_>, _>>();
    bar.finish_and_clear();
    let mut emitted = emitted?;
    emitted.sort_by(|a, b| (a.0.target, &a.0.key).cmp(&(b.0.target, &b.0.key)));
    let (kernels, files): (Vec<_>, Vec<_>) = emitted.into_iter().unzip();
    let files: Vec<_> = files.into_iter().flatten().collect();
    let name = path.file_name().unwrap_or(path.as_os_str());
    let manifest = Manifest {
        schema: SCHEMA,
        compiler: env!("CARGO_PKG_VERSION").into(),
        pattern: parsed.sparsity.to_string(),
        sparsity: parsed.sparsity.clone(),
        config: ConfigRef {
            file: name.to_string_lossy().into_owned(),
            model_type: model.family.name().into(),
            blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
        },
        layers,
        kernels,
        digest: String::new(),
    };
    artifacts::write(dir, &manifest, &files).map_err(Failure::bad)?;
    Ok(Made {
        config: path.display().to_string(),
        dir: dir.display().to_string(),
        kernels: manifest.kernels.len(),
        bytes: files.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
        layers: manifest.layers.len(),
        milliseconds: started.elapsed().as_secs_f64() * 1e3,
        targets: targets
            .iter()
            .map(|target| summary(*target, &manifest.kernels))
            .collect(),
    })
}

fn summary(target: Target, kernels: &[KernelEntry]) -> TargetReport {
    let of: Vec<_> = kernels
        .iter()
        .filter(|kernel| kernel.target == target)
        .collect();
    let mut dtypes: Vec<_> = of.iter().map(|kernel| kernel.spec.dtype).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    let extension = |file: &FileEntry| {
        PathBuf::from(&file.path)
            .extension()
            .map(|e| e.to_string_lossy().into_owned())
    };
    let mut forms: Vec<_> = of
        .iter()
        .flat_map(|kernel| kernel.files.iter().filter_map(extension))
        .collect();
    forms.sort_unstable();
    forms.dedup();
    TargetReport {
        target,
        kernels: of.len(),
        dtypes,
        forms,
    }
}

/// Every query must see a key, and none a later one, at all lengths the model takes.
fn check_lengths(
    parsed: &Parsed,
    model: &ModelConfig,
    capacity: Option<u32>,
) -> Result<(), Failure> {
    let (sparsity, most) = (&parsed.sparsity, capacity.unwrap_or(model.max_positions));
    lengths::check(&sparsity.pattern, sparsity.block, most).map_err(|error| {
        let context = match error {
            ClassifyError::EmptyQuery { kv_len, stage, .. } => {
                Context::new(sparsity.block, kv_len, stage)
            }
            ClassifyError::CausalLeak { .. } | ClassifyError::Table { .. } => {
                Context::new(sparsity.block, most, 0)
            }
        };
        source::blame(parsed, &context, &error)
    })
}

/// Every kernel to make.
fn jobs(
    model: &ModelConfig,
    parsed: &Parsed,
    targets: &[Target],
    wanted: Dtype,
) -> Vec<(KernelSpec, Target)> {
    let mut jobs = Vec::new();
    for target in targets {
        let dtypes = plan::dtypes(*target, wanted);
        if !dtypes.contains(&wanted) {
            let instead: Vec<_> = dtypes.iter().map(|dtype| dtype.name()).collect();
            eprintln!(
                "note: {target} has no {}; making {} kernels for it",
                wanted.name(),
                instead.join(" and ")
            );
        }
        for dtype in dtypes {
            jobs.extend(
                plan::lower(model, &parsed.sparsity, *dtype)
                    .into_iter()
                    .map(|spec| (spec, *target)),
            );
        }
    }
    jobs
}

type Files = Vec<(String, Vec<u8>)>;

/// Emits one kernel and describes it.
pub(crate) fn emit(spec: &KernelSpec, target: Target) -> Result<(KernelEntry, Files), Failure> {
    let key = key::of(spec, target).map_err(Failure::bad)?;
    let kernel = match target {
        Target::Cpu => native(spec, &key)?,
        Target::Cuda(_) | Target::Vulkan | Target::Webgpu | Target::Metal => {
            butterfly_codegen::emit(spec, target).map_err(Failure::bad)?
        }
    };
    let path = |extension: &str| format!("kernels/{key}.{extension}");
    let files: Files = kernel
        .files
        .into_iter()
        .map(|(extension, bytes)| (path(&extension), bytes))
        .collect();
    let describe = |(path, bytes): &(String, Vec<u8>)| FileEntry {
        path: path.clone(),
        bytes: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_hex().to_string(),
    };
    let entry = KernelEntry {
        grid: manifest::grid_formulas(spec, &kernel.geometry),
        arguments: manifest::arguments(spec),
        files: files.iter().map(describe).collect(),
        spec: spec.clone(),
        entry: kernel.entry,
        geometry: kernel.geometry,
        registers: None,
        spills: None,
        key,
        target,
    };
    Ok((entry, files))
}

/// The CPU executes the specification itself, so that is its file.
fn native(spec: &KernelSpec, key: &str) -> Result<Kernel, Failure> {
    let text = serde_json::to_string_pretty(spec)
        .map_err(|error| Failure::Bad(format!("kernel {key}: {error}")))?;
    Ok(Kernel {
        spec: spec.clone(),
        target: Target::Cpu,
        entry: "native".into(),
        geometry: Geometry {
            threads: [1, 1, 1],
            q_tile: spec.block,
            k_tile: spec.block,
            shared_bytes: 0,
        },
        files: vec![("json".into(), (text + "\n").into_bytes())],
    })
}
