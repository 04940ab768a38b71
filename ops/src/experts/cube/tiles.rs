//! Many pairs times the weights of their experts, in tiles of pairs of one expert: by generated kernels where
//! `hopper.rs` has one, else on matrix units, or without them.

mod hopper;
mod matrix;
mod scalar;

use super::arrange::Arrangement;
use crate::OperationError;
use crate::cube::launch::array;
use crate::experts::GroupedProducts;
use crate::linear::packed::cube::{Format, Words};
use ::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// What multiplies the pairs of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Units {
    /// Matrix units, 16-bit floats.
    Matrix,
    /// Each unit of a workgroup by itself, f32.
    Scalar,
}

/// Which rows of x pairs have, and where their products go.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Consecutive pairs that share a row of x.
    pub(super) share: usize,
    /// The column of y of the weight's first row.
    pub(super) column: usize,
}

/// A tile of pairs of one expert, and the rows of its weight that a workgroup multiplies them with.
#[derive(CubeType, Clone, Copy)]
struct Tile {
    expert: u32,
    /// Pairs, up to [`Units::tile`].
    count: u32,
    /// The first row of the weight.
    first_row: u32,
    /// Rows of the weight of an expert.
    rows: u32,
    /// Consecutive pairs that share a row of x.
    share: u32,
    /// The column of y of the weight's first row, and the columns of y.
    column: u32,
    width: u32,
}

impl Units {
    /// The best that the device has.
    pub(super) fn of<R: CubeRuntime, F: FloatElement>(x: &CubeTensor<R>) -> Self {
        match matrix::has_units::<R, F>(x) {
            true => Self::Matrix,
            false => Self::Scalar,
        }
    }

    /// Pairs of a tile, and rows of the weight that a workgroup multiplies them with.
    pub(super) fn tile(self) -> u32 {
        match self {
            Self::Matrix => matrix::TILE,
            Self::Scalar => scalar::TILE,
        }
    }
}

/// The products of rows of x with the rows of their experts, written to columns of y [pairs, n].
///
/// # Errors
/// If a generated kernel cannot be made or launched.
pub(super) fn multiply<R: CubeRuntime + Launches, F: FloatElement>(
    x: &CubeTensor<R>,
    weight: &Words<'_, R>,
    arrangement: &Arrangement<R>,
    y: &CubeTensor<R>,
    place: Place,
    products: &GroupedProducts,
) -> Result<(), OperationError> {
    if hopper::multiply::<R, F>(x, weight, arrangement, y, place, products)? {
        return Ok(());
    }
    let [words, scales, biases] = weight.arrays();
    let (rows, units) = (weight.rows as u32, arrangement.units);
    // SAFETY: tiles that do not exist do nothing; pairs, rows and elements beyond the last are not accessed.
    unsafe {
        tile_kernel::launch_unchecked::<F, R>(
            &x.client,
            CubeCount::Static(rows.div_ceil(units.tile()), arrangement.count as u32, 1),
            CubeDim::new_2d(UNITS / SIDE, SIDE),
            words,
            scales,
            biases,
            array(x),
            array(&arrangement.order),
            array(&arrangement.offsets),
            array(&arrangement.tiles),
            array(y),
            rows,
            place.share as u32,
            place.column as u32,
            y.meta.shape()[1] as u32,
            weight.format,
            units,
        );
    }
    Ok(())
}

/// Units of a workgroup, as a square of this side.
const SIDE: u32 = 16;
const UNITS: u32 = SIDE * SIDE;

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn tile_kernel<F: Float>(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    x: &Array<F>,
    order: &Array<u32>,
    offsets: &Array<u32>,
    tiles: &Array<u32>,
    y: &mut Array<F>,
    rows: u32,
    share: u32,
    column: u32,
    width: u32,
    #[comptime] format: Format,
    #[comptime] units: Units,
) {
    let size = comptime!(units.tile());
    let mut pairs = SharedMemory::<u32>::new(comptime!(size as usize));
    let expert = tiles[(2u32 * CUBE_POS_Y) as usize];
    if expert == u32::MAX {
        terminate!();
    }
    let start = offsets[expert as usize] + tiles[(2u32 * CUBE_POS_Y + 1u32) as usize] * size;
    let count = min(offsets[(expert + 1u32) as usize] - start, size.runtime());
    let tile = Tile {
        expert,
        count,
        first_row: CUBE_POS_X * size,
        rows,
        share,
        column,
        width,
    };
    if UNIT_POS < count {
        pairs[UNIT_POS as usize] = order[(start + UNIT_POS) as usize];
    }
    sync_cube();
    if comptime!(units == Units::Matrix) {
        matrix::multiply::<F>(weight, scales, biases, x, &pairs, y, &tile, format);
    } else {
        scalar::multiply::<F>(weight, scales, biases, x, &pairs, y, &tile, format);
    }
}
