//! The sum of what the experts of a row give.

use crate::cube::launch::{array, grid};
use crate::cube::unit::expert_of;
use ::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units of a workgroup.
const UNITS: u32 = 256;

/// y [m, H]: the sums over k pairs of weight * (row + bias), rows [m * k, H]. `bias` is ids [m * k], and biases of
/// all experts [E, H].
pub(super) fn combine<R: CubeRuntime, F: FloatElement>(
    rows: &CubeTensor<R>,
    weights: &CubeTensor<R>,
    bias: Option<(&CubeTensor<R>, &CubeTensor<R>)>,
    y: &CubeTensor<R>,
) {
    let (ids, biases) = bias.unwrap_or((weights, weights));
    let hidden = rows.meta.shape()[1];
    let count = y.meta.num_elements() as u32;
    let chosen = rows.meta.shape()[0] / (count as usize / hidden);
    // SAFETY: units beyond the last element do nothing; without biases any buffers stand for them and for ids.
    unsafe {
        let ids = ArrayArg::from_raw_parts(ids.handle.clone(), ids.meta.num_elements());
        combine_kernel::launch_unchecked::<F, R>(
            &y.client,
            grid(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS),
            array(rows),
            array(weights),
            ids,
            array(biases),
            array(y),
            count,
            hidden as u32,
            chosen as u32,
            bias.is_some(),
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn combine_kernel<F: Float>(
    rows: &Array<F>,
    weights: &Array<f32>,
    ids: &Array<i32>,
    biases: &Array<f32>,
    y: &mut Array<F>,
    count: u32,
    hidden: u32,
    #[comptime] chosen: u32,
    #[comptime] biased: bool,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let element = at % hidden;
        let first = at / hidden * chosen;
        let mut sum = 0.0f32;
        for j in 0..chosen {
            let pair = first + j;
            let mut value = f32::cast_from(rows[(pair * hidden + element) as usize]);
            if comptime!(biased) {
                let experts = u32::cast_from(biases.len()) / hidden;
                let expert = expert_of(ids, pair, experts);
                value += biases[(expert * hidden + element) as usize];
            }
            sum += weights[pair as usize] * value;
        }
        y[at as usize] = F::cast_from(sum);
    }
}
