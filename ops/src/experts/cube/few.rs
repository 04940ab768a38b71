//! A few pairs times the weights of their experts, one by one: by generated kernels where `linear/few.rs` has one.

use super::tiles::Place;
use crate::OperationError;
use crate::cube::launch::{array, empty, plane};
use crate::cube::unit::expert_of;
use crate::experts::GroupedProducts;
use crate::linear::few::{self, Pairs, Rows};
use crate::linear::packed::cube::{Format, ROWS, TOGETHER, UNITS, Words, eight, sum_of_row};
use ::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// The products of rows of x with the rows of their experts, written to columns of y [pairs, n].
///
/// # Errors
/// If a generated kernel cannot be made or launched.
pub(super) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    x: &CubeTensor<R>,
    weight: &Words<'_, R>,
    (ids, experts): (&CubeTensor<R>, usize),
    y: &CubeTensor<R>,
    Place { share, column }: Place,
    products: &GroupedProducts,
) -> Result<(), OperationError> {
    let pairs = Pairs::Experts {
        ids,
        experts,
        share,
    };
    if few::multiply::<R, F>(x, Rows::All(weight), pairs, y, column, products)? {
        return Ok(());
    }
    let [words, scales, biases] = weight.arrays();
    let rows = weight.rows as u32;
    // SAFETY: `expert_of` is an expert; units of rows beyond the last read and write nothing.
    unsafe {
        few_kernel::launch_unchecked::<F, R>(
            &x.client,
            CubeCount::Static(rows.div_ceil(ROWS), y.meta.shape()[0] as u32, 1),
            CubeDim::new_2d(UNITS, ROWS),
            words,
            scales,
            biases,
            array(x),
            array(ids),
            array(y),
            rows,
            share as u32,
            column as u32,
            y.meta.shape()[1] as u32,
            experts as u32,
            plane(&x.client) == UNITS,
            weight.format,
        );
    }
    Ok(())
}

/// The products of rows of x with the second half of the rows of their experts, multiplied with silu of those with the
/// first, by a generated kernel → [pairs, `size`]; `None` if there is none.
///
/// # Errors
/// If a generated kernel cannot be made or launched.
pub(super) fn multiply_gated<R: CubeRuntime + Launches, F: FloatElement>(
    x: &CubeTensor<R>,
    weights: &[Words<'_, R>],
    (ids, experts): (&CubeTensor<R>, usize),
    [share, size]: [usize; 2],
    products: &GroupedProducts,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    let rows = match weights {
        [both] => Rows::Gated(both),
        [gates, gated] => Rows::GatedBy([gates, gated]),
        _ => return Ok(None),
    };
    let pairs = Pairs::Experts {
        ids,
        experts,
        share,
    };
    let y = empty(x, [ids.meta.num_elements(), size], F::dtype());
    let multiplied = few::multiply::<R, F>(x, rows, pairs, &y, 0, products)?;
    Ok(multiplied.then_some(y))
}

/// [`UNITS`] units multiply one row of an expert's weight by the row of x of one pair.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn few_kernel<F: Float>(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    x: &Array<F>,
    ids: &Array<i32>,
    y: &mut Array<F>,
    rows: u32,
    share: u32,
    column: u32,
    width: u32,
    experts: u32,
    #[comptime] planes: bool,
    #[comptime] format: Format,
) {
    let row = CUBE_POS_X * ROWS + UNIT_POS_Y;
    let pair = CUBE_POS_Y;
    let columns = comptime!(format.columns);
    let mut sum = 0.0f32;
    if row < rows {
        let of_expert = expert_of(ids, pair, experts) * rows + row;
        let start = pair / share * columns;
        let mut numbers = Array::<f32>::new(comptime!(TOGETHER as usize));
        let mut group = UNIT_POS_X;
        while group < comptime!(columns / TOGETHER) {
            eight(
                weight,
                scales,
                biases,
                of_expert,
                group,
                &mut numbers,
                format,
            );
            #[unroll]
            for lane in 0..TOGETHER {
                let x = f32::cast_from(x[(start + group * TOGETHER + lane) as usize]);
                sum += x * numbers[lane as usize];
            }
            group += UNITS;
        }
    }
    let mut shared = SharedMemory::<f32>::new(comptime!((UNITS * ROWS) as usize));
    let sum = sum_of_row(sum, &mut shared, planes);
    if row < rows && UNIT_POS_X == 0u32 {
        y[(pair * width + column + row) as usize] = F::cast_from(sum);
    }
}
