//! The sum of what the experts of a row give, and of what is shared.

use crate::cube::launch::{array, empty, grid, plane, shaped};
use crate::cube::unit::{expert_of, sum_of_units};
use crate::norm::cube::lanes;
use ::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units of a workgroup, which computes one row.
const UNITS: u32 = 256;

/// What the kernel knows when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Elements of a row, and how many a unit has at once.
    hidden: u32,
    lanes: u32,
    chosen: u32,
    /// Number of experts, if they have biases.
    experts: Option<u32>,
    shared: bool,
    gated: bool,
    plane: u32,
}

/// Rows that are added, and what x is multiplied with for their gate.
pub(super) type Added<R> = (CubeTensor<R>, Option<CubeTensor<R>>);

/// y [m, H]: the sums over k pairs of weight * (row + bias), rows [m * k, H], and of rows [m, H] that are `added`, which
/// may have a gate [H] for x [m, H]. `bias` is ids [m * k], and biases of all experts [E, H].
pub(super) fn combine<R: CubeRuntime, F: FloatElement>(
    rows: &CubeTensor<R>,
    weights: &CubeTensor<R>,
    bias: Option<(&CubeTensor<R>, &CubeTensor<R>)>,
    x: &CubeTensor<R>,
    added: Option<&Added<R>>,
    y: &CubeTensor<R>,
) {
    let (ids, biases) = bias.unwrap_or((weights, weights));
    let gate = added.and_then(|(_, gate)| gate.as_ref());
    let hidden = rows.meta.shape()[1];
    let count = y.meta.num_elements() / hidden;
    let shape = Shape {
        hidden: hidden as u32,
        lanes: lanes(hidden) as u32,
        chosen: (rows.meta.shape()[0] / count) as u32,
        experts: bias.map(|(_, biases)| biases.meta.shape()[0] as u32),
        shared: added.is_some(),
        gated: gate.is_some(),
        plane: plane(&y.client),
    };
    // SAFETY: workgroups beyond the last row do nothing; any buffers stand for biases, ids, rows and gates that are not
    // there.
    unsafe {
        let ids = ArrayArg::from_raw_parts(ids.handle.clone(), ids.meta.num_elements());
        combine_kernel::launch_unchecked::<F, R>(
            &y.client,
            grid(count as u32),
            CubeDim::new_1d(UNITS),
            lanes(hidden),
            array(rows),
            array(weights),
            ids,
            array(biases),
            array(x),
            array(added.map_or(x, |(rows, _)| rows)),
            array(gate.unwrap_or(weights)),
            array(y),
            count as u32,
            shape,
        );
    }
}

/// The sums over k of weight * row → [.., H], of contiguous rows [.., k, H] and weights [.., k].
pub(crate) fn alone<R: CubeRuntime, F: FloatElement>(
    rows: CubeTensor<R>,
    weights: &CubeTensor<R>,
) -> CubeTensor<R> {
    let mut shape = rows.meta.shape().to_vec();
    let hidden = shape.pop().expect("rows");
    let chosen = shape.pop().expect("several for each sum");
    shape.push(hidden);
    let y = empty(&rows, shape, F::dtype());
    let pairs = weights.meta.num_elements();
    if pairs > 0 {
        let rows = shaped(rows, [pairs, hidden]);
        // Without a gate x is not read.
        combine::<R, F>(&rows, weights, None, &rows, None, &y);
    }
    debug_assert_eq!(y.meta.num_elements() * chosen, pairs * hidden);
    y
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn combine_kernel<F: Float, N: Size>(
    rows: &Array<Vector<F, N>>,
    weights: &Array<f32>,
    ids: &Array<i32>,
    biases: &Array<Vector<f32, N>>,
    x: &Array<Vector<F, N>>,
    added: &Array<Vector<F, N>>,
    gate: &Array<Vector<f32, N>>,
    y: &mut Array<Vector<F, N>>,
    count: u32,
    #[comptime] shape: Shape,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let row = CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    // The whole workgroup ends, so that no unit waits at a barrier for another.
    if row >= count {
        terminate!();
    }
    let width = comptime!(shape.hidden / shape.lanes);
    let mut factor = 1.0f32.runtime();
    if comptime!(shape.gated) {
        let mut products = Vector::<f32, N>::new(0.0f32);
        let mut at = UNIT_POS;
        while at < width {
            products +=
                Vector::<f32, N>::cast_from(x[(row * width + at) as usize]) * gate[at as usize];
            at += UNITS;
        }
        let mut own = 0.0f32;
        #[unroll]
        for lane in 0..comptime!(shape.lanes) {
            own += products[lane as usize];
        }
        let logit = sum_of_units(own, &mut shared, UNITS, comptime!(shape.plane));
        factor = 1.0f32 / (1.0f32 + (-logit).exp());
    }
    let first = row * comptime!(shape.chosen);
    let mut at = UNIT_POS;
    while at < width {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for j in 0..comptime!(shape.chosen) {
            let pair = first + j;
            let mut value = Vector::<f32, N>::cast_from(rows[(pair * width + at) as usize]);
            if comptime!(shape.experts.is_some()) {
                let expert = expert_of(ids, pair, comptime!(shape.experts.unwrap_or(1)).runtime());
                value += biases[(expert * width + at) as usize];
            }
            sum += Vector::<f32, N>::new(weights[pair as usize]) * value;
        }
        let here = (row * width + at) as usize;
        if comptime!(shape.shared) {
            sum += Vector::<f32, N>::new(factor) * Vector::<f32, N>::cast_from(added[here]);
        }
        y[here] = Vector::<F, N>::cast_from(sum);
        at += UNITS;
    }
}
