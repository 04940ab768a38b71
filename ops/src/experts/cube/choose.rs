//! The choice of experts by the logits of a norm: for a few rows one kernel does all of it.

use super::route::{self, Shape as Chosen, choose as choose_in};
use crate::OperationError;
use crate::cube::launch::{array, empty, grid};
use crate::experts::Choose;
use crate::linear::Storage;
use crate::normed::Normed;
use crate::normed::cube::{Given, Kept, given_to, normed};
use crate::normed::row::{RowShape, norm_of_row};
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::{Device, Launches};

/// Units of a plane, and planes of a workgroup, which chooses for one row.
const PLANE: u32 = 32;
const PLANES: u32 = 32;
const UNITS: u32 = PLANE * PLANES;
/// Elements in a load.
const LANES: usize = 8;
/// Vectors that a unit loads at once.
const AT_ONCE: u32 = 8;
/// Most elements of the router: a workgroup reads all of them.
const MOST_ELEMENTS: usize = 1 << 18;

/// # Errors
/// If a generated kernel cannot be made or launched.
pub(crate) fn choose<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Choose,
    mut inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let bias = inputs.split_off(op.of_normed(inputs.len()));
    if takes::<R, F>(op, &inputs) {
        return Ok(at_once::<R, F>(op, inputs, bias.first()));
    }
    let mut outputs = normed::<R, F>(&op.normed, inputs)?;
    let logits = outputs.pop().into_iter();
    outputs.extend(route::route(&op.route, logits.chain(bias).collect()));
    Ok(outputs)
}

/// Whether the kernel takes these: on NVIDIA devices 16-bit floats, and a router of the same or of f32.
fn takes<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Choose,
    inputs: &[CubeTensor<R>],
) -> bool {
    let x = &inputs[0];
    let columns = x.meta.shape().last().copied().unwrap_or_default();
    let elements = x.meta.num_elements();
    let project = &op.normed.project;
    let stored = match project.parts.as_ref() {
        [part] => {
            part.storage == Storage::Dense(F::dtype()) || part.storage == Storage::Dense(DType::F32)
        }
        _ => false,
    };
    R::device(&x.client) == Device::Cuda
        && F::dtype() != DType::F32
        && stored
        && columns.is_multiple_of(LANES)
        && (1..=Normed::FEW * columns).contains(&elements)
        && project.rows().saturating_mul(columns) <= MOST_ELEMENTS
}

fn at_once<R: CubeRuntime, F: FloatElement>(
    op: &Choose,
    inputs: Vec<CubeTensor<R>>,
    bias: Option<&CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let (given, weight) = given_to(&op.normed, inputs);
    let kept = Kept::of::<F>(&given, op.normed.keep);
    let mut shape = given.x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = op.route.all();
    }
    let ids = empty(&given.x, shape.clone(), DType::I32);
    let weights = empty(&given.x, shape, DType::F32);
    let bias = bias.unwrap_or(&given.norm);
    let to = [&ids, &weights];
    match weight[0].dtype {
        DType::F32 => launch::<R, F, f32>(op, (&given, &kept), [&weight[0], bias], to),
        _ => launch::<R, F, F>(op, (&given, &kept), [&weight[0], bias], to),
    }
    kept.with(&given, [ids, weights])
}

fn launch<R: CubeRuntime, F: FloatElement, W: FloatElement>(
    op: &Choose,
    (given, kept): (&Given<R>, &Kept<R>),
    [weight, bias]: [&CubeTensor<R>; 2],
    [ids, weights]: [&CubeTensor<R>; 2],
) {
    let x = &given.x;
    let (rows, width) = (given.rows() as u32, op.normed.project.rows());
    // SAFETY: a workgroup reads and writes one row; any buffers stand for what is not there or not wanted.
    unsafe {
        choose_kernel::launch_unchecked::<F, W, R>(
            &x.client,
            grid(rows),
            CubeDim::new_2d(PLANE, PLANES),
            LANES,
            array(x),
            array(given.added.as_ref().unwrap_or(x)),
            array(given.factors.as_ref().unwrap_or(x)),
            array(&given.norm),
            array(weight),
            array(bias),
            array(kept.sums.as_ref().unwrap_or(weights)),
            array(kept.norms.as_ref().unwrap_or(weights)),
            array(ids),
            array(weights),
            rows,
            given.epsilon,
            op.route.scale(),
            RowShape::of(given, kept, LANES, UNITS),
            Chosen::of(&op.route, width, true),
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn choose_kernel<F: Float, W: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    added: &Array<Vector<F, N>>,
    factors: &Array<f32>,
    norm: &Array<Vector<f32, N>>,
    weight: &Array<Vector<W, N>>,
    bias: &Array<f32>,
    sums: &mut Array<Vector<f32, N>>,
    norms: &mut Array<Vector<F, N>>,
    ids: &mut Array<i32>,
    weights: &mut Array<f32>,
    rows: u32,
    epsilon: f32,
    scale: f32,
    #[comptime] shape: RowShape,
    #[comptime] chosen: Chosen,
) {
    let (vectors, width) = comptime!((shape.vectors, chosen.width));
    let mut own = SharedMemory::<Vector<F, N>>::new(comptime!(vectors as usize));
    let mut squares = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut scores = SharedMemory::<f32>::new(comptime!(width as usize));
    let row = CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    if row >= rows {
        terminate!();
    }
    norm_of_row(
        x,
        added,
        factors,
        norm,
        sums,
        norms,
        &mut own,
        &mut squares,
        row,
        0u32.runtime(),
        true.runtime(),
        epsilon,
        shape,
    );
    sync_cube();
    let mut loaded = Array::<Vector<W, N>>::new(comptime!(AT_ONCE as usize));
    let mut e = UNIT_POS_Y;
    while e < width {
        let mut products = Vector::<f32, N>::new(0.0f32);
        let mut first = 0u32;
        while first < vectors {
            // Beyond the last vector the last one is loaded, and not multiplied.
            #[unroll]
            for i in 0..AT_ONCE {
                let at = first + comptime!(i * PLANE) + UNIT_POS_X;
                let at = min(at, comptime!(vectors - 1).runtime());
                loaded[i as usize] = weight[(e * vectors + at) as usize];
            }
            #[unroll]
            for i in 0..AT_ONCE {
                let at = first + comptime!(i * PLANE) + UNIT_POS_X;
                if at < vectors {
                    let w = Vector::<f32, N>::cast_from(loaded[i as usize]);
                    products += w * Vector::<f32, N>::cast_from(own[at as usize]);
                }
            }
            first += comptime!(AT_ONCE * PLANE);
        }
        let mut sum = 0.0f32;
        #[unroll]
        for lane in 0..comptime!(LANES as u32) {
            sum += products[lane as usize];
        }
        let sum = plane_sum(sum);
        if UNIT_POS_X == 0u32 {
            scores[e as usize] = sum;
        }
        e += PLANES;
    }
    sync_cube();
    if UNIT_POS_Y == 0u32 {
        choose_in(&mut scores, bias, ids, weights, row, scale, chosen);
    }
}
