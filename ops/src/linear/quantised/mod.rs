//! Rows that become floats of 8 bits before they are multiplied with a weight of such floats.
//!
//! Every [`GROUP`] elements of a row share a power of two, the smallest one by which the largest of them becomes at most
//! 448, and are rounded to e4m3, to the nearest and to even ones. So a rounded row has numbers of four significant bits,
//! which any element type holds: it is the same on every device, quantised or not. Numbers that are not finite make their
//! group NaN.
//!
//! # Source
//! Groups of 128 elements with factors of their own: DeepSeek-V3 technical report, arXiv:2412.19437, section 3.3.2; e4m3:
//! OCP 8-bit Floating Point Specification 1.0.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod hopper;

/// Elements of a row that share a factor.
pub(crate) const GROUP: usize = 128;

/// The bits of 1.75 behind the exponent: 448 is 1.75 * 2^8.
const MOST: u32 = 0x60_0000;

/// The biased exponent of the smallest factor.
const LEAST: u32 = 1;

/// Rows of `k` elements, rounded.
#[cfg(any(feature = "cpu", test))]
pub(crate) fn rounded(x: &[f32], k: usize) -> Vec<f32> {
    let mut rows = x.to_vec();
    for row in rows.chunks_mut(k) {
        row.chunks_mut(GROUP).for_each(round);
    }
    rows
}

/// Rounds the elements of a group.
#[cfg(any(feature = "cpu", test))]
fn round(group: &mut [f32]) {
    // NaN has larger bits than infinity, which has larger bits than all others.
    let bits = group.iter().map(|x| x.abs().to_bits());
    let largest = bits.fold(0, u32::max);
    if largest >= f32::INFINITY.to_bits() {
        return group.fill(f32::NAN);
    }
    let exponent = exponent(largest);
    let factor = f32::from_bits(exponent << 23);
    let inverse = f32::from_bits((254 - exponent) << 23);
    for x in group {
        let scaled = *x * inverse;
        // Adding a number of which the last bit counts as much as that of the result rounds to it.
        let own = (scaled.abs().to_bits() >> 23).max(127 - 6);
        let step = f32::from_bits((own + 20) << 23) * 1.5;
        *x = ((scaled + step) - step) * factor;
    }
}

/// The biased exponent of the factor of a group whose largest element has these bits.
#[cfg(any(feature = "cpu", test))]
fn exponent(largest: u32) -> u32 {
    let above = u32::from(largest & 0x7f_ffff > MOST);
    (largest >> 23).saturating_sub(8 - above).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(x: &[f32]) -> Vec<f32> {
        rounded(x, x.len())
    }

    /// All numbers of e4m3 up to 448, by their definition.
    fn numbers() -> Vec<f64> {
        let code = |code: u32| match (code >> 3, f64::from(code & 7)) {
            (0, mantissa) => mantissa / 512.0,
            (exponent, mantissa) => (1.0 + mantissa / 8.0) * 2f64.powi(exponent as i32 - 7),
        };
        (0..0x7f).map(code).collect()
    }

    #[test]
    fn groups_are_rounded_to_the_nearest_numbers() {
        let numbers = numbers();
        let mut state = 1u64;
        for trial in 0..200 {
            let group: Vec<f32> = (0..GROUP)
                .map(|i| {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    let uniform = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                    uniform * 2f32.powi(trial / 2 - 50 - (i % 20) as i32)
                })
                .collect();
            let rounded = of(&group);
            let largest = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let mut factor = 2f64.powi(-120);
            while f64::from(largest) / factor > 448.0 {
                factor *= 2.0;
            }
            for (x, y) in group.iter().zip(&rounded) {
                let (x, y) = (f64::from(*x) / factor, f64::from(*y) / factor);
                let distance = |n: &f64| (x.abs() - n).abs();
                let nearest = numbers.iter().map(distance).fold(f64::MAX, f64::min);
                assert!(numbers.contains(&y.abs()), "{y} is a number of e4m3");
                assert!(distance(&y.abs()) <= nearest, "{x} became {y}");
                assert!(x * y >= 0.0);
            }
        }
    }

    #[test]
    fn ties_go_to_even_numbers() {
        // 1.0625 and 1.1875 lie between 1, 1.125 and 1.25.
        let x = [448.0, 1.0625, 1.1875, -1.0625, 0.5 / 512.0, 1.5 / 512.0];
        assert_eq!(of(&x), [448.0, 1.0, 1.25, -1.0, 0.0, 2.0 / 512.0]);
    }

    #[test]
    fn the_largest_number_keeps_its_place() {
        for (largest, rounded) in [(448.0, 448.0), (449.0, 448.0), (480.0, 480.0)] {
            assert_eq!(of(&[largest]), [rounded], "{largest}");
        }
        assert_eq!(of(&[0.0, -0.0]), [0.0, 0.0]);
        assert_eq!(of(&[f32::MIN_POSITIVE]), [f32::MIN_POSITIVE]);
    }

    #[test]
    fn what_is_not_finite_makes_a_group_nan() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 2 * GROUP + 3];
            x[GROUP] = bad;
            let rounded = of(&x);
            assert!(rounded[GROUP..2 * GROUP].iter().all(|x| x.is_nan()));
            let others = rounded[..GROUP].iter().chain(&rounded[2 * GROUP..]);
            assert!(others.into_iter().all(|x| *x == 1.0));
        }
    }
}
