//! What kernels of several operations compute.

use ::cubecl::prelude::*;

/// Sum over each `n` neighbouring units of a workgroup, in a fixed order; uses sums over planes of `plane` units
/// if `plane` is not 0. `shared` has room for a number of each unit, and for `n` more if the last units are fewer
/// than `n`, whose sum is any number. All units call this.
#[cube]
#[allow(clippy::manual_is_multiple_of)] // Kernels have operators and no methods.
pub(crate) fn sum_of_units(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] n: u32,
    #[comptime] plane: u32,
) -> f32 {
    let unit = UNIT_POS;
    if comptime!(plane > 0 && n.is_multiple_of(plane)) {
        let within = plane_sum(value);
        let planes = comptime!(n / plane);
        if comptime!(planes > 1) {
            if unit % plane == 0u32 {
                shared[(unit / plane) as usize] = within;
            }
            sync_cube();
            let first = unit / n * planes;
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..planes {
                sum += shared[(first + i) as usize];
            }
            sync_cube();
            sum
        } else {
            within
        }
    } else {
        let within = unit % n;
        shared[unit as usize] = value;
        sync_cube();
        let mut reach = comptime!(n.next_power_of_two() / 2).runtime();
        while reach > 0u32 {
            if within < reach && within + reach < n {
                let other = shared[(unit + reach) as usize];
                shared[unit as usize] += other;
            }
            sync_cube();
            reach /= 2u32;
        }
        let sum = shared[(unit - within) as usize];
        sync_cube();
        sum
    }
}

/// The expert of a pair. Ids that no expert has stand for the last one, so that kernels stay within its weights.
#[cube]
pub(crate) fn expert_of(ids: &Array<i32>, pair: u32, experts: u32) -> u32 {
    min(u32::cast_from(ids[pair as usize]), experts - 1u32)
}

/// Element `at` of the vector that begins at `start`, of which the first `rotated` are rotated: element `i`
/// of their first half with element `i` of the second, or neighbours if they are `interleaved`. `rotation`
/// holds the cosines, then the sines of each token.
#[cube]
#[allow(clippy::manual_is_multiple_of)] // Kernels have operators and no methods.
pub(crate) fn turned<F: Float>(
    rows: &Array<F>,
    rotation: &Array<f32>,
    start: u32,
    at: u32,
    token: u32,
    #[comptime] rotated: u32,
    #[comptime] interleaved: bool,
) -> f32 {
    let mut x = f32::cast_from(rows[(start + at) as usize]);
    if at < rotated {
        let half = comptime!(rotated / 2).runtime();
        // From the first element of a pair to the second, and the number of the pair.
        let mut step = half;
        let mut pair = at % half;
        let mut first = at < half;
        if interleaved {
            step = 1u32;
            pair = at / 2u32;
            first = at % 2u32 == 0u32;
        }
        let cosine = rotation[(token * rotated + pair) as usize];
        let sine = rotation[(token * rotated + half + pair) as usize];
        if first {
            x = x * cosine - f32::cast_from(rows[(start + at + step) as usize]) * sine;
        } else {
            x = x * cosine + f32::cast_from(rows[(start + at - step) as usize]) * sine;
        }
    }
    x
}

#[cube]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}
