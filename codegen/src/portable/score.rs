//! From scores to weights: softcap, exponential, sink logits, and the end of a row.

use super::blueprint::Blueprint;
use butterfly_ir::scalar;
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// The logit of a masked key: far below any real one, and finite because WGSL has no infinity.
pub(crate) const HIDDEN: f32 = -1.0e30;

/// Bits of negative infinity.
const MINUS_INFINITY: u32 = 0xff80_0000;

/// `e^x` for a finite `x <= 0`, by the target's fastest instruction.
#[cube(fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
pub(crate) fn weight(x: f32) -> f32 {
    Exp::exp(x)
}

/// Applies the softcap to a score that is already scaled. Call it only in kernels with a softcap:
/// a function for both cases would need a mutable variable, and then CubeCL puts the write of a
/// vector's element after the write of the whole vector.
#[cube]
pub(crate) fn capped(x: f32, params: &Array<u32>) -> f32 {
    let cap = f32::reinterpret(params[scalar::SOFTCAP]);
    cap * Tanh::tanh(x / cap)
}

/// The final numbers of a row.
#[derive(CubeType)]
pub(crate) struct End {
    /// The factor that turns the weighted sum of values into the output.
    pub(crate) factor: f32,
    /// Log-sum-exp, natural.
    pub(crate) lse: f32,
}

/// The final numbers of a row of q head `head`: `sum` is the sum of its weights, which are relative
/// to the logit `top`.
#[cube]
pub(crate) fn end(
    top: f32,
    sum: f32,
    params: &Array<u32>,
    head: u32,
    #[comptime] blueprint: Blueprint,
) -> End {
    let mut highest = top;
    let mut total = sum;
    let mut fade = 1.0f32.runtime();
    if comptime!(blueprint.score.sinks) {
        let at = head + comptime!(scalar::SINKS as u32);
        let sink = f32::reinterpret(params[at as usize]);
        if sink > top || sum > 0.0f32 {
            highest = max(top, sink);
            fade = weight(top - highest);
            // A sink logit of minus infinity means no sink.
            let share = select(
                sink > comptime!(HIDDEN / 2.0),
                weight(sink - highest),
                0.0f32.runtime(),
            );
            total = sum * fade + share;
        }
    }
    // WGSL rejects a constant infinity, so its bits get a run-time term, which is zero where the
    // infinity is used.
    let mut lse = f32::reinterpret(MINUS_INFINITY + (total > 0.0f32) as u32);
    if total > 0.0f32 {
        lse = highest + Log::ln(total);
    }
    End {
        factor: select(sum > 0.0f32, fade / total, 0.0f32.runtime()),
        lse,
    }
}
