//! Llama 3's scaling of rotary frequencies.
//!
//! llama.cpp knows it only by its result: the tensor `rope_freqs.weight` with a divisor of each frequency.
//! The fields that give these divisors are found again, and checked against all of them.

use std::f64::consts::PI;

/// How far a divisor may be off, relative to its size; they are computed in f32.
const TOLERANCE: f64 = 1e-4;

/// Whether two divisors are equal, or as good as.
pub(super) fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * b.abs()
}

/// Llama 3's scaling: frequencies of wavelengths above `original / low` tokens are divided by
/// `factor`, those below `original / high` are kept, those between are blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: u32,
}

impl Llama3 {
    /// The scaling that has these divisors; `original` is what the metadata say of it.
    pub(super) fn find(divisors: &[f64], theta: f64, original: Option<u32>) -> Option<Self> {
        let factor = *divisors.last()?;
        // What all released models have.
        let usual = Self {
            factor,
            low: 1.0,
            high: 4.0,
            original: original.unwrap_or(8192),
        };
        let fits = |one: &Self| {
            let count = divisors.len();
            let mut pairs = divisors.iter().enumerate();
            pairs.all(|(i, given)| near(one.divisor(frequency(i, count, theta)), *given))
        };
        let fitted = Self::fitted(divisors, theta);
        [Some(usual), fitted].into_iter().flatten().find(fits)
    }

    /// The scaling of which the blended divisors are. Blended, `(1/d - 1/factor) / (1 - 1/factor)` is
    /// `(original / wavelength - low) / (high - low)`: a line over `1 / wavelength`, of which the
    /// slope and the offset are found by least squares. Only the ratios of `original`, `low` and
    /// `high` matter: `low` is set to 1.
    fn fitted(divisors: &[f64], theta: f64) -> Option<Self> {
        let factor = *divisors.last()?;
        let least = factor.recip();
        let blended = divisors.iter().enumerate();
        let blended = blended.filter(|(_, d)| !near(**d, 1.0) && !near(**d, factor));
        let points: Vec<(f64, f64)> = blended
            .map(|(i, d)| {
                let turns = frequency(i, divisors.len(), theta) / (2.0 * PI);
                (turns, (d.recip() - least) / (1.0 - least))
            })
            .collect();
        let count = points.len() as f64;
        let (x, y) = points
            .iter()
            .fold((0.0, 0.0), |(x, y), p| (x + p.0 / count, y + p.1 / count));
        let (xx, xy) = points.iter().fold((0.0, 0.0), |(xx, xy), p| {
            (xx + (p.0 - x) * (p.0 - x), xy + (p.0 - x) * (p.1 - y))
        });
        let slope = xy / xx;
        let offset = slope * x - y;
        let original = (slope / offset).round();
        let high = 1.0 + offset.recip();
        // Comparisons with NaN are false: of fewer than two points there is no line.
        (offset > 0.0 && (1.0..=f64::from(u32::MAX)).contains(&original)).then_some(Self {
            factor,
            low: 1.0,
            high: (high * 1000.0).round() / 1000.0,
            original: original as u32,
        })
    }

    /// What a frequency, in radians a token, is divided by.
    fn divisor(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * PI / frequency;
        let original = f64::from(self.original);
        if wavelength < original / self.high {
            1.0
        } else if wavelength > original / self.low {
            self.factor
        } else {
            let blend = (original / wavelength - self.low) / (self.high - self.low);
            ((1.0 - blend) / self.factor + blend).recip()
        }
    }
}

/// The `i`-th of `count` rotary frequencies, in radians a token.
fn frequency(i: usize, count: usize, theta: f64) -> f64 {
    theta.powf(-(i as f64) / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divisors(scaling: Llama3, theta: f64, count: usize) -> Vec<f64> {
        // Rounded to f32, as files have them.
        let rounded = |i| f64::from(scaling.divisor(frequency(i, count, theta)) as f32);
        (0..count).map(rounded).collect()
    }

    #[test]
    fn the_fields_of_a_scaling_are_found_again() {
        for (factor, low, high, original, theta, count) in [
            (8.0, 1.0, 4.0, 8192, 500_000.0, 64),
            (32.0, 1.0, 4.0, 8192, 500_000.0, 32),
            (4.0, 1.0, 4.0, 512, 10_000.0, 32),
            (3.0, 1.0, 8.0, 2048, 1e6, 64),
        ] {
            let scaling = Llama3 {
                factor,
                low,
                high,
                original,
            };
            let found = Llama3::find(&divisors(scaling, theta, count), theta, None);
            assert_eq!(found, Some(scaling));
        }
        // Only ratios matter.
        let doubled = Llama3 {
            factor: 8.0,
            low: 2.0,
            high: 8.0,
            original: 16384,
        };
        let found = Llama3::find(&divisors(doubled, 5e5, 64), 5e5, None).expect("found");
        assert_eq!((found.low, found.high, found.original), (1.0, 4.0, 8192));
    }

    #[test]
    fn other_divisors_are_none_of_llama3() {
        assert_eq!(Llama3::find(&[1.0, 3.0, 2.0, 8.0], 1e4, None), None);
        assert_eq!(Llama3::find(&[2.0; 32], 1e4, None), None);
        assert_eq!(Llama3::find(&[], 1e4, None), None);
        let scaling = Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original: 8192,
        };
        let mut off = divisors(scaling, 5e5, 64);
        off[30] *= 1.01;
        assert_eq!(Llama3::find(&off, 5e5, None), None);
    }
}
