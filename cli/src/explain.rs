//! `butterfly explain`: a layer before and after fusion, which kernel runs on each target and why,
//! its work, and the predicted time of that work; with `--model`, that of the whole model.

mod whole;

use crate::args::{Explain as Command, PhaseArg};
use crate::failure::Failure;
use crate::{compile, kernel, source};
use butterfly_compiler::cost::{self, Cost, LayerShape, Limit, Machine};
use butterfly_compiler::pipeline::{Lowered, Request};
use butterfly_compiler::schedule::{self, Schedule};
use butterfly_compiler::work::{self, Work};
use butterfly_compiler::{config, form, fuse, graph, plan};
use butterfly_ir::layer_graph::LayerGraph;
use butterfly_ir::model::{Form, KernelShape, ModelConfig};
use butterfly_ir::plan::{PlannedKernel, Proof};
use butterfly_ir::{Context, Dtype, Geometry, Indices, Pattern, Phase, Rows, Target};
use serde::Serialize;

/// Default length, in tokens.
const TOKENS: u32 = 32768;

#[derive(Serialize)]
struct Report {
    config: String,
    model_type: &'static str,
    pattern: String,
    layer: u32,
    stage: u32,
    stage_count: u32,
    phase: Phase,
    q_len: u32,
    kv_len: u32,
    /// The form of latent attention, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    form: Option<String>,
    rows: &'static str,
    /// What rows choose by content.
    #[serde(skip_serializing_if = "Option::is_none")]
    routing: Option<Choice>,
    /// The kv heads of the layer, if they differ: which, and what they see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    heads: Vec<Heads>,
    before: Graph,
    after: Graph,
    shape: KernelShape,
    work: Work,
    mean_degree: f64,
    targets: Vec<OnTarget>,
    proof: Proof,
    capacity: u32,
    /// Milliseconds of each pass.
    passes: Vec<(&'static str, f64)>,
    /// All parts of the model, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<whole::Whole>,
}

#[derive(Serialize)]
struct Choice {
    blocks: u32,
    pool: u32,
    every: u32,
    /// FLOP of all scores of the layer.
    score_flop: u64,
}

#[derive(Serialize)]
struct Heads {
    heads: Vec<u32>,
    pattern: String,
    mean_degree: f64,
}

#[derive(Serialize)]
struct Graph {
    kernels: usize,
    /// Bytes that all steps read and write at the lengths of the report.
    bytes: u64,
    graph: LayerGraph,
}

#[derive(Serialize)]
struct OnTarget {
    target: Target,
    dtype: Dtype,
    key: String,
    reason: String,
    geometry: Geometry,
    schedule: Schedule,
    imbalance: f64,
    cost: Cost,
    machine: Option<Machine>,
    predicted_ms: Option<f64>,
    limit: Option<Limit>,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let parsed = command.pattern.read()?;
    let path = &command.config;
    let text = source::read_text(path)?;
    let model = config::read(&path.display().to_string(), &text).map_err(Failure::bad)?;
    command.pattern.check_model(&model, (path, &text))?;
    let request = Request {
        targets: &command.made_for.target,
        dtypes: &command.made_for.dtype,
        capacity: command.pattern.capacity,
        verify: false,
    };
    let lowered = compile::lower(&parsed, &model, path, &request)?;
    let layers = &lowered.plan.layers;
    let layer = match command.layer {
        None => layers.first(),
        Some(layer) => layers.iter().find(|swapped| swapped.layer == layer),
    };
    let layer = *layer.ok_or_else(|| {
        let swapped: Vec<_> = layers.iter().map(|swapped| swapped.layer).collect();
        let asked = command.layer.unwrap_or_default();
        Failure::Bad(format!(
            "--layer {asked}: not replaced; the pattern replaces the layers {swapped:?}"
        ))
    })?;
    let kv_len = command.seq_len.unwrap_or(TOKENS.min(lowered.plan.capacity));
    let context = Context {
        layer: layer.layer,
        ..command.pattern.context(&parsed, kv_len, layer.index)?
    };
    let kv_heads = model.attention.kv_heads();
    source::check(&parsed, &context, kv_heads)?;
    let pattern = parsed.sparsity.pattern.of_layer(layer.layer);
    let (phase, q_len) = match command.phase {
        PhaseArg::Prefill => (Phase::Prefill, kv_len),
        PhaseArg::Decode => (Phase::Decode, 1),
    };
    let lengths = [q_len, kv_len].map(u64::from);
    let form = form::of(&model.attention, phase, &pattern, lengths);
    let before = graph::build(&model, layer.layer, phase, form).map_err(Failure::bad)?;
    let after = fuse::lower(&before);
    let stage_count = pattern.stage_count(context.blocks());
    let work = work::of_heads(&pattern, &context, kv_heads).map_err(Failure::bad)?;
    let report = Report {
        config: path.display().to_string(),
        model_type: model.family.name(),
        pattern: parsed.sparsity.to_string(),
        layer: layer.layer,
        stage: layer.index % stage_count,
        stage_count,
        phase,
        q_len,
        kv_len,
        form: form::reason(&model.attention, phase, &pattern, lengths),
        rows: rows(&pattern),
        routing: choice(
            &pattern,
            &context,
            &model.attention.kernel_shape(form),
            q_len,
        )?,
        heads: heads(&pattern, &context, kv_heads)?,
        before: summary(before, q_len, kv_len),
        after: summary(after, q_len, kv_len),
        shape: model.attention.kernel_shape(form),
        mean_degree: work.mean_degree(context.rows() as usize),
        work,
        targets: targets(
            command,
            &model,
            &lowered,
            (&pattern, &context),
            (phase, form, q_len),
        )?,
        proof: lowered.plan.proof.clone(),
        capacity: lowered.plan.capacity,
        passes: compile::milliseconds(&lowered.timings),
        model: match command.model {
            true => Some(whole::predict(
                command,
                (&model, &text),
                (&parsed, &lowered),
                kv_len,
            )?),
            false => None,
        },
    };
    crate::print(json, &report, || print(&report))
}

fn rows(pattern: &Pattern) -> &'static str {
    match plan::rows(pattern) {
        Rows::ClosedForm(_) => "closed form, computed in registers: no index bytes",
        Rows::Table if pattern.routing().is_some() => {
            "a table, made on the device for each call: rows choose blocks by content"
        }
        Rows::Table => "a table, made for each length and stage",
    }
}

fn choice(
    pattern: &Pattern,
    context: &Context,
    shape: &KernelShape,
    q_len: u32,
) -> Result<Option<Choice>, Failure> {
    let Some(routing) = pattern.routing() else {
        return Ok(None);
    };
    let from = context.kv_len - q_len;
    let mut products = 0;
    for (pattern, heads) in pattern.head_classes(shape.kv_heads) {
        let of_head = work::score_products(&pattern, context, from).map_err(Failure::bad)?;
        products += heads.len() as u64 * of_head;
    }
    Ok(Some(Choice {
        blocks: routing.blocks,
        pool: routing.pool,
        every: routing.every,
        // Logits are computed twice: for the sums of weights, and for the weights.
        score_flop: 4 * products * u64::from(shape.group) * u64::from(shape.head_dim),
    }))
}

fn heads(pattern: &Pattern, context: &Context, kv_heads: u32) -> Result<Vec<Heads>, Failure> {
    let classes = pattern.head_classes(kv_heads);
    if classes.len() == 1 {
        return Ok(Vec::new());
    }
    let of = |(pattern, heads): (Pattern, Vec<u32>)| {
        let work = work::count(&pattern, context).map_err(Failure::bad)?;
        Ok(Heads {
            heads,
            pattern: pattern.to_string(),
            mean_degree: work.mean_degree(context.rows() as usize),
        })
    };
    classes.into_iter().map(of).collect()
}

fn summary(graph: LayerGraph, q_len: u32, kv_len: u32) -> Graph {
    Graph {
        kernels: graph.kernels(),
        bytes: graph.traffic().at(q_len, kv_len),
        graph,
    }
}

fn targets(
    command: &Command,
    model: &ModelConfig,
    lowered: &Lowered,
    (pattern, context): (&Pattern, &Context),
    (phase, form, q_len): (Phase, Form, u32),
) -> Result<Vec<OnTarget>, Failure> {
    let kernels = lowered.plan.kernels.iter();
    let own = plan::rows(pattern);
    let shape = model.attention.kernel_shape(form);
    let of_layer = |kernel: &&PlannedKernel| {
        let spec = &kernel.spec;
        (spec.role, &spec.rows, spec.group, spec.head_dim)
            == (phase.into(), &own, shape.group, shape.head_dim)
    };
    let kernels = kernels.filter(of_layer);
    let kv_heads = shape.kv_heads;
    let given = command.tflops.zip(command.bandwidth);
    // Targets with the same tiles have the same schedule.
    let mut schedules: Vec<(_, Schedule)> = Vec::new();
    let on = |planned: &PlannedKernel| {
        let PlannedKernel { key, target, spec } = planned;
        let (geometry, reason) = kernel::choice(spec, *target)?;
        let tiles = (geometry.q_tile, geometry.k_tile, geometry.launch);
        let schedule = match schedules.iter().find(|(of, _)| *of == tiles) {
            Some((_, schedule)) => *schedule,
            None => {
                let (pattern, from) = ((pattern, kv_heads), context.kv_len - q_len);
                let schedule = schedule::of_heads(pattern, context, phase.into(), &geometry, from);
                let schedule = schedule.map_err(Failure::bad)?;
                schedules.push((tiles, schedule));
                schedule
            }
        };
        let cost = cost::count(
            &schedule,
            &LayerShape {
                batch: command.batch,
                q_heads: shape.q_heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                v_head_dim: shape.v_head_dim,
                q_len,
                kv_len: context.kv_len,
                dtype: spec.dtype,
            },
            phase.into(),
            &geometry,
        );
        let machine = match given {
            Some((tflops, bandwidth)) => Some(Machine {
                name: "given".into(),
                flop_per_second: tflops * 1e12,
                bytes_per_second: bandwidth * 1e9,
                launch_seconds: 5e-6,
                kernel: None,
            }),
            None => command.card.machine(spec, *target, &geometry),
        };
        let prediction = machine
            .as_ref()
            .map(|machine| cost::predict(&cost, machine));
        Ok(OnTarget {
            target: *target,
            dtype: spec.dtype,
            key: key.clone(),
            reason,
            geometry,
            imbalance: schedule.imbalance(),
            schedule,
            cost,
            machine,
            predicted_ms: prediction.map(|p| p.seconds * 1e3),
            limit: prediction.map(|p| p.limit),
        })
    };
    kernels.map(on).collect()
}

fn print(report: &Report) -> String {
    let Report {
        before,
        after,
        work,
        ..
    } = report;
    let mut text = format!(
        "{} ({}), layer {} at stage {} of {}\n{}\n\nas the model defines it, {:.1} MB at q_len {}, kv_len {}:\n{}\nfused, {:.1} MB:\n{}\n",
        report.config,
        report.model_type,
        report.layer,
        report.stage,
        report.stage_count,
        report.pattern,
        mega(before.bytes),
        report.q_len,
        report.kv_len,
        before.graph,
        mega(after.bytes),
        after.graph
    );
    if let Some(form) = &report.form {
        text += &format!("latent attention, {form}\n");
    }
    text += &format!(
        "rows: {}; {:.2} blocks a row, at most {}; {:.2} % of the causal pairs\n",
        report.rows,
        report.mean_degree,
        work.max_degree,
        100.0 * work.pairs as f64 / work.causal_pairs as f64
    );
    for Heads {
        heads,
        pattern,
        mean_degree,
    } in &report.heads
    {
        let named = Indices::of(heads.iter().map(|head| (*head, head + 1)));
        text += &format!("  kv heads {named}: {mean_degree:.2} blocks a row, {pattern}\n");
    }
    if let Some(routing) = &report.routing {
        text += &format!(
            "rows choose up to {} more blocks by content, counted above; {:.3} GFLOP in scores against means of {} keys, by every query whose position {} divides, which the times below leave out\n",
            routing.blocks,
            routing.score_flop as f64 / 1e9,
            routing.pool,
            routing.every
        );
    }
    let proof = &report.proof;
    let reached = proof.coverage.last().copied().unwrap_or_default();
    text += &match proof.full_at {
        Some(depth) => format!(
            "proved at {} tokens: {depth} layers reach every earlier block\n",
            proof.tokens
        ),
        None => format!(
            "proved at {} tokens: the layers reach {:.1} % of the earlier blocks\n",
            proof.tokens,
            reached * 100.0
        ),
    };
    report.targets.iter().for_each(|on| text += &target(on));
    text += &report.model.as_ref().map_or_else(String::new, whole::text);
    text
}

fn target(on: &OnTarget) -> String {
    let Geometry {
        threads,
        q_tile,
        k_tile,
        shared_bytes,
        boxes: _,
        launch: _,
    } = on.geometry;
    let Schedule {
        workgroups,
        tiles,
        masked_tiles,
        ..
    } = on.schedule;
    let predicted = match (&on.machine, on.predicted_ms, on.limit) {
        (Some(machine), Some(ms), Some(limit)) => format!(
            "{} {ms:.4} ms on {} ({:.0} TFLOP/s in products, {:.0} GB/s), bound by {}",
            if machine.kernel.is_some() {
                "about"
            } else {
                "at least"
            },
            machine.name,
            machine.flop_per_second / 1e12,
            machine.bytes_per_second / 1e9,
            limit.name()
        ),
        _ => "no time: no device of this target was measured; give --tflops and --bandwidth".into(),
    };
    format!(
        "\n{} {}  {}\n  {}\n  tiles of {q_tile} x {k_tile}, {} threads, {shared_bytes} bytes of shared memory\n  {workgroups} workgroups a head, {tiles} tiles, {masked_tiles} with a mask; the heaviest does {:.2} times the mean\n  {:.3} GFLOP in tiles, {:.3} in pairs that are seen, {:.1} MB\n  {predicted}\n",
        on.target,
        on.dtype.name(),
        on.key,
        on.reason,
        threads.iter().product::<u32>(),
        on.imbalance,
        on.cost.tile_flop as f64 / 1e9,
        on.cost.exact_flop as f64 / 1e9,
        mega(on.cost.bytes)
    )
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
