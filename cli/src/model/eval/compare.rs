//! Dense attention beside policies: how well each predicts a text, and how far they differ, by
//! position.
//!
//! In:  the logits of all for the same tokens. Out: sums over the predictions of each policy, in
//! buckets of the position that predicts.
//! Invariant: the totals are the sums over the buckets.

use super::Work;
use crate::failure::Failure;
use crate::model::finite::Watch;
use crate::model::floats;
use butterfly::AttentionBackend;
use butterfly_models::calibrate::Comparison;
use butterfly_models::{Logits, Model, Policy, State};
use rayon::prelude::*;
use serde::Serialize;

/// Tokens whose logits are compared at once, so that they fit in memory.
pub(super) const COMPARED: usize = 256;
/// Positions of the first bucket; each other has as many as all before it.
const FIRST: usize = 1024;

/// What sums come to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Means {
    /// Number of tokens that were predicted.
    pub(super) predicted: u64,
    pub(super) dense_perplexity: f64,
    /// With the policy.
    #[serde(flatten)]
    pub(super) sparse: Option<Difference>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Difference {
    pub(super) perplexity: f64,
    /// Share of the predictions in which both find the same token most likely.
    pub(super) top1_agreement: f64,
    /// Mean Kullback-Leibler divergence of the policy's distribution from the dense one, nats.
    pub(super) kl_divergence: f64,
}

/// The predictions that positions `from..end` of a window made.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Bucket {
    pub(super) from: usize,
    pub(super) end: usize,
    #[serde(flatten)]
    pub(super) means: Means,
}

/// Sums by position, of a policy or, without one, of dense attention beside itself.
#[derive(Clone, Debug, Default)]
pub(super) struct ByPosition(Vec<Comparison>);

impl ByPosition {
    fn add(&mut self, position: usize, sums: Comparison) {
        let bucket = bucket(position);
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, Comparison::default());
        }
        self.0[bucket] += sums;
    }

    /// The sums over all positions.
    pub(super) fn total(&self) -> Comparison {
        let mut total = Comparison::default();
        self.0.iter().for_each(|sums| total += *sums);
        total
    }

    /// The buckets in which something was predicted; `sparse` says whether a policy was run.
    pub(super) fn buckets(&self, sparse: bool) -> Vec<Bucket> {
        let buckets = self.0.iter().enumerate();
        let buckets = buckets.filter(|(_, sums)| sums.predicted > 0);
        let buckets = buckets.map(|(i, sums)| Bucket {
            from: if i == 0 { 0 } else { FIRST << (i - 1) },
            end: FIRST << i,
            means: Means::of(sums, sparse),
        });
        buckets.collect()
    }
}

impl Means {
    pub(super) fn of(sums: &Comparison, sparse: bool) -> Self {
        Self {
            predicted: sums.predicted,
            dense_perplexity: sums.dense_perplexity(),
            sparse: sparse.then(|| Difference::of(sums)),
        }
    }
}

impl Difference {
    pub(super) fn of(sums: &Comparison) -> Self {
        Self {
            perplexity: sums.perplexity(),
            top1_agreement: sums.top1(),
            kl_divergence: sums.kl_nats(),
        }
    }
}

/// The number of the bucket of a position.
fn bucket(position: usize) -> usize {
    (position / FIRST)
        .checked_ilog2()
        .map_or(0, |i| i as usize + 1)
}

/// The number of predictions that are scored in `windows`.
pub(super) fn scored(windows: &[&[u32]], from: usize) -> usize {
    let of = |window: &&[u32]| window.len().saturating_sub(1 + from);
    windows.iter().map(of).sum()
}

/// A policy in the middle of a window.
struct Run<'a, B: AttentionBackend> {
    policy: &'a Policy,
    state: State<B>,
}

impl<'a, B: AttentionBackend> Run<'a, B> {
    fn new(model: &Model<B>, policy: &'a Policy, capacity: usize, prompt: usize) -> Self {
        let mut state = model.state(1, Some(capacity), policy);
        state.set_prompt(prompt);
        Self { policy, state }
    }

    /// The logits of the next tokens, [tokens, V], or of the last of them.
    fn next(
        &mut self,
        model: &Model<B>,
        tokens: &[u32],
        rows: Logits,
    ) -> Result<Vec<f32>, Failure> {
        let logits = model.forward(tokens, &mut self.state, self.policy, rows);
        floats(logits.map_err(Failure::bad)?)
    }
}

/// Runs dense attention and all policies over one window side by side, [`COMPARED`] tokens at a
/// time, and adds to the `sums` of each policy. The logits of two of them are kept at once. Returns
/// whether all logits were finite.
pub(super) fn window<B: AttentionBackend>(
    work: &Work<'_>,
    model: &Model<B>,
    window: &[u32],
    sums: &mut [ByPosition],
    (watch, bar): (&mut Watch, &indicatif::ProgressBar),
) -> Result<bool, Failure> {
    let vocabulary = model.sizes.vocabulary as usize;
    let from = work.from;
    let capacity = work.given.unwrap_or(work.window);
    let run = |policy| Run::new(model, policy, capacity, window.len());
    let mut dense = run(work.dense);
    let policies = work.contenders.iter().map(|contender| &contender.policy);
    let mut runs: Vec<_> = policies.map(run).collect();
    for (i, chunk) in window.chunks(COMPARED).enumerate() {
        let first = i * COMPARED;
        let scored = first + chunk.len() > from;
        // Of positions that are not scored, no logits are needed.
        let (rows, at) = match scored {
            true => (Logits::All, first),
            false => (Logits::Last, first + chunk.len() - 1),
        };
        let next = &window[(first + 1).min(window.len())..];
        let expected = dense.next(model, chunk, rows)?;
        if !watch.see(&expected, vocabulary, [0, at]) {
            return Ok(false);
        }
        let judge = |logits: &[f32], sums: &mut ByPosition| {
            let judged = (0..chunk.len().min(next.len())).into_par_iter();
            let judged = judged.filter(|at| first + at >= from).map(|at| {
                let row = at * vocabulary..(at + 1) * vocabulary;
                let [a, b] = [&expected[row.clone()], &logits[row]];
                (first + at, Comparison::of(a, b, Some(next[at])))
            });
            // In order, so that sums do not depend on the number of threads.
            for (position, judged) in judged.collect::<Vec<_>>() {
                sums.add(position, judged);
            }
        };
        if runs.is_empty() {
            judge(&expected, &mut sums[0]);
        }
        for (run, sums) in runs.iter_mut().zip(&mut *sums) {
            let logits = run.next(model, chunk, rows)?;
            if !watch.see(&logits, vocabulary, [0, at]) {
                return Ok(false);
            }
            judge(&logits, sums);
        }
        bar.inc((chunk.len() * (1 + runs.len())) as u64);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_and_their_sums_the_total() {
        let mut sums = ByPosition::default();
        let positions = [0, 1023, 1024, 2047, 4096, 8191, 8192];
        for (i, position) in positions.into_iter().enumerate() {
            let one = Comparison {
                scored: 1,
                kl: 0.5 * i as f64,
                agree: (i % 2) as u64,
                predicted: 1,
                dense_loss: i as f64,
                loss: 2.0 * i as f64,
            };
            sums.add(position, one);
        }
        let buckets = sums.buckets(true);
        let found: Vec<_> = buckets
            .iter()
            .map(|bucket| (bucket.from, bucket.end, bucket.means.predicted))
            .collect();
        // Nothing was predicted from 2048 on.
        assert_eq!(
            found,
            [
                (0, 1024, 2),
                (1024, 2048, 2),
                (4096, 8192, 2),
                (8192, 16384, 1)
            ]
        );
        let total = Means::of(&sums.total(), true);
        let weighted = |of: fn(&Means) -> f64| -> f64 {
            let parts = buckets
                .iter()
                .map(|b| b.means.predicted as f64 * of(&b.means));
            parts.sum::<f64>() / total.predicted as f64
        };
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        close(weighted(|m| m.dense_perplexity.ln()), 3.0);
        close(weighted(|m| m.sparse.expect("run").perplexity.ln()), 6.0);
        close(weighted(|m| m.sparse.expect("run").kl_divergence), 1.5);
        close(total.dense_perplexity.ln(), 3.0);
        close(total.sparse.expect("run").top1_agreement, 3.0 / 7.0);
        assert_eq!(total.predicted, 7);
        assert!(sums.buckets(false)[0].means.sparse.is_none());
    }

    #[test]
    fn positions_before_the_first_are_not_counted() {
        let tokens = [0; 376];
        let of =
            |tokens: &[u32], window, from| scored(&tokens.chunks(window).collect::<Vec<_>>(), from);
        assert_eq!(of(&tokens, 376, 0), 375);
        assert_eq!(of(&tokens[..20], 8, 0), 7 + 7 + 3);
        assert_eq!(of(&tokens[..20], 8, 3), 4 + 4);
        assert_eq!(of(&tokens[..20], 8, 7), 0);
    }
}
