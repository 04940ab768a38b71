//! Products of rows of f32 with weights, on all threads.
//!
//! In:  x [M, K]; weights [N, K], packed or dense. Out: y [M, sum of N], a part for each weight.
//! Threads share the rows of weights; no sum is split between them.

use super::super::quantised::rounded;
use super::columns::Columns;
use super::few::{Few, X};
use super::many;
use super::simd::Isa;
use super::{Format, Rows, with_weight};
use rayon::prelude::*;
use std::ops::Range;

/// Most rows of x that are multiplied while unpacking.
const FEW: usize = 8;

/// Products of numbers that take a thread a few microseconds: fewer are not worth another thread.
const TASK: usize = 1 << 15;

/// x [`m`, K] times each of the weights [N, K], side by side: y [`m`, sum of N]. If the rows are `many`, they are rounded
/// for weights that want it.
///
/// # Panics
/// If the lengths are not those.
pub(crate) fn multiply(x: &[f32], (m, many): (usize, bool), weights: &[Rows], y: &mut [f32]) {
    multiply_with(Isa::best(), x, (m, many), weights, y);
}

pub(super) fn multiply_with(
    isa: Isa,
    x: &[f32],
    (m, many): (usize, bool),
    weights: &[Rows],
    y: &mut [f32],
) {
    let n: usize = weights.iter().map(|weight| weight.n).sum();
    assert_eq!(y.len(), m * n, "elements of y");
    let Some(k) = weights.first().map(|weight| weight.k) else {
        return;
    };
    assert!(weights.iter().all(|weight| weight.k == k), "one K");
    assert_eq!(x.len(), m * k, "elements of x");
    if x.is_empty() || n == 0 {
        return y.fill(0.0);
    }
    let y = Columns::new(y, n);
    let rounds = |weight: &Rows| many && weight.quantises();
    let rounded = weights.iter().any(rounds).then(|| rounded(x, k));
    let rounded = rounded.as_deref();
    if m <= FEW {
        let shares = 4 * rayon::current_num_threads();
        let height = (TASK / (m * k)).max(n.div_ceil(shares)).max(1);
        let own = X::new(isa, x, m, k);
        let rounded = rounded.map(|x| X::new(isa, x, m, k));
        share(weights, height, |weight, rows, first| {
            let rounded = rounded.as_ref().filter(|_| rounds(weight));
            let (x, y) = (rounded.unwrap_or(&own), y.from(first));
            with_weight!(weight.format, weight => isa.run(Few { weight, rows, x, y }));
        });
    } else {
        share(weights, many::height(k), |weight, rows, first| {
            let x = rounded.filter(|_| rounds(weight)).unwrap_or(x);
            many::multiply(isa, x, m, weight, rows, y.from(first));
        });
    }
}

/// Does a task for each `height` rows of a weight, with the column of y where the weight begins.
fn share(weights: &[Rows], height: usize, task: impl Fn(&Rows, Range<usize>, usize) + Sync) {
    let mut tasks = Vec::new();
    let mut first = 0;
    for weight in weights {
        let starts = (0..weight.n).step_by(height);
        tasks.extend(starts.map(|start| (weight, start, first)));
        first += weight.n;
    }
    let run = |&(weight, start, first): &(&Rows, usize, usize)| {
        task(weight, start..weight.n.min(start + height), first);
    };
    match &tasks[..] {
        [only] => run(only),
        tasks => tasks.par_iter().for_each(run),
    }
}
