//! The reference for tests: attention by its definition, in f64, pair by pair.

use crate::{Elements, Problem};

/// `(o, lse)` of the problem in f64, `[B, Hq, q_len, Dv]` and `[B, Hq, q_len]`.
///
/// `sees` takes a kv head, an absolute query position and a key. It replaces the problem's band table,
/// which is not read, so that a table can be tested against a predicate. The time is
/// proportional to `q_len * kv_len`, however few pairs are seen.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn attend_f64(
    problem: &Problem,
    sees: impl Fn(usize, usize, usize) -> bool,
) -> (Vec<f64>, Vec<f64>) {
    let (d, dv) = (problem.head_dim, problem.v_head_dim);
    let mut o = Vec::with_capacity(problem.batch * problem.q_heads * problem.q_len * dv);
    let mut lse = Vec::with_capacity(problem.batch * problem.q_heads * problem.q_len);
    for head in 0..problem.batch * problem.q_heads {
        // `head` counts through all sequences. Since Hq = group * Hkv, this division gives the kv
        // head counted in the same way.
        let kv_head = head / problem.group();
        for i in 0..problem.q_len {
            let q = &problem.q[(head * problem.q_len + i) * d..][..d];
            let row = |j| kv_head * problem.kv_room + j;
            let logits: Vec<(usize, f64)> = (0..problem.kv_len)
                .filter(|&key| sees(kv_head % problem.kv_heads, problem.q_offset + i, key))
                .map(|key| {
                    let k = vector(&problem.k, row(key), d);
                    let logit = dot(q, k) * f64::from(problem.scale);
                    let cap = problem.score.softcap.map(f64::from);
                    (key, cap.map_or(logit, |cap| cap * (logit / cap).tanh()))
                })
                .collect();
            let sinks = problem.score.sinks;
            let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| {
                f64::from(sinks[head % problem.q_heads])
            });
            let maximum = logits.iter().map(|x| x.1).fold(sink, f64::max);
            let mut sum = match sink {
                f64::NEG_INFINITY => 0.0,
                _ => (sink - maximum).exp(),
            };
            let mut mean = vec![0.0; dv];
            for (key, logit) in logits {
                let weight = (logit - maximum).exp();
                sum += weight;
                for (to, x) in mean.iter_mut().zip(vector(&problem.v, row(key), dv)) {
                    *to += weight * f64::from(x);
                }
            }
            let seen = sum != 0.0;
            o.extend(mean.into_iter().map(|x| if seen { x / sum } else { 0.0 }));
            lse.push(if seen {
                maximum + sum.ln()
            } else {
                f64::NEG_INFINITY
            });
        }
    }
    (o, lse)
}

fn vector(array: &Elements<'_>, row: usize, len: usize) -> impl Iterator<Item = f32> {
    (row * len..(row + 1) * len).map(|i| array.get(i))
}

fn dot(a: &[f32], b: impl Iterator<Item = f32>) -> f64 {
    let terms = a.iter().zip(b);
    terms.map(|(&a, b)| f64::from(a) * f64::from(b)).sum()
}
