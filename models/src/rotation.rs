//! RoPE: positions → cosines and sines.

use butterfly_ir::model::{Rope, RopeScaling};
use std::f64::consts::TAU;

/// The angle, in radians, by which each pair of dimensions turns from one position to the next.
///
/// # Source
/// RoFormer, arXiv:2104.09864; `Llama3` scaling as in the reference code of Llama 3.1.
pub(crate) fn frequencies(rope: &Rope) -> Vec<f64> {
    let pairs = rope.dims / 2;
    let plain = (0..pairs).map(|i| {
        let exponent = f64::from(2 * i) / f64::from(rope.dims);
        rope.theta.powf(-exponent)
    });
    let scaled = plain.map(|frequency| match rope.scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original_max,
        } => {
            let turns = f64::from(original_max) * frequency / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
    });
    scaled.collect()
}

/// The cosines of all pairs, then their sines, for each position: `[positions, 2 * pairs]`.
pub(crate) fn table(frequencies: &[f64], positions: std::ops::Range<usize>) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions.len() * 2 * frequencies.len());
    for position in positions {
        let angles = frequencies.iter().map(|f| f * position as f64);
        table.extend(angles.clone().map(|angle| angle.cos() as f32));
        table.extend(angles.map(|angle| angle.sin() as f32));
    }
    table
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
        let scaled = frequencies(&rope);
        let plain = frequencies(&Rope {
            scaling: RopeScaling::Default,
            ..rope
        });
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] - plain[63] / 8.0).abs() < 1e-15);
        let between = (0..64).filter(|i| scaled[*i] < plain[*i] && scaled[*i] > plain[*i] / 8.0);
        assert!(between.count() > 2);
    }

    #[test]
    fn a_table_holds_cosines_before_sines() {
        let table = table(&[1.0, 0.5], 3..5);
        let expected = [3.0f32.cos(), 1.5f32.cos(), 3.0f32.sin(), 1.5f32.sin()];
        assert_eq!(table.len(), 8);
        assert!(
            table
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
    }
}
