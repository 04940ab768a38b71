//! Compares the native kernel with the matrix products of the `gemm` and `matrixmultiply` crates,
//! and sparse with dense attention.
//!
//! Criterion first times each separately. The comparisons that matter are then made in rounds in
//! which all take turns, so that a change of clock rate or load affects them alike.

use butterfly_bench::{Case, causal_rows, median, numbers, seconds, standard_rows};
use butterfly_cpu::{Attention, Isa, Problem, attend, attend_into, visited_pairs};
use criterion::{Criterion, Throughput};

const GEMM: usize = 1024;
const GEMM_FLOP: f64 = 2.0 * (GEMM * GEMM * GEMM) as f64;
const ROUNDS: usize = 15;

/// Share of the faster matrix product's rate that the kernel has to reach.
const RATE_BAR: f64 = 0.60;
/// Speed-up over dense that sparse attention has to reach at T = 32768.
const SPEEDUP_BAR: f64 = 15.0;

struct Matrices {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Matrices {
    fn new() -> Self {
        Self {
            a: numbers(GEMM * GEMM, 4),
            b: numbers(GEMM * GEMM, 5),
            c: vec![0.0; GEMM * GEMM],
        }
    }

    /// A product by the `gemm` crate, row-major, on all threads of the rayon pool.
    fn gemm(&mut self) {
        let n = GEMM as isize;
        // SAFETY: all three are row-major n x n matrices, and `c` does not alias `a` and `b`.
        unsafe {
            gemm::gemm(
                GEMM,
                GEMM,
                GEMM,
                self.c.as_mut_ptr(),
                1,
                n,
                false,
                self.a.as_ptr(),
                1,
                n,
                self.b.as_ptr(),
                1,
                n,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
    }

    /// A product by the `matrixmultiply` crate, row-major, on as many threads as it chooses.
    fn matrixmultiply(&mut self) {
        let n = GEMM as isize;
        // SAFETY: as above.
        unsafe {
            matrixmultiply::sgemm(
                GEMM,
                GEMM,
                GEMM,
                1.0,
                self.a.as_ptr(),
                n,
                1,
                self.b.as_ptr(),
                n,
                1,
                0.0,
                self.c.as_mut_ptr(),
                n,
                1,
            );
        }
    }
}

/// FLOP of the visited tiles: two products, each with a multiplication and an addition per element.
fn flop(problem: &Problem) -> f64 {
    let pairs = visited_pairs(problem).expect("the case is well formed");
    pairs as f64 * 2.0 * (problem.head_dim + problem.v_head_dim) as f64
}

fn run(problem: &Problem) -> Attention {
    attend(problem, None).expect("the case is well formed")
}

/// As [`run`], but into memory that is already allocated, as for the matrix products.
fn run_into(problem: &Problem, into: &mut Attention) {
    attend_into(problem, None, into).expect("the case is well formed");
}

fn pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention_cpu");
    group.sample_size(20);
    let mut matrices = Matrices::new();
    group.throughput(Throughput::Elements(GEMM_FLOP as u64));
    group.bench_function("gemm_1024", |b| b.iter(|| matrices.gemm()));
    group.bench_function("matrixmultiply_1024", |b| {
        b.iter(|| matrices.matrixmultiply())
    });
    for (tokens, dim) in [(8192, 64), (8192, 128), (32768, 128)] {
        let (case, rows) = (Case::new(tokens, dim), standard_rows(tokens));
        let problem = case.problem(&rows);
        group.throughput(Throughput::Elements(flop(&problem) as u64));
        group.bench_function(format!("standard_T{tokens}_D{dim}"), |b| {
            b.iter(|| run(&problem))
        });
    }
    group.finish();
}

/// Prints the kernel's rate beside that of the matrix products.
fn rate() {
    let mut matrices = Matrices::new();
    let (case, rows) = (Case::new(8192, 128), standard_rows(8192));
    let problem = case.problem(&rows);
    let flop = flop(&problem);
    let mut result = run(&problem);
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        // Each takes about the same time, so that a burst of other load hits none more than others.
        times[0].extend((0..8).map(|_| seconds(|| matrices.gemm())));
        times[1].extend((0..8).map(|_| seconds(|| matrices.matrixmultiply())));
        times[2].push(seconds(|| run_into(&problem, &mut result)));
        times[3].push(seconds(|| run(&problem)));
    }
    let best: Vec<f64> = times
        .iter()
        .map(|times| times.iter().copied().fold(f64::INFINITY, f64::min))
        .collect();
    let [gemm, other, attention, fresh] = times.map(median);
    let giga = |flop: f64, seconds: f64| flop / seconds / 1e9;
    println!(
        "rate, T 8192, Hq 16, Hkv 4, D 128, block 128, stage 3; median (best) of {ROUNDS} rounds, GFLOP/s"
    );
    for (name, flop, median, best) in [
        ("gemm, 1024^3", GEMM_FLOP, gemm, best[0]),
        ("matrixmultiply, 1024^3", GEMM_FLOP, other, best[1]),
        ("attention, visited tiles", flop, attention, best[2]),
        ("same, fresh memory", flop, fresh, best[3]),
    ] {
        let (median, best) = (giga(flop, median), giga(flop, best));
        println!("  {name:<26} {median:>8.1} ({best:.1})");
    }
    let share = giga(flop, attention) / giga(GEMM_FLOP, gemm.min(other));
    let share_of_best = giga(flop, best[2]) / giga(GEMM_FLOP, best[0].min(best[1]));
    println!(
        "  attention / faster product  {:>6.0} % ({:.0} %), bar {:.0} %: {}",
        100.0 * share,
        100.0 * share_of_best,
        100.0 * RATE_BAR,
        verdict(share >= RATE_BAR)
    );
}

/// Prints the speed-up over dense causal attention with the same kernel.
fn speedup() {
    let case = Case::new(32768, 128);
    let (sparse_rows, dense_rows) = (standard_rows(32768), causal_rows(32768));
    let (sparse, dense) = (case.problem(&sparse_rows), case.problem(&dense_rows));
    let mut sparse_times = Vec::new();
    let mut dense_times = Vec::new();
    for _ in 0..2 {
        sparse_times.extend((0..5).map(|_| seconds(|| run(&sparse))));
        dense_times.push(seconds(|| run(&dense)));
    }
    let dense_time = dense_times.iter().copied().fold(f64::INFINITY, f64::min);
    let sparse_time = median(sparse_times);
    let ratio = dense_time / sparse_time;
    println!("sparse and dense causal, T 32768, Hq 16, Hkv 4, D 128; median of 10, better of 2");
    for (name, problem, time) in [
        ("sparse", &sparse, sparse_time),
        ("dense", &dense, dense_time),
    ] {
        let rate = flop(problem) / time / 1e9;
        println!("  {name:<10} {:>10.1} ms {rate:>8.1} GFLOP/s", time * 1e3);
    }
    println!(
        "  speed-up   {ratio:>10.1}, bar {SPEEDUP_BAR}: {}",
        verdict(ratio >= SPEEDUP_BAR)
    );
}

fn verdict(holds: bool) -> &'static str {
    if holds { "met" } else { "NOT met" }
}

fn main() {
    // `--test` only checks that everything runs; `--bars` leaves out Criterion's part.
    let asked = |flag: &str| std::env::args().any(|arg| arg == flag);
    if !asked("--bars") {
        let mut criterion = Criterion::default().configure_from_args();
        pieces(&mut criterion);
        criterion.final_summary();
    }
    if !asked("--test") {
        println!("{} threads, {}", rayon::current_num_threads(), Isa::best());
        rate();
        speedup();
    }
}
