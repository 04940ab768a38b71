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
/// Words that a unit copies: 16 bytes.
const WORDS: usize = 4;
/// Groups that units quantise one after another, whose elements they load together.
const AT_ONCE: u32 = 4;

/// Rows of floats of 8 bits.
pub(crate) struct Quantised<R: CubeRuntime> {
    /// [rows, K], in words of four.
    pub(crate) words: CubeTensor<R>,
    /// Their factors in f32, [K / GROUP, rows].
    pub(crate) factors: CubeTensor<R>,
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
            .get_or_insert_with(|| quantised::<R, F>(self.x));
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

/// Contiguous rows [.., K], of which K is a multiple of [`GROUP`], as floats of 8 bits.
pub(crate) fn quantised<R: CubeRuntime, F: FloatElement>(x: &CubeTensor<R>) -> Quantised<R> {
    let k = *x.meta.shape().last().expect("rows");
    let (rows, groups) = (x.meta.num_elements() / k, k / GROUP);
    let words = empty(x, [rows, k / 4], DType::U32);
    let factors = empty(x, [groups, rows], DType::F32);
    // SAFETY: a unit has words of its own, units beyond the last group have none.
    unsafe {
        quantise_kernel::launch_unchecked::<F, R>(
            &x.client,
            workgroups((rows * groups).div_ceil(AT_ONCE as usize)),
            CubeDim::new_1d(UNITS),
            OWN as usize,
            array(x),
            array(&words),
            array(&factors),
            rows as u32,
            groups as u32,
            plane(&x.client),
        );
    }
    Quantised { words, factors }
}

/// Row number `order[i] / share` of x as row i, for all of the order.
pub(crate) fn picked<R: CubeRuntime>(
    x: &Quantised<R>,
    order: &CubeTensor<R>,
    share: usize,
) -> Quantised<R> {
    let rows = order.meta.num_elements();
    let (width, groups) = (x.words.meta.shape()[1], x.factors.meta.shape()[0]);
    let words = empty(order, [rows, width], DType::U32);
    let factors = empty(order, [groups, rows], DType::F32);
    let vectors = width / WORDS;
    // SAFETY: each vector and each factor is written once; the order names rows of x.
    unsafe {
        pick_kernel::launch_unchecked::<R>(
            &order.client,
            grid((rows * vectors).div_ceil(UNITS as usize) as u32),
            CubeDim::new_1d(UNITS),
            WORDS,
            array(&x.words),
            array(&x.factors),
            array(order),
            array(&words),
            array(&factors),
            rows as u32,
            share as u32,
            x.factors.meta.shape()[1] as u32,
            vectors as u32,
            groups as u32,
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
            workgroups(rows * groups),
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

/// Workgroups of which units share so many groups.
fn workgroups(groups: usize) -> CubeCount {
    grid(groups.div_ceil((UNITS / OF_GROUP) as usize) as u32)
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn quantise_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    words: &mut Array<u32>,
    factors: &mut Array<f32>,
    rows: u32,
    #[comptime] groups: u32,
    #[comptime] plane: u32,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    let (first, unit) = (at / OF_GROUP * AT_ONCE, at % OF_GROUP);
    let all = rows * groups;
    let mut values = Array::<Vector<F, N>>::new(comptime!(AT_ONCE as usize));
    #[unroll]
    for g in 0..AT_ONCE {
        let group = first + g;
        if group < all {
            values[g as usize] = x[(group * OF_GROUP + unit) as usize];
        }
    }
    #[unroll]
    for g in 0..AT_ONCE {
        let group = first + g;
        let own = Vector::<f32, N>::cast_from(values[g as usize]);
        let mut bits = 0u32;
        #[unroll]
        for i in 0..OWN {
            bits = max(bits, magnitude(own[i as usize]));
        }
        let exponent = exponent(largest(bits, plane));
        if group < all {
            let inverse = f32::reinterpret((254u32 - exponent) << 23u32);
            let mut word = 0u32;
            #[unroll]
            for i in 0..OWN {
                word |= code(own[i as usize] * inverse) << comptime!(8 * i);
            }
            words[(group * OF_GROUP + unit) as usize] = word;
            if unit == 0u32 {
                factors[(group % groups * rows + group / groups) as usize] = factor(exponent);
            }
        }
    }
}

/// A unit copies a vector of words; those of a row that have as many numbers as groups copy their factors too.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn pick_kernel<N: Size>(
    from_words: &Array<Vector<u32, N>>,
    from_factors: &Array<f32>,
    order: &Array<u32>,
    words: &mut Array<Vector<u32, N>>,
    factors: &mut Array<f32>,
    rows: u32,
    share: u32,
    from_rows: u32,
    #[comptime] vectors: u32,
    #[comptime] groups: u32,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    let (row, number) = (at / vectors, at % vectors);
    if row < rows {
        let from = order[row as usize] / share;
        words[at as usize] = from_words[(from * vectors + number) as usize];
        if number < groups {
            let factor = from_factors[(number * from_rows + from) as usize];
            factors[(number * rows + row) as usize] = factor;
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
        // Its memory may be written for another group next.
        sync_cube();
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
    if bits < comptime!((127 - 6) << 23) {
        // The last bit of 2^14 counts as much as that of the smallest numbers, 2^-9.
        rest = u32::reinterpret(f32::reinterpret(bits) + 16384.0f32) - comptime!((127 + 14) << 23);
    }
    sign | min(rest, 126u32)
}
