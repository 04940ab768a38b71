//! The sum of what the experts of a row give.

use crate::cube::launch::{array, grid};
use crate::cube::unit::expert_of;
use crate::norm::cube::lanes;
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
    let lanes = lanes(hidden);
    let count = (y.meta.num_elements() / lanes) as u32;
    let chosen = rows.meta.shape()[0] / (y.meta.num_elements() / hidden);
    let experts = bias.map(|(_, biases)| biases.meta.shape()[0] as u32);
    // SAFETY: units beyond the last vector do nothing; without biases any buffers stand for them and for ids.
    unsafe {
        let ids = ArrayArg::from_raw_parts(ids.handle.clone(), ids.meta.num_elements());
        combine_kernel::launch_unchecked::<F, R>(
            &y.client,
            grid(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS),
            lanes,
            array(rows),
            array(weights),
            ids,
            array(biases),
            array(y),
            count,
            (hidden / lanes) as u32,
            chosen as u32,
            experts,
        );
    }
}

/// `width` vectors are a row.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn combine_kernel<F: Float, N: Size>(
    rows: &Array<Vector<F, N>>,
    weights: &Array<f32>,
    ids: &Array<i32>,
    biases: &Array<Vector<f32, N>>,
    y: &mut Array<Vector<F, N>>,
    count: u32,
    width: u32,
    #[comptime] chosen: u32,
    #[comptime] experts: Option<u32>,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let element = at % width;
        let first = at / width * chosen;
        let mut sum = Vector::<f32, N>::cast_from(0.0f32);
        #[unroll]
        for j in 0..chosen {
            let pair = first + j;
            let mut value = Vector::<f32, N>::cast_from(rows[(pair * width + element) as usize]);
            if comptime!(experts.is_some()) {
                let expert = expert_of(ids, pair, comptime!(experts.unwrap_or(1)));
                value += biases[(expert * width + element) as usize];
            }
            sum += Vector::<f32, N>::cast_from(weights[pair as usize]) * value;
        }
        y[at as usize] = Vector::<F, N>::cast_from(sum);
    }
}
