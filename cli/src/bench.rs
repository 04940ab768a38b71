//! `butterfly bench attention` and `bench decode`: medians, predicted beside measured,
//! sparse beside dense.

#![expect(
    clippy::cast_possible_truncation,
    reason = "shapes come from flags of 32 bits"
)]

use crate::args::{BenchAttention as Command, DeviceArg};
use crate::call::Shape;
use crate::device::{self, Chosen, Runner};
use crate::failure::Failure;
use crate::measure::{self, Layer};
use crate::source;
use butterfly_compiler::card::Card;
use butterfly_compiler::cost::{self, LayerShape, Limit, Machine};
use butterfly_compiler::{plan, schedule, work};
use butterfly_cpu::visited_pairs;
use butterfly_ir::manifest::KernelEntry;
use butterfly_ir::{Context, Dtype, KernelSpec, Pattern, Role, Sparsity, Target, build};
use butterfly_runtime::Device;
use butterfly_runtime::artifacts::Artifacts;
use serde::Serialize;

/// Default index that picks the stage.
const STAGE: u32 = 3;

#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    /// The artifact folder that the kernel came from, if any.
    artifacts: Option<String>,
    kernel: Option<String>,
    dtype: Dtype,
    shape: String,
    threads: Option<usize>,
    machine: Option<Machine>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    pattern: String,
    tokens: u32,
    mean_degree: f64,
    first_ms: f64,
    median_ms: f64,
    fastest_ms: f64,
    slowest_ms: f64,
    predicted_ms: Option<f64>,
    limit: Option<Limit>,
    tile_gflops: f64,
    exact_gflops: f64,
    /// Speedup: the time of dense causal attention, divided by this time.
    against_dense: Option<f64>,
    /// Largest difference of o from the f64 reference, over `checked_queries` queries.
    error: Option<f64>,
    /// The same for the log-sum-exps.
    lse_error: Option<f64>,
    checked_queries: usize,
    within_tolerance: Option<bool>,
}

pub(crate) fn run(phase: Role, command: &Command, json: bool) -> Result<(), Failure> {
    let parsed = command.pattern.read()?;
    let sparsity = &parsed.sparsity;
    if sparsity.pattern.routing().is_some() {
        return Err(Failure::Bad(
            "the pattern chooses blocks by content, which this command does not measure: it runs attention alone; run `bench model`"
                .into(),
        ));
    }
    if sparsity.pattern.is_by_layer() {
        return Err(Failure::Bad(
            "the pattern differs by layer; give the pattern of one layer, or run `bench model`"
                .into(),
        ));
    }
    source::check_heads(&parsed, command.kv_heads)?;
    let artifacts = command.artifacts.as_deref().map(Artifacts::open);
    let artifacts = artifacts.transpose().map_err(Failure::bad)?;
    if let Some(artifacts) = &artifacts {
        device::check_pattern(artifacts, sparsity)?;
    }
    let wanted = |target| match &artifacts {
        Some(artifacts) => from_folder(artifacts, target, phase),
        None => from_flags(command, sparsity, phase),
    };
    let chosen = device::choose(command.device, &wanted, artifacts.as_ref())?;
    let dense = match command.dense {
        true => Some(dense(&chosen)?),
        false => None,
    };
    let shape = shape(command, &chosen.spec)?;
    let machine = match chosen.device {
        Runner::Cpu => Some(measure::calibrate(&chosen, &shape, command.threads)?),
        Runner::Gpu(_) => {
            let card = Card::of_device(&chosen.name);
            let kernel = chosen.kernel.as_ref().map(|(entry, _)| entry);
            card.zip(kernel)
                .and_then(|(card, k)| card.machine(&k.spec, k.target, &k.geometry))
        }
    };

    let stage = command.stage.or(sparsity.stage).unwrap_or(STAGE);
    let mut rows = Vec::new();
    let bar = crate::progress(
        command.seq_len.len() as u64 * (1 + u64::from(command.dense)),
        "measuring",
    );
    for tokens in &command.seq_len {
        let context = command.pattern.context(&parsed, *tokens, stage)?;
        source::check(&parsed, &context, command.kv_heads)?;
        let layer = Layer::new(
            Shape {
                q_len: match phase {
                    Role::Prefill => *tokens as usize,
                    Role::Decode => 1,
                },
                kv_len: *tokens as usize,
                ..shape
            },
            chosen.spec.dtype,
            command.threads,
        );
        let runs = (command.repeats, command.check);
        let of = |chosen, pattern, runs| {
            let row = measured(&layer, chosen, pattern, &context, machine.as_ref(), runs);
            bar.inc(1);
            row
        };
        let mut row = of(&chosen, &sparsity.pattern, runs)?;
        if let Some((pattern, chosen)) = &dense {
            let dense = of(chosen, pattern, (command.repeats.min(3), command.check))?;
            row.against_dense = Some(dense.median_ms / row.median_ms);
            rows.push(row);
            rows.push(dense);
        } else {
            rows.push(row);
        }
    }
    bar.finish_and_clear();

    let far = rows.iter().any(|row| row.within_tolerance == Some(false));
    let report = Report {
        device: chosen.device.name(),
        device_name: chosen.name,
        artifacts: artifacts.map(|artifacts| artifacts.dir().display().to_string()),
        kernel: chosen.kernel.map(|(entry, _)| entry.key),
        dtype: chosen.spec.dtype,
        shape: format!(
            "{}, B {} Hq {} Hkv {} D {} Dv {} block {}",
            phase.name(),
            shape.batch,
            shape.q_heads,
            shape.kv_heads,
            shape.head_dim,
            shape.v_head_dim,
            sparsity.block
        ),
        threads: (chosen.device == Runner::Cpu).then(|| command.threads.unwrap_or_else(cores)),
        machine,
        rows,
    };
    crate::print(json, &report, || text(&report))?;
    match far {
        false => Ok(()),
        true => Err(Failure::Check(
            "a result is further from the reference than its element type accounts for".into(),
        )),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The kernel of a folder for `target` and `phase`, in the smallest element type that it has.
fn from_folder(artifacts: &Artifacts, target: Target, phase: Role) -> Result<KernelSpec, Failure> {
    // Kernels for layers that keep their attention are skipped.
    let sparsity = &artifacts.manifest.sparsity;
    let rows = artifacts.rows(&sparsity.pattern).map_err(Failure::bad)?;
    let of_pattern = (sparsity.block, &rows);
    let fits = |k: &&KernelEntry| {
        let spec = &k.spec;
        k.target == target && spec.role == phase && (spec.block, &spec.rows) == of_pattern
    };
    let kernels = artifacts.manifest.kernels.iter().filter(fits);
    let kernel = kernels.min_by_key(|kernel| (kernel.spec.dtype.bytes(), kernel.key.clone()));
    let none = || {
        let dir = artifacts.dir().display();
        Failure::Bad(format!(
            "{dir}: no {} kernel for {target}; {}",
            phase.name(),
            artifacts.adding(target, None)
        ))
    };
    kernel.map(|kernel| kernel.spec.clone()).ok_or_else(none)
}

fn from_flags(command: &Command, sparsity: &Sparsity, phase: Role) -> Result<KernelSpec, Failure> {
    let (q, kv) = (command.q_heads.unwrap_or(16), command.kv_heads);
    if !q.is_multiple_of(kv) {
        let message = format!("--q-heads {q} is no multiple of --kv-heads {kv}");
        return Err(Failure::Bad(message));
    }
    let head_dim = command.head_dim.unwrap_or(128);
    Ok(KernelSpec {
        score: Default::default(),
        role: phase,
        head_dim,
        v_head_dim: head_dim,
        group: q / kv,
        dtype: command.dtype.unwrap_or(Dtype::F32),
        block: sparsity.block,
        rows: plan::rows(&sparsity.pattern),
    })
}

fn shape(command: &Command, spec: &KernelSpec) -> Result<Shape, Failure> {
    let q_heads = command.kv_heads * spec.group;
    match command.q_heads {
        Some(given) if given != q_heads => Err(Failure::Bad(format!(
            "--q-heads {given}: the kernel serves {} q heads a kv head, so {} kv heads need {q_heads}",
            spec.group, command.kv_heads
        ))),
        _ => Ok(Shape {
            batch: command.batch as usize,
            q_heads: q_heads as usize,
            kv_heads: command.kv_heads as usize,
            q_len: 0,
            kv_len: 0,
            head_dim: spec.head_dim as usize,
            v_head_dim: spec.v_head_dim as usize,
        }),
    }
}

/// Dense causal attention on the same device, by a kernel that differs only in its rows; on a GPU
/// it is emitted for this run.
fn dense(sparse: &Chosen) -> Result<(Pattern, Chosen), Failure> {
    let pattern = build::causal() & build::all();
    let spec = KernelSpec {
        rows: plan::rows(&pattern),
        ..sparse.spec.clone()
    };
    let device = match sparse.device {
        Runner::Cpu => DeviceArg::Cpu,
        Runner::Gpu(Device::Cuda) => DeviceArg::Cuda,
        Runner::Gpu(Device::Vulkan) => DeviceArg::Vulkan,
        Runner::Gpu(Device::Webgpu) => DeviceArg::Webgpu,
    };
    let chosen = device::choose(device, &|_| Ok(spec.clone()), None)?;
    Ok((pattern, chosen))
}

fn measured(
    layer: &Layer,
    chosen: &Chosen,
    pattern: &Pattern,
    context: &Context,
    machine: Option<&Machine>,
    (runs, check): (u32, bool),
) -> Result<Row, Failure> {
    let call = layer.call(pattern, context, runs);
    let outcome = call.run(chosen)?;
    let agreement = check
        .then(|| measure::agreement(&call, &outcome))
        .transpose()?;
    let geometry = match &chosen.kernel {
        Some((entry, _)) => entry.geometry,
        None => crate::kernel::choice(&chosen.spec, Target::Cpu)?.0,
    };
    let (phase, q_len) = (chosen.spec.role, layer.shape.q_len as u32);
    let from = context.kv_len - q_len;
    let kv_heads = layer.shape.kv_heads as u32;
    let schedule = schedule::of_heads((pattern, kv_heads), context, phase, &geometry, from);
    let mut schedule = schedule.map_err(Failure::bad)?;
    if chosen.device == Runner::Cpu {
        let visited = visited_pairs(&call.problem(&call.table()?)).map_err(Failure::bad)?;
        schedule.tile_pairs = visited / (layer.shape.batch * layer.shape.q_heads) as u64;
    }
    let shape = layer.shape;
    let layer_shape = LayerShape {
        batch: shape.batch as u32,
        q_heads: shape.q_heads as u32,
        kv_heads: shape.kv_heads as u32,
        head_dim: shape.head_dim as u32,
        v_head_dim: shape.v_head_dim as u32,
        q_len,
        kv_len: context.kv_len,
        dtype: layer.dtype,
    };
    let cost = cost::count(&schedule, &layer_shape, phase, &geometry);
    let prediction = machine.map(|machine| cost::predict(&cost, machine));
    let median_ms = outcome.median();
    let degree = work::mean_degree(pattern, context, kv_heads, from / context.block);
    let times = || outcome.milliseconds.iter().copied();
    Ok(Row {
        pattern: pattern.to_string(),
        tokens: context.kv_len,
        mean_degree: degree.map_err(Failure::bad)?,
        first_ms: outcome.first_milliseconds,
        median_ms,
        fastest_ms: times().fold(f64::INFINITY, f64::min),
        slowest_ms: times().fold(0.0, f64::max),
        predicted_ms: prediction.map(|p| p.seconds * 1e3),
        limit: prediction.map(|p| p.limit),
        tile_gflops: cost.tile_flop as f64 / median_ms / 1e6,
        exact_gflops: cost.exact_flop as f64 / median_ms / 1e6,
        against_dense: None,
        error: agreement.as_ref().map(|a| a.error),
        lse_error: agreement.as_ref().map(|a| a.lse_error),
        checked_queries: agreement.as_ref().map_or(0, |a| a.queries),
        within_tolerance: agreement.as_ref().map(|a| a.holds()),
    })
}

fn text(report: &Report) -> String {
    let mut text = format!("{} ({})", report.device, report.device_name);
    if let Some(threads) = report.threads {
        text += &format!(", {threads} threads");
    }
    if let Some(machine) = &report.machine {
        text += &format!(
            "; {}: {:.0} GFLOP/s, {:.1} GB/s",
            machine.name,
            machine.flop_per_second / 1e9,
            machine.bytes_per_second / 1e9
        );
    }
    text += &format!("\n{} {}", report.dtype.name(), report.shape);
    if let (Some(dir), Some(kernel)) = (&report.artifacts, &report.kernel) {
        text += &format!(", kernel {kernel} of {dir}");
    }
    text += &format!(
        "\n{:>8} {:>7} {:>10} {:>10} {:>10} {:>9} {:>9} {:>8} {:>9}  pattern\n",
        "tokens",
        "degree",
        "first ms",
        "median ms",
        "predicted",
        "tile GF/s",
        "pair GF/s",
        "vs dense",
        "error"
    );
    for row in &report.rows {
        let dash = || "-".to_string();
        text += &format!(
            "{:>8} {:>7.2} {:>10.3} {:>10.3} {:>10} {:>9.1} {:>9.1} {:>8} {:>9}  {}\n",
            row.tokens,
            row.mean_degree,
            row.first_ms,
            row.median_ms,
            row.predicted_ms.map_or_else(dash, |ms| format!("{ms:.3}")),
            row.tile_gflops,
            row.exact_gflops,
            row.against_dense
                .map_or_else(dash, |times| format!("{times:.1}x")),
            row.error.map_or_else(dash, |error| format!("{error:.1e}")),
            row.pattern
        );
    }
    if let Some(row) = report.rows.iter().find(|row| row.error.is_some()) {
        text += &format!(
            "error: largest difference from attention in f64, over {} queries of each row; of a log-sum-exp {:.1e}\n",
            row.checked_queries,
            report
                .rows
                .iter()
                .filter_map(|row| row.lse_error)
                .fold(0.0, f64::max)
        );
    }
    text
}
