//! `butterfly bench attention`: medians, predicted beside measured, sparse beside dense.

use crate::args::BenchAttention as Command;
use crate::failure::Failure;
use crate::source;
use butterfly_compiler::cost::{self, LayerShape, Limit, Machine};
use butterfly_compiler::{classify, work};
use butterfly_cpu::{Problem, attend, visited_pairs};
use butterfly_ir::{Context, Dtype, Pattern, build, rows};
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    device: &'static str,
    threads: usize,
    machine: Machine,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    pattern: String,
    tokens: u32,
    mean_degree: f64,
    median_ms: f64,
    fastest_ms: f64,
    slowest_ms: f64,
    predicted_ms: f64,
    limit: Limit,
    tile_gflops: f64,
    exact_gflops: f64,
    /// Time of dense causal attention by the same kernel over this time.
    against_dense: Option<f64>,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    if !command.q_heads.is_multiple_of(command.kv_heads) {
        let (q, kv) = (command.q_heads, command.kv_heads);
        return Err(Failure::Bad(format!(
            "--q-heads {q} is no multiple of --kv-heads {kv}"
        )));
    }
    let parsed = command.pattern.read()?;
    let sparsity = &parsed.sparsity;
    let machine = calibrate(command)?;
    let dense = build::causal() & build::all();
    let mut report = Vec::new();
    for tokens in &command.seq_len {
        let context = command.pattern.context(&parsed, *tokens, command.stage)?;
        source::topology(&parsed, &context)?;
        eprintln!("measuring {tokens} tokens, {} runs", command.repeats);
        let mut row = measure(
            command,
            &sparsity.pattern,
            &context,
            &machine,
            command.repeats,
        )?;
        if command.dense {
            eprintln!("measuring {tokens} tokens, dense");
            let dense = measure(command, &dense, &context, &machine, command.repeats.min(3))?;
            row.against_dense = Some(dense.median_ms / row.median_ms);
            report.push(row);
            report.push(dense);
        } else {
            report.push(row);
        }
    }
    let threads = command.threads.unwrap_or_else(cores);
    let report = Report {
        device: "cpu",
        threads,
        machine,
        rows: report,
    };
    crate::print(json, &report, || text(&report))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "cpu, {} threads; calibrated: {:.0} GFLOP/s, {:.1} GB/s\n{:>8} {:>7} {:>10} {:>10} {:>9} {:>9} {:>8}  pattern\n",
        report.threads,
        report.machine.flop_per_second / 1e9,
        report.machine.bytes_per_second / 1e9,
        "tokens",
        "degree",
        "median ms",
        "predicted",
        "tile GF/s",
        "pair GF/s",
        "vs dense",
    );
    for row in &report.rows {
        let against = row
            .against_dense
            .map_or(String::new(), |x| format!("{x:.1}x"));
        text += &format!(
            "{:>8} {:>7.2} {:>10.3} {:>10.3} {:>9.1} {:>9.1} {:>8}  {}\n",
            row.tokens,
            row.mean_degree,
            row.median_ms,
            row.predicted_ms,
            row.tile_gflops,
            row.exact_gflops,
            against,
            row.pattern
        );
    }
    text
}

/// Constants of this machine: the rate of the kernel on one dense square, and of a copy.
fn calibrate(command: &Command) -> Result<Machine, Failure> {
    let context = Context::new(512, 512, 0);
    let ideal = Machine {
        name: "cpu".into(),
        flop_per_second: 1.0,
        bytes_per_second: 1.0,
        launch_seconds: 0.0,
    };
    let square = measure(command, &build::all(), &context, &ideal, 9)?;
    let source = vec![1.0f32; 1 << 24];
    let mut target = vec![0.0f32; 1 << 24];
    let copy = median((0..5).map(|_| {
        let started = Instant::now();
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&mut target);
        started.elapsed().as_secs_f64()
    }));
    Ok(Machine {
        flop_per_second: square.tile_gflops * 1e9,
        bytes_per_second: 2.0 * (4 << 24) as f64 / copy,
        launch_seconds: 20e-6,
        ..ideal
    })
}

fn measure(
    command: &Command,
    pattern: &Pattern,
    context: &Context,
    machine: &Machine,
    repeats: u32,
) -> Result<Row, Failure> {
    let tokens = context.kv_len as usize;
    let (q_heads, kv_heads, dim) = (
        command.q_heads as usize,
        command.kv_heads as usize,
        command.head_dim as usize,
    );
    let q = noise(q_heads * tokens * dim, 1);
    let k = noise(kv_heads * tokens * dim, 2);
    let v = noise(kv_heads * tokens * dim, 3);
    let table = rows::table(pattern, context);
    let problem = Problem {
        batch: 1,
        q_heads,
        kv_heads,
        q_len: tokens,
        kv_len: tokens,
        head_dim: dim,
        v_head_dim: dim,
        q_offset: 0,
        block: context.block as usize,
        scale: 1.0 / (dim as f32).sqrt(),
        q: &q,
        k: &k,
        v: &v,
        rows: &table,
    };
    let run = || {
        let started = Instant::now();
        let result = attend(&problem, command.threads);
        std::hint::black_box(result.map(|_| started.elapsed().as_secs_f64()))
    };
    run().map_err(Failure::bad)?;
    let times = (0..repeats.max(1))
        .map(|_| run())
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::bad)?;
    let topology = classify::lower(pattern, context);
    let work = work::count(&topology);
    let shape = LayerShape {
        batch: 1,
        q_heads: command.q_heads,
        kv_heads: command.kv_heads,
        head_dim: command.head_dim,
        v_head_dim: command.head_dim,
        tokens: context.kv_len,
        dtype: Dtype::F32,
    };
    let tile_pairs = visited_pairs(&problem).map_err(Failure::bad)? / q_heads as u64;
    let prediction = cost::predict(&work, tile_pairs, &shape, machine);
    let seconds = median(times.iter().copied());
    Ok(Row {
        pattern: pattern.to_string(),
        tokens: context.kv_len,
        mean_degree: work.mean_degree(topology.rows.len()),
        median_ms: seconds * 1e3,
        fastest_ms: times.iter().copied().fold(f64::INFINITY, f64::min) * 1e3,
        slowest_ms: times.iter().copied().fold(0.0, f64::max) * 1e3,
        predicted_ms: prediction.seconds * 1e3,
        limit: prediction.limit,
        tile_gflops: prediction.tile_flop as f64 / seconds / 1e9,
        exact_gflops: prediction.exact_flop as f64 / seconds / 1e9,
        against_dense: None,
    })
}

fn median(times: impl Iterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.collect();
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Numbers in -1..1 that are the same in every run.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / (1u32 << 31) as f32 - 1.0
    };
    (0..count).map(next).collect()
}
