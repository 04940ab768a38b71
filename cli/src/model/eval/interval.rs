//! How sure a share is that was found in a few trials.

/// The quantile of the normal distribution between whose negative and itself 95 % lie.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share that was found in so many trials; of none, from 0 to 1.
///
/// Where a trial counts in part, as with half of an answer, the interval is wider than it must be:
/// nothing between 0 and 1 with the same mean varies more than what is either 0 or 1.
///
/// # Source
/// The score interval of Wilson, "Probable Inference, the Law of Succession, and Statistical
/// Inference", Journal of the American Statistical Association 22 (1927), 209-212.
pub(crate) fn wilson(share: f64, trials: u64) -> [f64; 2] {
    if trials == 0 {
        return [0.0, 1.0];
    }
    let n = trials as f64;
    let middle = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    [middle - half, middle + half].map(|end| (end / scale).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_intervals() {
        for (share, trials, low, high) in [
            (0.9, 10, 0.595_85, 0.982_12),
            (0.5, 10, 0.236_59, 0.763_41),
            (0.0, 10, 0.0, 0.277_53),
            (1.0, 1, 0.206_55, 1.0),
            (0.81, 100, 0.722_21, 0.874_85),
        ] {
            let got = wilson(share, trials);
            let near = |a: f64, b: f64| (a - b).abs() < 1e-4;
            assert!(near(got[0], low) && near(got[1], high), "{share}: {got:?}");
        }
        assert_eq!(wilson(0.5, 0), [0.0, 1.0]);
    }
}
