//! Dense attention beside a pattern: how well each predicts a text, and how far the two differ, by
//! position.
//!
//! In: the logits of both for the same tokens. Out: sums over the predictions, in buckets of the
//! position that predicts.
//! Invariant: the totals are the sums over the buckets.

use super::Work;
use crate::failure::Failure;
use crate::model::finite::Watch;
use crate::model::floats;
use butterfly::AttentionBackend;
use butterfly_models::{Logits, Model};
use rayon::prelude::*;
use serde::Serialize;
use std::ops::AddAssign;

/// Tokens whose logits are compared at once, so that they fit in memory.
pub(super) const COMPARED: usize = 256;
/// Positions of the first bucket; each other has as many as all before it.
const FIRST: usize = 1024;

/// Sums over predictions, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    count: u64,
    /// Negative log-likelihoods of the tokens that followed.
    dense: f64,
    sparse: f64,
    /// Predictions in which both find the same token most likely.
    agree: u64,
    /// Kullback-Leibler divergences of the pattern's distribution from the dense one.
    divergence: f64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.dense += other.dense;
        self.sparse += other.sparse;
        self.agree += other.agree;
        self.divergence += other.divergence;
    }
}

/// What sums come to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Means {
    /// Number of tokens that were predicted.
    pub(super) predicted: u64,
    pub(super) dense_perplexity: f64,
    /// With the pattern.
    #[serde(flatten)]
    pub(super) sparse: Option<Difference>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Difference {
    pub(super) perplexity: f64,
    /// Share of the predictions in which both find the same token most likely.
    pub(super) top1_agreement: f64,
    /// Mean Kullback-Leibler divergence of the pattern's distribution from the dense one, nats.
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

/// Sums by position.
#[derive(Clone, Debug, Default)]
pub(super) struct ByPosition(Vec<Sums>);

impl ByPosition {
    fn add(&mut self, position: usize, sums: Sums) {
        let bucket = bucket(position);
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, Sums::default());
        }
        self.0[bucket] += sums;
    }

    /// Over all positions; `sparse` says whether a pattern was run.
    pub(super) fn total(&self, sparse: bool) -> Means {
        let mut total = Sums::default();
        self.0.iter().for_each(|sums| total += *sums);
        total.means(sparse)
    }

    /// The buckets in which something was predicted.
    pub(super) fn buckets(&self, sparse: bool) -> Vec<Bucket> {
        let buckets = self.0.iter().enumerate().filter(|(_, sums)| sums.count > 0);
        let buckets = buckets.map(|(i, sums)| Bucket {
            from: if i == 0 { 0 } else { FIRST << (i - 1) },
            end: FIRST << i,
            means: sums.means(sparse),
        });
        buckets.collect()
    }
}

impl Sums {
    fn means(&self, sparse: bool) -> Means {
        let mean = |sum: f64| sum / self.count.max(1) as f64;
        Means {
            predicted: self.count,
            dense_perplexity: mean(self.dense).exp(),
            sparse: sparse.then(|| Difference {
                perplexity: mean(self.sparse).exp(),
                top1_agreement: mean(self.agree as f64),
                kl_divergence: mean(self.divergence),
            }),
        }
    }
}

/// The number of the bucket of a position.
fn bucket(position: usize) -> usize {
    (position / FIRST)
        .checked_ilog2()
        .map_or(0, |i| i as usize + 1)
}

/// The number of predictions that are scored in windows of `window` of so many tokens.
pub(super) fn scored(tokens: usize, window: usize, from: usize) -> usize {
    let of = |tokens: usize| tokens.saturating_sub(1 + from);
    tokens / window * of(window) + of(tokens % window)
}

/// Runs both kinds of attention over one window, [`COMPARED`] tokens at a time, and adds to `sums`.
/// Returns whether all logits were finite.
pub(super) fn window<B: AttentionBackend>(
    work: &Work<'_>,
    model: &Model<B>,
    window: &[u32],
    sums: &mut ByPosition,
    (watch, bar): (&mut Watch, &indicatif::ProgressBar),
) -> Result<bool, Failure> {
    let vocabulary = model.sizes.vocabulary as usize;
    let from = work.from;
    let capacity = Some(work.given.unwrap_or(work.window));
    let policies = [Some(work.dense), work.swapped].into_iter().flatten();
    let mut runs: Vec<_> = policies
        .map(|policy| {
            let mut state = model.state(1, capacity, policy);
            state.set_prompt(window.len());
            (state, policy)
        })
        .collect();
    for (i, chunk) in window.chunks(COMPARED).enumerate() {
        let first = i * COMPARED;
        let scored = first + chunk.len() > work.from;
        // Of positions that are not scored, no logits are needed.
        let rows = if scored { Logits::All } else { Logits::Last };
        let mut logits = Vec::new();
        for (state, policy) in &mut runs {
            let row = model.forward(chunk, state, policy, rows);
            logits.push(floats(row.map_err(Failure::bad)?)?);
        }
        let at = if scored {
            first
        } else {
            first + chunk.len() - 1
        };
        for logits in &logits {
            if !watch.see(logits, vocabulary, [0, at]) {
                return Ok(false);
            }
        }
        let next = &window[(first + 1).min(window.len())..];
        let judged = (0..chunk.len().min(next.len())).into_par_iter();
        let judged = judged.filter(|at| first + at >= from).map(|at| {
            let row = at * vocabulary..(at + 1) * vocabulary;
            let sparse = logits.get(1).map(|logits| &logits[row.clone()]);
            (first + at, judge(&logits[0][row.clone()], sparse, next[at]))
        });
        // In order, so that sums do not depend on the number of threads.
        for (position, judged) in judged.collect::<Vec<_>>() {
            sums.add(position, judged);
        }
        bar.inc(chunk.len() as u64);
    }
    Ok(true)
}

/// One prediction of the token `next`, by logits.
fn judge(dense: &[f32], sparse: Option<&[f32]>, next: u32) -> Sums {
    let a = log_softmax(dense);
    let mut sums = Sums {
        count: 1,
        dense: -a[next as usize],
        ..Sums::default()
    };
    if let Some(sparse) = sparse {
        let b = log_softmax(sparse);
        sums.sparse = -b[next as usize];
        sums.agree = u64::from(most_likely(&a) == most_likely(&b));
        let terms = a.iter().zip(&b);
        sums.divergence = terms.map(|(a, b)| a.exp() * (a - b)).sum();
    }
    sums
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|x| f64::from(x - top));
    let total = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|x| x - total).collect()
}

fn most_likely(logits: &[f64]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_judged_by_its_definition() {
        // Probabilities 1/4, 3/4 and 1/2, 1/2.
        let (dense, sparse) = ([0.0, 3_f32.ln()], [5.0, 5.0]);
        let sums = judge(&dense, Some(&sparse), 1);
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-6, "{got} {want}");
        close(sums.dense, (4.0_f64 / 3.0).ln());
        close(sums.sparse, 2_f64.ln());
        close(sums.divergence, 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln());
        assert_eq!((sums.count, sums.agree), (1, 0));
        let same = judge(&dense, Some(&dense), 0);
        assert_eq!((same.agree, same.divergence), (1, 0.0));
        assert_eq!(judge(&dense, None, 0).sparse, 0.0);
    }

    #[test]
    fn buckets_are_powers_of_two_and_their_sums_the_total() {
        let mut sums = ByPosition::default();
        let mut expected = Sums::default();
        let positions = [0, 1023, 1024, 2047, 4096, 8191, 8192];
        for (i, position) in positions.into_iter().enumerate() {
            let one = Sums {
                count: 1,
                dense: i as f64,
                sparse: 2.0 * i as f64,
                agree: (i % 2) as u64,
                divergence: 0.5 * i as f64,
            };
            sums.add(position, one);
            expected += one;
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
        let total = sums.total(true);
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
        assert_eq!(total.predicted, expected.count);
        assert!(sums.total(false).sparse.is_none());
    }

    #[test]
    fn positions_before_the_first_are_not_counted() {
        assert_eq!(scored(376, 376, 0), 375);
        assert_eq!(scored(20, 8, 0), 7 + 7 + 3);
        assert_eq!(scored(20, 8, 3), 4 + 4);
        assert_eq!(scored(20, 8, 7), 0);
    }
}
