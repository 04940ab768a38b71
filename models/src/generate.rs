//! Logits → the next token.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 always takes the largest logit.
    pub temperature: f32,
    /// Only this number of the most likely tokens can be drawn; 0 for no limit.
    pub top_k: usize,
    /// Only the fewest most likely tokens can be drawn whose probabilities add up to this share (of
    /// the `top_k` tokens); 1 for no limit.
    pub top_p: f32,
    /// Seed of the random numbers: the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// Draws one token after another.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: StdRng,
}

impl Sampler {
    /// A sampler at the start of its sequence of random numbers.
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            random: StdRng::seed_from_u64(sampling.seed),
        }
    }

    /// Whether it always takes the largest logit, as [`greedy`](crate::greedy) does.
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature <= 0.0
    }

    /// Chooses the next token from its logits, one for each token of the vocabulary.
    ///
    /// # Panics
    /// If `logits` is empty and the temperature is above 0.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let Sampling {
            temperature,
            top_k,
            top_p,
            ..
        } = self.sampling;
        if self.is_greedy() {
            return first_of_largest(logits);
        }
        let mut order = Descending::new(logits);
        let candidates = match top_k {
            0 => logits.len(),
            _ => top_k.min(logits.len()),
        };
        let top = logits[order.nth(0)];
        let weight = |i: usize| f64::from((logits[i] - top) / temperature).exp();
        let total: f64 = match candidates < logits.len() {
            true => (0..candidates).map(|i| weight(order.nth(i))).sum(),
            false => (0..logits.len()).map(weight).sum(),
        };
        let (mut kept, mut share) = (candidates, total);
        if top_p < 1.0 {
            (kept, share) = (0, 0.0);
            while kept < candidates && (kept == 0 || share < f64::from(top_p) * total) {
                share += weight(order.nth(kept));
                kept += 1;
            }
        }
        let mut at = self.random.random::<f64>() * share;
        for i in 0..kept {
            let token = order.nth(i);
            at -= weight(token);
            if at < 0.0 {
                return token as u32;
            }
        }
        order.nth(kept - 1) as u32
    }
}

/// Tokens from the largest logit on, of equal ones the first. Sorts only as many as are asked for: few tokens of a large
/// vocabulary are likely.
struct Descending<'a> {
    logits: &'a [f32],
    order: Vec<u32>,
    /// How many of the first are in order.
    sorted: usize,
}

impl<'a> Descending<'a> {
    fn new(logits: &'a [f32]) -> Self {
        Self {
            logits,
            order: (0..logits.len() as u32).collect(),
            sorted: 0,
        }
    }

    /// The token whose logit is the largest but `n`, of which there are more.
    fn nth(&mut self, n: usize) -> usize {
        const LEAST: usize = 64;
        if n >= self.sorted {
            let rest = &mut self.order[self.sorted..];
            let more = (4 * n).max(LEAST).min(rest.len());
            let compare = |a: &u32, b: &u32| {
                let [x, y] = [a, b].map(|i| self.logits[*i as usize]);
                y.total_cmp(&x).then(a.cmp(b))
            };
            if more < rest.len() {
                rest.select_nth_unstable_by(more, compare);
            }
            rest[..more].sort_unstable_by(compare);
            self.sorted += more;
        }
        self.order[n] as usize
    }
}

/// The index of the largest logit; of several, the first.
fn first_of_largest(logits: &[f32]) -> u32 {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, better) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(Sampling::default());
        assert_eq!(sampler.next(&[0.0, 3.0, 3.0, -1.0]), 1);
    }

    /// The same tokens as by sorting all logits.
    #[test]
    fn sorting_a_part_changes_nothing() {
        let sorted = |logits: &[f32]| {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            order
        };
        for vocabulary in [1, 63, 64, 65, 1000, 5000] {
            let logits: Vec<f32> = (0..vocabulary)
                .map(|i| (i * 7919 % 613) as f32 / 50.0)
                .collect();
            let mut order = Descending::new(&logits);
            let got: Vec<usize> = (0..vocabulary).map(|i| order.nth(i)).collect();
            assert_eq!(got, sorted(&logits));
        }
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32 / 3.0).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling {
                temperature: 1.0,
                seed,
                ..Sampling::default()
            });
            (0..50).map(|_| sampler.next(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn shares_follow_the_softmax_and_limits_cut() {
        let logits = [2.0f32.ln(), 1.0f32.ln(), 1.0f32.ln(), -30.0];
        let sampling = Sampling {
            temperature: 1.0,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(sampling);
        let mut seen = [0u32; 4];
        for _ in 0..4000 {
            seen[sampler.next(&logits) as usize] += 1;
        }
        assert!((1850..2150).contains(&seen[0]) && seen[3] == 0, "{seen:?}");
        let mut top = Sampler::new(Sampling {
            top_p: 0.4,
            ..sampling
        });
        assert!((0..100).all(|_| top.next(&logits) == 0));
        let mut two = Sampler::new(Sampling {
            top_k: 2,
            ..sampling
        });
        assert!((0..200).all(|_| two.next(&logits) < 2));
    }
}
