//! Logits → the next token.

use crate::ModelError;
use crate::layers::largest;
use burn::prelude::*;
use butterfly::AttentionBackend;
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

/// The token that each row of logits [B, T, V] makes most likely, of equal ones the first; `None` if a logit is not
/// finite. The logits stay on the device.
///
/// # Errors
/// [`ModelError::Operation`] if the search cannot run, [`ModelError::Device`] if the device fails.
pub fn greedy<B: AttentionBackend>(logits: Tensor<B, 3>) -> Result<Option<Vec<u32>>, ModelError> {
    let failed = ModelError::Device;
    let found = largest(logits, PART)?;
    let parts = found.dims()[2];
    let found = found.try_into_data();
    let found = found.map_err(|error| failed(format!("{error:?}")))?;
    let numbers = found.as_slice::<i32>();
    let numbers = numbers.map_err(|error| failed(format!("{error:?}")))?;
    let (found, _) = numbers.as_chunks::<3>();
    if found.iter().any(|[.., bad]| *bad > 0) {
        return Ok(None);
    }
    let value = |part: &[i32; 3]| f32::from_bits(part[1].cast_unsigned());
    let best = |parts: &[[i32; 3]]| {
        let best = parts
            .iter()
            .reduce(|best, part| match value(part) > value(best) {
                true => part,
                false => best,
            });
        best.map_or(0, |[index, ..]| index.cast_unsigned())
    };
    Ok(Some(found.chunks(parts).map(best).collect()))
}

/// Logits of a row that a workgroup looks at.
const PART: usize = 2048;

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

    /// Whether it always takes the largest logit, as [`greedy`] does.
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
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        if top_k > 0 {
            order.truncate(top_k);
        }
        let top = logits[order[0]];
        let weight = |i: &usize| f64::from((logits[*i] - top) / temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0;
        let mut share = 0.0;
        while kept < weights.len() && (kept == 0 || share < f64::from(top_p) * total) {
            share += weights[kept];
            kept += 1;
        }
        let mut at = self.random.random::<f64>() * share;
        for (i, weight) in order[..kept].iter().zip(&weights) {
            at -= weight;
            if at < 0.0 {
                return *i as u32;
            }
        }
        order[kept - 1] as u32
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

    /// Rows of several parts, whose largest logits are equal.
    #[cfg(feature = "cpu")]
    #[test]
    fn greedy_on_the_device_takes_what_a_sampler_takes() {
        use burn_flex::Flex;
        let vocabulary = 3 * PART + 5;
        let mut logits: Vec<f32> = (0..2 * vocabulary).map(|i| (i * 37 % 101) as f32).collect();
        let drawn = |logits: &[f32]| {
            let data = TensorData::new(logits.to_vec(), [2, 1, vocabulary]);
            greedy::<Flex>(Tensor::from_data(data, &Default::default())).expect("a search")
        };
        let mut sampler = Sampler::new(Sampling::default());
        let want: Vec<u32> = logits
            .chunks(vocabulary)
            .map(|row| sampler.next(row))
            .collect();
        assert_eq!(drawn(&logits), Some(want));
        logits[vocabulary + 7] = f32::INFINITY;
        assert_eq!(drawn(&logits), None);
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
