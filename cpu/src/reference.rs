//! The reference for tests: attention by its definition, in f64, pair by pair.

use crate::{Elements, Problem, Route};

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
            let row = |j| problem.first_key(kv_head) + j;
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
                let value = vector(problem.values(), row(key), problem.v_step());
                for (to, x) in mean.iter_mut().zip(value) {
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

/// The scores by which row `b` of a kv head, counted through all sequences, chooses among the blocks
/// before it, in f64 and from the keys `[B, Hkv, kv_len, D]`; the route's means are not read.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn route_f64(route: &Route<'_>, k: &[f32], list: usize, b: usize) -> Vec<f64> {
    let (d, pool) = (route.head_dim, route.pool);
    let kv_len = k.len() / (route.batch * route.kv_heads * d);
    let k = &k[list * kv_len * d..][..kv_len * d];
    let mean = |j: usize| -> Vec<f64> {
        let of = |i: usize| (0..pool).map(move |t| f64::from(k[(j * pool + t) * d + i]));
        (0..d).map(|i| of(i).sum::<f64>() / pool as f64).collect()
    };
    let means: Vec<Vec<f64>> = (0..b * route.block / pool).map(mean).collect();
    let end = (route.q_offset + route.q_len).min((b + 1) * route.block);
    let scores_for = |query: usize| (query + 1).is_multiple_of(route.every) || query + 1 == end;
    let group = route.q_heads / route.kv_heads;
    let mut scores = vec![0.0; b];
    for head in list * group..(list + 1) * group {
        let queries = route.q_offset.max(b * route.block)..end;
        for query in queries.filter(|query| scores_for(*query)) {
            let q = &route.q[(head * route.q_len + query - route.q_offset) * d..][..d];
            let terms =
                |mean: &[f64]| -> f64 { q.iter().zip(mean).map(|(q, m)| f64::from(*q) * m).sum() };
            let logits: Vec<f64> = means
                .iter()
                .map(|mean| terms(mean) * f64::from(route.scale))
                .collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = logits.iter().map(|logit| (logit - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (j, weight) in weights.iter().enumerate() {
                scores[j * pool / route.block] += weight / sum;
            }
        }
    }
    scores
}

fn vector(array: &Elements<'_>, row: usize, len: usize) -> impl Iterator<Item = f32> {
    (row * len..(row + 1) * len).map(|i| array.get(i))
}

fn dot(a: &[f32], b: impl Iterator<Item = f32>) -> f64 {
    let terms = a.iter().zip(b);
    terms.map(|(&a, b)| f64::from(a) * f64::from(b)).sum()
}
