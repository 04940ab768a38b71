//! Rows that become floats of 8 bits, on CubeCL's runtimes.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::hopper::{self, Product};
use super::{GROUP, LEAST, MOST};
use crate::OperationError;
use crate::cube::launch::{array, empty, grid, plane};
use crate::experts::GroupedProducts;
use crate::linear::Storage;
use crate::linear::packed::cube::e4m3;
use ::cubecl::prelude::*;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// Units of a workgroup, and those that share a group of elements, each with so many of them.
const UNITS: u32 = 256;
const OF_GROUP: u32 = 32;
const OWN: u32 = GROUP as u32 / OF_GROUP;

/// Rows of floats of 8 bits.
pub(crate) struct Quantised<R: CubeRuntime> {
    /// [rows, K], in words of four.
    pub(crate) words: CubeTensor<R>,
    /// Their factors in f32, [K / GROUP, rows].
    pub(crate) factors: CubeTensor<R>,
}

/// Which rows of x are wanted: number `order[i] / share` as row i.
pub(crate) struct Picked<'a, R: CubeRuntime> {
    pub(crate) order: &'a CubeTensor<R>,
    pub(crate) share: usize,
}

/// Contiguous rows [m, K] in the forms that weights want them in, each made when it is wanted first.
pub(crate) struct Forms<'a, R: CubeRuntime> {
    x: &'a CubeTensor<R>,
    quantised: Option<Quantised<R>>,
    rounded: Option<CubeTensor<R>>,
}

impl<'a, R: CubeRuntime + Launches> Forms<'a, R> {
    pub(crate) fn of(x: &'a CubeTensor<R>) -> Self {
        Self {
            x,
            quantised: None,
            rounded: None,
        }
    }

    /// Writes products by the generated kernel for quantised rows, if it takes them; returns whether it did.
    ///
    /// # Errors
    /// If the kernel cannot be made or launched.
    pub(crate) fn multiply<F: FloatElement>(
        &mut self,
        product: &Product<'_, R>,
        y: &CubeTensor<R>,
        products: &GroupedProducts,
    ) -> Result<bool, OperationError> {
        if !hopper::takes::<R, F>(product, products)? {
            return Ok(false);
        }
        let x = self
            .quantised
            .get_or_insert_with(|| quantised::<R, F>(self.x, None));
        hopper::multiply::<R, F>(x, product, y, products)
    }

    /// The rows as a weight that is stored like this wants them.
    pub(crate) fn for_weight<F: FloatElement>(&mut self, storage: Storage) -> &CubeTensor<R> {
        match storage.quantises() {
            true => self.rounded.get_or_insert_with(|| rounded::<R, F>(self.x)),
            false => self.x,
        }
    }
}

/// Contiguous rows [.., K], of which K is a multiple of [`GROUP`], or those that are picked, as floats of 8 bits.
pub(crate) fn quantised<R: CubeRuntime, F: FloatElement>(
    x: &CubeTensor<R>,
    picked: Option<&Picked<'_, R>>,
) -> Quantised<R> {
    let k = *x.meta.shape().last().expect("rows");
    let rows = match picked {
        Some(picked) => picked.order.meta.num_elements(),
        None => x.meta.num_elements() / k,
    };
    let groups = k / GROUP;
    let words = empty(x, [rows, k / 4], DType::U32);
    let factors = empty(x, [groups, rows], DType::F32);
    let order = picked.map_or(&words, |picked| picked.order);
    // SAFETY: a unit has a word of its own, units beyond the last group have none; `order` names rows of x.
    unsafe {
        quantise_kernel::launch_unchecked::<F, R>(
            &x.client,
            workgroups(rows, groups),
            CubeDim::new_1d(UNITS),
            OWN as usize,
            array(x),
            array(order),
            array(&words),
            array(&factors),
            rows as u32,
            picked.map_or(1, |picked| picked.share as u32),
            groups as u32,
            plane(&x.client),
            picked.is_some(),
        );
    }
    Quantised { words, factors }
}

/// Contiguous rows [m, K] with the elements that they have as floats of 8 bits.
pub(crate) fn rounded<R: CubeRuntime, F: FloatElement>(x: &CubeTensor<R>) -> CubeTensor<R> {
    let (rows, k) = (x.meta.shape()[0], x.meta.shape()[1]);
    let y = empty(x, [rows, k], F::dtype());
    let groups = k.div_ceil(GROUP);
    // SAFETY: each element is written once, by the unit that reads it; those beyond the last row are not accessed.
    unsafe {
        round_kernel::launch_unchecked::<F, R>(
            &x.client,
            workgroups(rows, groups),
            CubeDim::new_1d(UNITS),
            array(x),
            array(&y),
            rows as u32,
            k as u32,
            groups as u32,
            plane(&x.client),
        );
    }
    y
}

fn workgroups(rows: usize, groups: usize) -> CubeCount {
    grid((rows * groups).div_ceil((UNITS / OF_GROUP) as usize) as u32)
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn quantise_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    order: &Array<u32>,
    words: &mut Array<u32>,
    factors: &mut Array<f32>,
    rows: u32,
    share: u32,
    #[comptime] groups: u32,
    #[comptime] plane: u32,
    #[comptime] picked: bool,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    let (group, unit) = (at / OF_GROUP, at % OF_GROUP);
    let (row, number) = (group / groups, group % groups);
    let exists = row < rows;
    let mut from = row;
    if picked && exists {
        from = order[row as usize] / share;
    }
    let mut values = Vector::<f32, N>::new(0.0f32);
    if exists {
        let vectors = comptime!(groups * OF_GROUP);
        let first = from * vectors + number * OF_GROUP;
        values = Vector::<f32, N>::cast_from(x[(first + unit) as usize]);
    }
    let mut bits = 0u32;
    #[unroll]
    for i in 0..OWN {
        bits = max(bits, magnitude(values[i as usize]));
    }
    let exponent = exponent(largest(bits, plane));
    if exists {
        let inverse = f32::reinterpret((254u32 - exponent) << 23u32);
        let mut word = 0u32;
        #[unroll]
        for i in 0..OWN {
            word |= code(values[i as usize] * inverse) << comptime!(8 * i);
        }
        words[at as usize] = word;
        if unit == 0u32 {
            factors[(number * rows + row) as usize] = factor(exponent);
        }
    }
}

#[cube(launch_unchecked)]
fn round_kernel<F: Float>(
    x: &Array<F>,
    y: &mut Array<F>,
    rows: u32,
    #[comptime] columns: u32,
    #[comptime] groups: u32,
    #[comptime] plane: u32,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    let (group, unit) = (at / OF_GROUP, at % OF_GROUP);
    let (row, number) = (group / groups, group % groups);
    let first = number * comptime!(GROUP as u32) + unit;
    let mut values = Array::<f32>::new(comptime!(OWN as usize));
    let mut bits = 0u32;
    #[unroll]
    for i in 0..OWN {
        let column = first + comptime!(i * OF_GROUP);
        let mut value = 0.0f32;
        if row < rows && column < columns {
            value = f32::cast_from(x[(row * columns + column) as usize]);
        }
        values[i as usize] = value;
        bits = max(bits, magnitude(value));
    }
    let exponent = exponent(largest(bits, plane));
    let factor = factor(exponent);
    let inverse = f32::reinterpret((254u32 - exponent) << 23u32);
    #[unroll]
    for i in 0..OWN {
        let column = first + comptime!(i * OF_GROUP);
        if row < rows && column < columns {
            let rounded = e4m3(code(values[i as usize] * inverse)) * factor;
            y[(row * columns + column) as usize] = F::cast_from(rounded);
        }
    }
}

/// The bits of a number without its sign: larger for larger numbers, and largest for NaN.
#[cube]
fn magnitude(x: f32) -> u32 {
    u32::reinterpret(x) & 0x7fff_ffffu32
}

/// The largest number that a unit of the group has. All units call this.
#[cube]
fn largest(own: u32, #[comptime] plane: u32) -> u32 {
    if comptime!(plane == OF_GROUP) {
        plane_max(own)
    } else {
        let mut shared = SharedMemory::<u32>::new(comptime!(UNITS as usize));
        shared[UNIT_POS as usize] = own;
        sync_cube();
        let first = UNIT_POS / OF_GROUP * OF_GROUP;
        let mut largest = 0u32;
        for i in 0..OF_GROUP {
            largest = max(largest, shared[(first + i) as usize]);
        }
        largest
    }
}

/// The biased exponent of a group's factor, of whose largest element these are the bits: 255 if it is not finite.
#[cube]
fn exponent(largest: u32) -> u32 {
    let mut below = 8u32;
    if (largest & 0x7f_ffffu32) > MOST {
        below = 7u32;
    }
    let own = largest >> 23u32;
    let mut exponent = LEAST.runtime();
    if own > below {
        exponent = max(own - below, exponent);
    }
    if own == 255u32 {
        exponent = 255u32.runtime();
    }
    exponent
}

/// The factor with this exponent.
#[cube]
fn factor(exponent: u32) -> f32 {
    let mut bits = exponent << 23u32;
    if exponent == 255u32 {
        bits = 0x7fc0_0000u32.runtime();
    }
    f32::reinterpret(bits)
}

/// The bits of the nearest e4m3, of equally near ones of that with an even mantissa. Magnitudes are at most 448; others
/// become anything but NaN.
#[cube]
fn code(x: f32) -> u32 {
    let sign = (u32::reinterpret(x) >> 31u32) << 7u32;
    let bits = magnitude(x);
    let even = (bits >> 20u32) & 1u32;
    let mut rest = ((bits + 0x7_ffffu32 + even) >> 20u32) - comptime!((127 - 7) << 3);
    // Whole steps of the smallest numbers: 2^-9.
    if bits < comptime!((127 - 6) << 23) {
        let steps = f32::reinterpret(bits) * 512.0f32;
        rest = u32::cast_from(steps);
        let beyond = steps - f32::cast_from(rest);
        if beyond > 0.5f32 || (beyond == 0.5f32 && rest % 2u32 == 1u32) {
            rest += 1u32;
        }
    }
    sign | min(rest, 126u32)
}
