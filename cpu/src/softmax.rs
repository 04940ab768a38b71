//! Online softmax over a panel of logits whose lanes are queries.
//!
//! In:  a panel `[keys, lanes]` of logits, the running maximum and sum of each lane.
//! Out: the panel holds `exp(logit - maximum)`; maximum and sum include these keys.
//!
//! Invariants: a lane that has not seen any key has maximum -inf and sum 0. In such a lane
//! 0 is subtracted in place of the maximum, since `-inf - -inf` would be NaN.
//!
//! Source: Milakov and Gimelshein, arXiv:1805.02867, algorithm 3; rescaling once for each
//! tile after FlashAttention-2, arXiv:2307.08691, section 3.1.

use crate::simd::Simd;

/// Below this, `exp` gives 0 instead of a subnormal number.
const SMALLEST: f32 = -87.336_54;

/// `e^x` for `x <= 0`, to 2 units in the last place; 0 below [`SMALLEST`], NaN for NaN.
///
/// Range reduction after Cody and Waite: `x = n ln 2 + r` with ln 2 in two parts, then a
/// polynomial in `r`.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::Vector) -> S::Vector {
    // SAFETY: the caller's promise.
    unsafe {
        // `S::max` returns its second operand if either is NaN, so in this order NaN stays NaN.
        let clamped = S::max(S::splat(SMALLEST), x);
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        let r = S::mul_add(n, S::splat(-0.693_359_4), clamped);
        let r = S::mul_add(n, S::splat(2.121_944_4e-4), r);
        // Cephes expf: minimax on [-ln 2 / 2, ln 2 / 2].
        let p = S::mul_add(S::splat(1.987_569_1e-4), r, S::splat(1.398_199_9e-3));
        let p = S::mul_add(p, r, S::splat(8.333_452e-3));
        let p = S::mul_add(p, r, S::splat(4.166_579_6e-2));
        let p = S::mul_add(p, r, S::splat(1.666_666_5e-1));
        let p = S::mul_add(p, r, S::splat(0.5));
        let tail = S::mul_add(S::mul(r, r), p, r);
        let power = S::scale_by_power(S::add(tail, S::splat(1.0)), n);
        S::select(S::below(x, S::splat(SMALLEST)), S::splat(0.0), power)
    }
}

/// Sets the logits of keys outside all `ranges` to -inf.
///
/// For each range, `ranges` holds the start of every lane, then the end of every lane
/// (exclusive), as key numbers within the panel.
///
/// # Safety
/// The CPU has the instructions of `S`; `logits` has `keys * W * N` elements, `ranges` a
/// multiple of `2 * W * N`, both aligned to the size of a vector.
#[inline(always)]
pub(crate) unsafe fn mask<S: Simd, const W: usize>(logits: *mut f32, keys: usize, ranges: &[f32]) {
    let lanes = W * S::N;
    // SAFETY: the caller's promise; `chunks_exact` gives only whole ranges, of whole vectors.
    unsafe {
        for key in 0..keys {
            let position = S::splat(key as f32);
            for w in 0..W {
                // No number is below itself, so this is the empty mask.
                let mut seen = S::below(position, position);
                for range in ranges.chunks_exact(2 * lanes) {
                    let start = S::load(range.as_ptr().add(w * S::N));
                    let end = S::load(range.as_ptr().add(lanes + w * S::N));
                    let inside = S::and(S::at_most(start, position), S::below(position, end));
                    seen = S::or(seen, inside);
                }
                let at = logits.add(key * lanes + w * S::N);
                S::store(
                    at,
                    S::select(seen, S::load(at), S::splat(f32::NEG_INFINITY)),
                );
            }
        }
    }
}

/// Updates the running maximum and sum, and turns logits into weights relative to the new
/// maximum. Returns the factor by which earlier output has to be rescaled.
///
/// # Safety
/// The CPU has the instructions of `S`; `logits` has `keys * W * N` elements, `maximum` and
/// `sum` have `W * N`, all aligned to the size of a vector.
#[inline(always)]
pub(crate) unsafe fn weigh<S: Simd, const W: usize>(
    logits: *mut f32,
    keys: usize,
    maximum: *mut f32,
    sum: *mut f32,
) -> [S::Vector; W] {
    // SAFETY: the caller's promise; `w` and `key` stay below the promised lengths.
    unsafe {
        let unseen = S::splat(f32::NEG_INFINITY);
        let mut old = [unseen; W];
        for (w, old) in old.iter_mut().enumerate() {
            *old = S::load(maximum.add(w * S::N));
        }
        let mut new = old;
        for key in 0..keys {
            for (w, new) in new.iter_mut().enumerate() {
                *new = S::max(*new, S::load(logits.add((key * W + w) * S::N)));
            }
        }
        let mut base = new;
        for base in &mut base {
            *base = S::select(S::at_most(*base, unseen), S::splat(0.0), *base);
        }
        let mut total = [S::splat(0.0); W];
        for key in 0..keys {
            for w in 0..W {
                let at = logits.add((key * W + w) * S::N);
                let weight = exp::<S>(S::sub(S::load(at), base[w]));
                S::store(at, weight);
                total[w] = S::add(total[w], weight);
            }
        }
        let mut factor = [S::splat(1.0); W];
        for w in 0..W {
            factor[w] = exp::<S>(S::sub(old[w], base[w]));
            let before = S::load(sum.add(w * S::N));
            S::store(sum.add(w * S::N), S::mul_add(factor[w], before, total[w]));
            S::store(maximum.add(w * S::N), new[w]);
        }
        factor
    }
}

/// The factor for the weighted sum of values of a query, and the query's log-sum-exp; from its
/// largest logit, its sum of weights and the logit of its sink, if it has one.
pub(crate) fn finish(maximum: f32, sum: f32, sink: Option<f32>) -> (f32, f32) {
    let (fade, total, top) = match sink {
        Some(sink) if sink > f32::NEG_INFINITY => {
            let top = maximum.max(sink);
            let fade = (maximum - top).exp();
            (fade, sum * fade + (sink - top).exp(), top)
        }
        _ => (1.0, sum, maximum),
    };
    let factor = if sum == 0.0 { 0.0 } else { fade / total };
    (factor, top + total.ln())
}

#[cfg(test)]
#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "instructions are looked for before they are used; lanes are whole vectors"
)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    #[test]
    fn exp_holds_seven_digits() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -87.3 * (i as f32) / 2_000_000.0;
            let got = f64::from(unsafe { exp::<Portable>([x; 4]) }[0]);
            let exact = f64::from(x).exp();
            worst = worst.max(((got - exact) / exact).abs());
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
    }

    #[test]
    fn exp_at_the_limits() {
        let at = |x: f32| unsafe { exp::<Portable>([x; 4]) }[0];
        assert_eq!(at(0.0), 1.0);
        assert_eq!(at(f32::NEG_INFINITY), 0.0);
        assert_eq!(at(-88.0), 0.0);
        assert!(at(-87.0) > 0.0);
        assert!(at(f32::NAN).is_nan());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn exp_is_as_good_on_every_instruction_set() {
        use crate::simd::{Avx2, Avx512};

        #[target_feature(enable = "avx2,fma")]
        unsafe fn on_avx2(x: f32) -> f32 {
            let mut lanes = Lanes([0.0; 16]);
            unsafe { Avx2::store(lanes.0.as_mut_ptr(), exp::<Avx2>(Avx2::splat(x))) };
            lanes.0[3]
        }
        #[target_feature(enable = "avx512f")]
        unsafe fn on_avx512(x: f32) -> f32 {
            let mut lanes = Lanes([0.0; 16]);
            unsafe { Avx512::store(lanes.0.as_mut_ptr(), exp::<Avx512>(Avx512::splat(x))) };
            lanes.0[3]
        }
        #[repr(align(64))]
        struct Lanes([f32; 16]);

        let good = |x: f32, got: f32| {
            let exact = f64::from(x).exp();
            assert!((f64::from(got) - exact).abs() <= 2e-7 * exact, "{x}: {got}");
        };
        for i in 0..100_000 {
            let x = -87.3 * (i as f32) / 100_000.0;
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                good(x, unsafe { on_avx2(x) });
            }
            if is_x86_feature_detected!("avx512f") {
                good(x, unsafe { on_avx512(x) });
            }
        }
        if is_x86_feature_detected!("avx512f") {
            assert_eq!(unsafe { on_avx512(f32::NEG_INFINITY) }, 0.0);
            assert!(unsafe { on_avx512(f32::NAN) }.is_nan());
        }
    }
}
