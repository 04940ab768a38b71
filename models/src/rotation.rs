//! RoPE: positions → cosines and sines.

use butterfly_ir::model::{Rope, RopeScaling};
use std::f64::consts::TAU;
use std::ops::Range;

/// How far the pairs of dimensions of a model's heads turn from one position to the next.
#[derive(Clone, Debug)]
pub(crate) struct Frequencies {
    angles: Angles,
    /// A length in tokens, and the angles for sequences that are longer, if they differ.
    longer: Option<(usize, Angles)>,
    /// Multiplies cosines and sines.
    amplitude: f64,
}

/// The angle of each pair, in radians.
#[derive(Clone, Debug)]
struct Angles {
    each: Vec<f64>,
    /// Sines and cosines of the first [`SPAN`] positions.
    near: Vec<Vec<(f64, f64)>>,
}

/// Positions from one to the next of which sines and cosines are computed; of those between, they follow from these, by
/// the sines of sums. That is ten times as fast for a chunk, and exact in f32: it is done in f64.
const SPAN: usize = 64;

impl Angles {
    fn new(each: Vec<f64>) -> Self {
        let turns = |position: usize| -> Vec<(f64, f64)> {
            let angles = each.iter().map(|angle| angle * position as f64);
            angles.map(f64::sin_cos).collect()
        };
        let near = (0..SPAN).map(turns).collect();
        Self { each, near }
    }
}

impl Frequencies {
    /// # Source
    /// RoFormer, arXiv:2104.09864; `Llama3` scaling as in the reference code of Llama 3.1;
    /// YaRN, arXiv:2309.00071, section 3.2; LongRoPE, arXiv:2402.13753.
    pub(crate) fn new(rope: &Rope) -> Self {
        let pairs = rope.dims / 2;
        let plain = (0..pairs).map(|i| {
            let exponent = f64::from(2 * i) / f64::from(rope.dims);
            rope.theta.powf(-exponent)
        });
        let divided = |factors: &[f64]| {
            Angles::new(plain.clone().zip(factors).map(|(f, by)| f / by).collect())
        };
        match &rope.scaling {
            RopeScaling::Default => Self::all(plain.collect()),
            RopeScaling::Linear { factor } => Self::all(plain.map(|f| f / factor).collect()),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original_max,
            } => {
                let scaled = plain.map(|frequency| {
                    let turns = f64::from(*original_max) * frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    kept * frequency + (1.0 - kept) * frequency / factor
                });
                Self::all(scaled.collect())
            }
            RopeScaling::Yarn {
                factor,
                range: [kept, divided],
                amplitude,
            } => {
                let angles = plain.enumerate().map(|(i, frequency)| {
                    let low = ((i as f64 - kept) / (divided - kept)).clamp(0.0, 1.0);
                    low * frequency / factor + (1.0 - low) * frequency
                });
                Self {
                    amplitude: *amplitude,
                    ..Self::all(angles.collect())
                }
            }
            RopeScaling::LongRope {
                short,
                long,
                original_max,
                amplitude,
            } => Self {
                angles: divided(short),
                longer: Some((*original_max as usize, divided(long))),
                amplitude: *amplitude,
            },
        }
    }

    fn all(angles: Vec<f64>) -> Self {
        Self {
            angles: Angles::new(angles),
            longer: None,
            amplitude: 1.0,
        }
    }

    /// The cosines of all pairs, then their sines, for each position: `[positions, 2 * pairs]`;
    /// `capacity` is the length of the sequence to plan for, in tokens.
    pub(crate) fn table(&self, capacity: usize, positions: Range<usize>) -> Vec<f32> {
        let angles = match &self.longer {
            Some((most, longer)) if capacity > *most => longer,
            _ => &self.angles,
        };
        let pairs = angles.each.len();
        let mut table = vec![0.0; positions.len() * 2 * pairs];
        let mut far = (usize::MAX, Vec::new());
        for (row, position) in table.chunks_mut((2 * pairs).max(1)).zip(positions) {
            let start = position / SPAN * SPAN;
            if far.0 != start {
                let turns = angles
                    .each
                    .iter()
                    .map(|angle| (angle * start as f64).sin_cos());
                far = (start, turns.collect());
            }
            let (cosines, sines) = row.split_at_mut(pairs);
            let turns = far.1.iter().zip(&angles.near[position % SPAN]);
            for ((cos, sin), ((s, c), (near_s, near_c))) in cosines.iter_mut().zip(sines).zip(turns)
            {
                *cos = (self.amplitude * (c * near_c - s * near_s)) as f32;
                *sin = (self.amplitude * (s * near_c + c * near_s)) as f32;
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_keeps_high_frequencies_and_divides_low_ones() {
        let rope = Rope {
            theta: 500_000.0,
            dims: 128,
            interleaved: false,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low: 1.0,
                high: 4.0,
                original_max: 8192,
            },
        };
        let scaled = Frequencies::new(&rope).angles.each;
        let plain = Frequencies::new(&Rope {
            scaling: RopeScaling::Default,
            ..rope
        });
        let plain = plain.angles.each;
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] - plain[63] / 8.0).abs() < 1e-15);
        let between = (0..64).filter(|i| scaled[*i] < plain[*i] && scaled[*i] > plain[*i] / 8.0);
        assert!(between.count() > 2);
    }

    /// Frequencies of gpt-oss, by the formula of `_compute_yarn_parameters` of transformers 5.24 in f64.
    #[test]
    fn yarn_keeps_high_frequencies_and_divides_low_ones() {
        let amplitude = 0.1 * 32f64.ln() + 1.0;
        let frequencies = Frequencies::new(&Rope {
            theta: 150_000.0,
            dims: 64,
            interleaved: false,
            scaling: RopeScaling::Yarn {
                factor: 32.0,
                range: [8.092_779_115_512_402, 17.398_024_501_588_56],
                amplitude,
            },
        });
        assert_eq!(frequencies.angles.each.len(), 32);
        for (pair, expected) in [
            (0, 1.0),
            (1, 0.689_044_305_888_163_2),
            (8, 0.050_813_274_815_461_475),
            (9, 0.031_705_696_184_663_77),
            (13, 0.003_860_359_317_192_068_5),
            (17, 0.000_129_318_701_245_063_2),
            (18, 3.830_881_237_375_338_4e-5),
            (31, 3.023_511_428_119_214_4e-7),
        ] {
            let off = (frequencies.angles.each[pair] / expected - 1.0).abs();
            assert!(off < 1e-12, "{pair}: {}", frequencies.angles.each[pair]);
        }
        let table = frequencies.table(8, 0..1);
        let (cosines, sines) = table.split_at(32);
        assert!(cosines.iter().all(|cos| *cos == amplitude as f32));
        assert!(sines.iter().all(|sin| *sin == 0.0));
    }

    #[test]
    fn a_table_holds_cosines_before_sines() {
        let table = Frequencies::all(vec![1.0, 0.5]).table(8, 3..5);
        let expected = [3.0f32.cos(), 1.5f32.cos(), 3.0f32.sin(), 1.5f32.sin()];
        assert_eq!(table.len(), 8);
        assert!(
            table
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
    }

    /// Tables are those of the angles themselves, wherever they begin.
    #[test]
    fn sums_of_angles_are_exact() {
        let rope = Rope {
            theta: 1e6,
            dims: 128,
            interleaved: false,
            scaling: RopeScaling::Default,
        };
        let frequencies = Frequencies::new(&rope);
        for positions in [0..200, 8190..8200, 1_048_500..1_048_577] {
            let table = frequencies.table(8, positions.clone());
            for (row, position) in table.chunks(128).zip(positions.clone()) {
                assert_eq!(row, frequencies.table(8, position..position + 1));
                let (cosines, sines) = row.split_at(64);
                for ((cos, sin), angle) in cosines.iter().zip(sines).zip(&frequencies.angles.each) {
                    let (s, c) = (angle * position as f64).sin_cos();
                    assert!((f64::from(*cos) - c).abs() < 6e-8, "{position}");
                    assert!((f64::from(*sin) - s).abs() < 6e-8, "{position}");
                }
            }
        }
    }

    /// Frequencies as `_compute_longrope_parameters` of transformers 5.24 gives them, for 12 of 16
    /// elements.
    #[test]
    fn longer_sequences_have_other_frequencies() {
        let frequencies = Frequencies::new(&Rope {
            theta: 10_000.0,
            dims: 12,
            interleaved: false,
            scaling: RopeScaling::LongRope {
                short: vec![1.0, 1.05, 1.1, 1.25, 1.5, 2.0],
                long: vec![1.5, 2.0, 4.5, 12.25, 31.0, 62.5],
                original_max: 4096,
                amplitude: 1.25,
            },
        });
        let short = [
            1.0,
            0.205_184_27,
            0.042_196_255,
            0.008,
            0.001_436_289_5,
            0.000_232_079_47,
        ];
        let long = [
            0.666_666_7,
            0.107_721_72,
            0.010_314_64,
            0.000_816_326_53,
            0.000_069_497_88,
            0.000_007_426_543_6,
        ];
        for (capacity, expected) in [(1, short), (4096, short), (4097, long), (131_072, long)] {
            let table = frequencies.table(capacity, 3..4);
            let (cosines, sines) = table.split_at(6);
            for ((cos, sin), frequency) in cosines.iter().zip(sines).zip(expected) {
                let angle: f64 = 3.0 * frequency;
                assert!((f64::from(*cos) - 1.25 * angle.cos()).abs() < 2e-6);
                assert!((f64::from(*sin) - 1.25 * angle.sin()).abs() < 2e-6);
            }
        }
    }
}
