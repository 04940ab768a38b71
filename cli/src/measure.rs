//! Measures attention on inputs that are the same in every run.

use crate::call::{Call, Outcome, Shape};
use crate::device::Chosen;
use crate::failure::Failure;
use butterfly_compiler::cost::Machine;
use butterfly_cpu::reference;
use butterfly_ir::{Context, Dtype, Pattern, build, sees};
use std::collections::BTreeSet;
use std::time::Instant;

/// A layer to measure, with its inputs.
pub(crate) struct Layer {
    pub(crate) shape: Shape,
    pub(crate) dtype: Dtype,
    pub(crate) threads: Option<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Layer {
    /// A layer of `shape`, its numbers rounded to `dtype`.
    pub(crate) fn new(shape: Shape, dtype: Dtype, threads: Option<usize>) -> Self {
        let noise = |count, seed| noise(count, seed, dtype);
        let keys = shape.batch * shape.kv_heads * shape.kv_len;
        Self {
            q: noise(
                shape.batch * shape.q_heads * shape.q_len * shape.head_dim,
                1,
            ),
            k: noise(keys * shape.head_dim, 2),
            v: noise(keys * shape.v_head_dim, 3),
            shape,
            dtype,
            threads,
        }
    }

    /// The call of `pattern` on this layer.
    pub(crate) fn call<'a>(
        &'a self,
        pattern: &'a Pattern,
        context: &Context,
        runs: u32,
    ) -> Call<'a> {
        Call {
            pattern,
            context: *context,
            shape: self.shape,
            dtype: self.dtype,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            q_offset: self.shape.kv_len - self.shape.q_len,
            scale: 1.0 / (self.shape.head_dim as f32).sqrt(),
            score: Default::default(),
            threads: self.threads,
            runs,
        }
    }
}

/// How far the outputs of some queries are from the f64 reference.
pub(crate) struct Agreement {
    pub(crate) queries: usize,
    /// Largest difference of an element of o.
    pub(crate) error: f64,
    /// Largest error of o that rounding to the element type and f32 sums account for.
    pub(crate) tolerance: f64,
    /// Largest difference of a log-sum-exp.
    pub(crate) lse_error: f64,
}

/// Largest error of a log-sum-exp, which is f32 for every element type. Losing one of n equal keys
/// changes it by about 1/n.
const LSE_TOLERANCE: f64 = 1e-4;

impl Agreement {
    pub(crate) fn holds(&self) -> bool {
        self.error <= self.tolerance && self.lse_error <= LSE_TOLERANCE
    }
}

/// Number of queries that are compared at the beginning, in the middle and at the end each.
const SAMPLE: usize = 8;

/// Compares `outcome` with the f64 reference for the pattern of `call`.
pub(crate) fn agreement(call: &Call<'_>, outcome: &Outcome) -> Result<Agreement, Failure> {
    let shape = &call.shape;
    let sample = SAMPLE.min(shape.q_len);
    let starts = [0, shape.q_len / 2, shape.q_len - sample].map(|s| s.min(shape.q_len - sample));
    let starts: BTreeSet<usize> = starts.into();
    let table = call.table()?;
    let (mut error, mut lse_error) = (0f64, 0f64);
    for &start in &starts {
        let part = |heads: usize, width: usize, from: &[f32]| -> Vec<f32> {
            (0..heads)
                .flat_map(|head| {
                    let first = (head * shape.q_len + start) * width;
                    from[first..first + sample * width].iter().copied()
                })
                .collect()
        };
        let heads = shape.batch * shape.q_heads;
        let q = part(heads, shape.head_dim, call.q);
        let got = part(heads, shape.v_head_dim, &outcome.o);
        let problem = butterfly_cpu::Problem {
            q_len: sample,
            q_offset: call.q_offset + start,
            q: &q,
            ..call.problem(&table)
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "positions are below those of a context"
        )]
        let seen = |head: usize, q: usize, k: usize| {
            let context = call.context.of_head(head as u32);
            sees(call.pattern, &context, q as u32, k as u32)
        };
        let (want, want_lse) = reference::attend_f64(&problem, seen);
        error = farthest(&got, &want).max(error);
        lse_error = farthest(&part(heads, 1, &outcome.lse), &want_lse).max(lse_error);
    }
    Ok(Agreement {
        queries: starts.len() * sample * shape.batch * shape.q_heads,
        error,
        tolerance: match call.dtype {
            Dtype::F32 => 2e-5,
            Dtype::F16 => 2e-3,
            Dtype::Bf16 => 1.6e-2,
        },
        lse_error,
    })
}

/// The largest difference; equal infinities have none.
fn farthest(got: &[f32], want: &[f64]) -> f64 {
    let differences = got.iter().zip(want).map(|(got, want)| {
        let difference = (f64::from(*got) - want).abs();
        match difference.is_nan() {
            true if f64::from(*got) == *want => 0.0,
            true => f64::INFINITY,
            false => difference,
        }
    });
    differences.fold(0.0, f64::max)
}

/// Measures this machine's CPU: the FLOP rate of the kernel on one dense square, and the bandwidth
/// of a copy in memory.
pub(crate) fn calibrate(
    chosen: &Chosen,
    shape: &Shape,
    threads: Option<usize>,
) -> Result<Machine, Failure> {
    let tokens = 512;
    let shape = Shape {
        q_len: tokens,
        kv_len: tokens,
        ..*shape
    };
    let layer = Layer::new(shape, Dtype::F32, threads);
    let (all, context) = (build::all(), Context::new(512, 512, 0));
    let seconds = layer.call(&all, &context, 9).run(chosen)?.median() * 1e-3;
    let dims = shape.head_dim + shape.v_head_dim;
    let flop = 2 * shape.batch * shape.q_heads * tokens * tokens * dims;
    let source = vec![1.0f32; 1 << 24];
    let mut target = vec![0.0f32; 1 << 24];
    let mut copies: Vec<f64> = (0..5)
        .map(|_| {
            let started = Instant::now();
            target.copy_from_slice(std::hint::black_box(&source));
            std::hint::black_box(&mut target);
            started.elapsed().as_secs_f64()
        })
        .collect();
    copies.sort_unstable_by(f64::total_cmp);
    Ok(Machine {
        name: "this CPU, calibrated".into(),
        flop_per_second: flop as f64 / seconds,
        bytes_per_second: 2.0 * (4 << 24) as f64 / copies[copies.len() / 2],
        launch_seconds: 20e-6,
        kernel: None,
    })
}

/// Numbers in -1..1.
fn noise(count: usize, seed: u32, dtype: Dtype) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let x = state as f32 / (1u32 << 31) as f32 - 1.0;
        match dtype {
            Dtype::F32 => x,
            Dtype::F16 => half::f16::from_f32(x).to_f32(),
            Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
        }
    };
    (0..count).map(next).collect()
}
