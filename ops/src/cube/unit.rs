//! What the units of a workgroup compute together.

use ::cubecl::prelude::*;

/// Sum over the `n` units of a workgroup, in a fixed order; uses sums over planes of `plane` units
/// if `plane` is not 0. `shared` has room for `n` numbers.
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
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..planes {
                sum += shared[i as usize];
            }
            sync_cube();
            sum
        } else {
            within
        }
    } else {
        shared[unit as usize] = value;
        sync_cube();
        let mut reach = comptime!(n.next_power_of_two() / 2).runtime();
        while reach > 0u32 {
            if unit < reach && unit + reach < n {
                let other = shared[(unit + reach) as usize];
                shared[unit as usize] += other;
            }
            sync_cube();
            reach /= 2u32;
        }
        let sum = shared[0];
        sync_cube();
        sum
    }
}

#[cube]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}
