//! Logits and weights: what is done to them beside scale and mask, and how rows end.

use super::blueprint::Blueprint;
use butterfly_ir::scalar;
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// Logits that a mask hides; far below any real one, and finite because WGSL has no infinity.
pub(crate) const HIDDEN: f32 = -1.0e30;

/// Bits of negative infinity.
const MINUS_INFINITY: u32 = 0xff80_0000;

/// `e^x` for a finite `x <= 0`, as fast as the target has it.
#[cube(fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
pub(crate) fn weight(x: f32) -> f32 {
    Exp::exp(x)
}

/// The logit of a score that is scaled already. Only for kernels with a softcap: with a variable
/// for both cases CubeCL puts the write of a vector's element after that of the vector.
#[cube]
pub(crate) fn capped(x: f32, params: &Array<u32>) -> f32 {
    let cap = f32::reinterpret(params[scalar::SOFTCAP]);
    cap * Tanh::tanh(x / cap)
}

/// The end of a row.
#[derive(CubeType)]
pub(crate) struct End {
    /// What the weighted sum of values is to be multiplied by.
    pub(crate) factor: f32,
    pub(crate) lse: f32,
}

/// From the largest logit in use and the sum of weights of a row of q head `head`.
#[cube]
pub(crate) fn end(
    top: f32,
    sum: f32,
    params: &Array<u32>,
    head: u32,
    #[comptime] plan: Blueprint,
) -> End {
    let mut highest = top;
    let mut total = sum;
    let mut fade = 1.0f32.runtime();
    if comptime!(plan.score.sinks) {
        let at = head + comptime!(scalar::SINKS as u32);
        let sink = f32::reinterpret(params[at as usize]);
        if sink > top || sum > 0.0f32 {
            highest = max(top, sink);
            fade = weight(top - highest);
            // A sink may be minus infinity: none.
            let share = select(
                sink > comptime!(HIDDEN / 2.0),
                weight(sink - highest),
                0.0f32.runtime(),
            );
            total = sum * fade + share;
        }
    }
    // A sum with a run-time term: WGSL rejects a constant infinity.
    let mut lse = f32::reinterpret(MINUS_INFINITY + (total > 0.0f32) as u32);
    if total > 0.0f32 {
        lse = highest + Log::ln(total);
    }
    End {
        factor: select(sum > 0.0f32, fade / total, 0.0f32.runtime()),
        lse,
    }
}
