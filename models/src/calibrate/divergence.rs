//! Two rows of logits → how far apart their predictions are.
//!
//! In:  logits of one position by dense attention and by a policy. Out: sums, in nats, that add up
//! over positions and windows.

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// Dense predictions beside those of a policy, summed over scored positions; `+=` joins the sums of
/// two sets of positions.
///
/// ```
/// use butterfly_models::calibrate::Comparison;
///
/// // Probabilities of 1/4 and 3/4 beside 1/2 each; the second token follows.
/// let mut sums = Comparison::of(&[0.0, 3f32.ln()], &[5.0, 5.0], Some(1));
/// assert_eq!((sums.scored, sums.agree, sums.predicted), (1, 0, 1));
/// assert!((sums.dense_perplexity() - 4.0 / 3.0).abs() < 1e-6);
/// assert!((sums.perplexity() - 2.0).abs() < 1e-6);
/// // Equal logits do not diverge.
/// sums += Comparison::of(&[5.0, 5.0], &[5.0, 5.0], None);
/// assert_eq!((sums.scored, sums.agree, sums.predicted), (2, 1, 1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Number of positions.
    pub scored: u64,
    /// Kullback-Leibler divergence of the policy's distribution from the dense one, in nats.
    pub kl: f64,
    /// Positions at which both find the same token most likely.
    pub agree: u64,
    /// Positions whose next token is in the window.
    pub predicted: u64,
    /// −ln of the dense probability of the next token, in nats.
    pub dense_loss: f64,
    /// The same by the policy.
    pub loss: f64,
}

impl AddAssign for Comparison {
    fn add_assign(&mut self, other: Self) {
        self.scored += other.scored;
        self.kl += other.kl;
        self.agree += other.agree;
        self.predicted += other.predicted;
        self.dense_loss += other.dense_loss;
        self.loss += other.loss;
    }
}

impl Comparison {
    /// Mean divergence, in nats for each scored position.
    pub fn kl_nats(&self) -> f64 {
        self.kl / self.scored.max(1) as f64
    }

    /// Share of the positions at which both find the same token most likely.
    pub fn top1(&self) -> f64 {
        self.agree as f64 / self.scored.max(1) as f64
    }

    /// Dense perplexity.
    pub fn dense_perplexity(&self) -> f64 {
        (self.dense_loss / self.predicted.max(1) as f64).exp()
    }

    /// Perplexity by the policy.
    pub fn perplexity(&self) -> f64 {
        (self.loss / self.predicted.max(1) as f64).exp()
    }

    /// Perplexity by the policy, divided by the dense one.
    pub fn perplexity_ratio(&self) -> f64 {
        ((self.loss - self.dense_loss) / self.predicted.max(1) as f64).exp()
    }

    /// One position: its logits by dense attention and by a policy, `[V]` each, and the token that
    /// follows in the text, if one does.
    ///
    /// Sums over the vocabulary are of f32 terms, in f64 from 1024 of them on: losses and divergence
    /// are those of the definition to about six digits of a nat. Logits that are NaN make the
    /// divergence NaN.
    ///
    /// # Panics
    /// If `next` is not below V.
    pub fn of(dense: &[f32], replaced: &[f32], next: Option<u32>) -> Self {
        let (a, b) = (Normal::of(dense), Normal::of(replaced));
        // The difference of log-probabilities is that of logits less that of the norms. These are
        // rounded to f32; what rounding the second takes is added once, as probabilities sum to 1.
        let shift = a.log_sum - b.log_sum;
        let (norm, rounded) = (a.log_sum as f32, shift as f32);
        let term = |a: f32, b: f32| exp(a - norm) * (a - b - rounded);
        let kl = blocks(dense, replaced, term) - (shift - f64::from(rounded));
        let loss = |logits: &[f32], norm: &Normal| {
            next.map_or(0.0, |next| norm.log_sum - f64::from(logits[next as usize]))
        };
        Self {
            scored: 1,
            kl,
            agree: u64::from(a.top == b.top),
            predicted: u64::from(next.is_some()),
            dense_loss: loss(dense, &a),
            loss: loss(replaced, &b),
        }
    }
}

/// What makes probabilities of logits.
struct Normal {
    /// Index of the largest logit; of equal ones the first.
    top: usize,
    /// ln of the sum of the exponentials.
    log_sum: f64,
}

impl Normal {
    fn of(logits: &[f32]) -> Self {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum = blocks(logits, logits, |x, _| exp(x - most));
        Self {
            top: logits.iter().position(|x| *x == most).unwrap_or(0),
            log_sum: f64::from(most) + sum.ln(),
        }
    }
}

/// The sum of `term` over pairs: in f32 over few pairs, so that vector registers hold many sums,
/// and in f64 over these.
fn blocks(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    const LANES: usize = 16;
    const BLOCK: usize = 64 * LANES;
    let mut total = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut sums = [0.0f32; LANES];
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                sums[lane] += term(a[lane], b[lane]);
            }
        }
        total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        let rest = a_rest.iter().zip(b_rest);
        total += rest.map(|(a, b)| f64::from(term(*a, *b))).sum::<f64>();
    }
    total
}

/// e^x for x ≤ 0, to seven digits; 0 below the range of f32. No branches and no calls, so that loops
/// over it become vector code: a vocabulary has up to a quarter of a million tokens.
///
/// # Source
/// Range reduction by ln 2 in two parts, after Cody and Waite, Software Manual for the Elementary
/// Functions (1980), chapter 6; then the Taylor polynomial of degree 6.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let kept = x.max(-87.0);
    let shifted = kept * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = kept - n * LN_2[0] - n * LN_2[1];
    let series = 1.0 / 120.0 + r * (1.0 / 720.0);
    let series = 0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * series));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let value = (1.0 + r + r * r * series) * power;
    // A NaN stays one.
    if x < -87.0 { 0.0 } else { value + 0.0 * x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_holds_seven_digits() {
        for i in 0..=870_000u32 {
            let x = -(i as f32) / 10_000.0;
            let want = f64::from(x).exp();
            let off = (f64::from(exp(x)) - want).abs() / want;
            assert!(off < 3e-7, "exp({x}) is off by {off:e}");
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(-1e30)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    /// Logits of a vocabulary whose size is no multiple of the lanes.
    fn logits(seed: u32) -> Vec<f32> {
        let number = |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 8;
        (0..3001)
            .map(|i| (number(i) % 9973) as f32 / 700.0 - 5.0)
            .collect()
    }

    /// The definition, in f64.
    fn defined(a: &[f32], b: &[f32], next: usize) -> [f64; 3] {
        let log = |logits: &[f32]| -> Vec<f64> {
            let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            logits.iter().map(|x| f64::from(*x) - sum.ln()).collect()
        };
        let (a, b) = (log(a), log(b));
        let kl = a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum();
        [kl, -a[next], -b[next]]
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        let mut a = logits(1);
        a[40] += 20.0;
        let near: Vec<f32> = a.iter().zip(logits(2)).map(|(a, b)| a + 1e-4 * b).collect();
        let shifted: Vec<f32> = a.iter().map(|x| x + 3.0).collect();
        for (b, agrees) in [
            (logits(2), false),
            (near, true),
            (shifted, true),
            (a.clone(), true),
        ] {
            let got = Comparison::of(&a, &b, Some(17));
            let [kl, dense_loss, loss] = defined(&a, &b, 17);
            for (got, want) in [(got.kl, kl), (got.dense_loss, dense_loss), (got.loss, loss)] {
                let off = (got - want).abs() / want.max(1.0);
                assert!(off < 2e-6, "{got}, not {want}");
            }
            let counts = (got.scored, got.agree, got.predicted);
            assert_eq!(counts, (1, u64::from(agrees), 1));
        }
        let same = Comparison::of(&a, &a, None);
        assert_eq!(
            (same.kl, same.agree, same.predicted, same.loss),
            (0.0, 1, 0, 0.0)
        );
        assert!(Comparison::of(&a, &[f32::NAN; 3001], None).kl.is_nan());
    }

    #[test]
    fn means_are_over_what_was_counted() {
        let mut sum = Comparison::default();
        assert_eq!(
            (sum.kl_nats(), sum.top1(), sum.perplexity_ratio()),
            (0.0, 0.0, 1.0)
        );
        let one = Comparison {
            scored: 4,
            kl: 2.0,
            agree: 3,
            predicted: 2,
            dense_loss: 2.0,
            loss: 4.0,
        };
        sum += one;
        sum += one;
        assert_eq!((sum.kl_nats(), sum.top1()), (0.5, 0.75));
        let e = std::f64::consts::E;
        assert_eq!(
            (sum.dense_perplexity(), sum.perplexity()),
            (e, (2.0f64).exp())
        );
        assert_eq!(sum.perplexity_ratio(), e);
    }
}
