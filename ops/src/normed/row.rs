//! The norm of a row by a workgroup, as a part of kernels.

use super::cube::{Given, Kept};
use crate::cube::launch::plane;
use crate::cube::unit::sum_of_units;
use ::cubecl::prelude::*;
use burn_cubecl::CubeRuntime;

/// What kernels know of a row when they are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowShape {
    /// Vectors of a row, and elements of a vector.
    pub(crate) vectors: u32,
    lanes: u32,
    /// Units of the workgroup.
    units: u32,
    /// Rows that are added to each row, and whether they have factors.
    terms: u32,
    weighted: bool,
    /// Whether sums and norms are kept.
    sums: bool,
    norms: bool,
    plane: u32,
}

impl RowShape {
    /// That of rows in vectors of so many elements, for workgroups of so many units.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`limits` holds every count to what kernels index"
    )]
    pub(crate) fn of<R: CubeRuntime>(
        given: &Given<R>,
        kept: &Kept<R>,
        lanes: usize,
        units: u32,
    ) -> Self {
        Self {
            vectors: (given.columns() / lanes) as u32,
            lanes: lanes as u32,
            units,
            terms: given.terms() as u32,
            weighted: given.factors.is_some(),
            sums: kept.sums.is_some(),
            norms: kept.norms.is_some(),
            plane: plane(&given.x.client),
        }
    }
}

/// Puts the norm of row number `row` into shared memory, from vector `to` on; all units of a workgroup call this, and
/// meet before they read it. One workgroup `keeps` what is to be kept. `squares` has room for a number of each unit.
#[cube]
// Outer conditions are decided when the kernel is compiled.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
pub(crate) fn norm_of_row<F: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    added: &Array<Vector<F, N>>,
    factors: &Array<f32>,
    norm: &Array<Vector<f32, N>>,
    sums: &mut Array<Vector<f32, N>>,
    norms: &mut Array<Vector<F, N>>,
    rows: &mut SharedMemory<Vector<F, N>>,
    squares: &mut SharedMemory<f32>,
    row: u32,
    to: u32,
    keeps: bool,
    epsilon: f32,
    #[comptime] shape: RowShape,
) {
    let (vectors, units) = comptime!((shape.vectors, shape.units));
    let start = row * vectors;
    let own = comptime!(vectors.div_ceil(units));
    let mut values = Array::<Vector<f32, N>>::new(comptime!(own as usize));
    let mut together = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..own {
        let at = comptime!(i * units) + UNIT_POS;
        if at < vectors {
            let mut more = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for term in 0..comptime!(shape.terms) {
                let number = row * comptime!(shape.terms) + term;
                let one = added[(number * vectors + at) as usize];
                let mut one = Vector::<f32, N>::cast_from(one);
                if comptime!(shape.weighted) {
                    one *= Vector::<f32, N>::new(factors[number as usize]);
                }
                more += one;
            }
            let value = x[(start + at) as usize] + more;
            values[i as usize] = value;
            together += value * value;
            if comptime!(shape.sums) {
                if keeps {
                    sums[(start + at) as usize] = value;
                }
            }
        }
    }
    let mut square = 0.0f32;
    #[unroll]
    for lane in 0..comptime!(shape.lanes) {
        square += together[lane as usize];
    }
    let square = sum_of_units(square, squares, units, comptime!(shape.plane));
    let length = comptime!((vectors * shape.lanes) as f32).runtime();
    let factor = (square / length + epsilon).inverse_sqrt();
    let factor = Vector::<f32, N>::new(factor);
    #[unroll]
    for i in 0..own {
        let at = comptime!(i * units) + UNIT_POS;
        if at < vectors {
            let value = values[i as usize] * factor * norm[at as usize];
            let value = Vector::<F, N>::cast_from(value);
            rows[(to + at) as usize] = value;
            if comptime!(shape.norms) {
                if keeps {
                    norms[(start + at) as usize] = value;
                }
            }
        }
    }
}
