//! Packed weights on CubeCL's runtimes: rows unpacked to floats, and products of a few rows of x that
//! unpack the weight as they read it.
//!
//! Kernels read bytes out of 32-bit words, eight elements at a time: formats have blocks of odd sizes,
//! and not every device loads single bytes.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits` holds every count to what kernels index"
)]

mod bits;
mod blocks;

use super::Packed;
use crate::cube::launch::{array, empty, grid, plane, shaped};
use ::cubecl::prelude::*;
use bits::{byte, e4m3, e8m0, nibble, number, of_two, word};
use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_ir::Dtype;

/// Elements that a unit unpacks at once. The blocks of all formats hold a multiple of it.
const TOGETHER: u32 = 8;
/// Units that share a row of the weight.
const UNITS: u32 = 32;
/// Rows of the weight in a workgroup.
const ROWS: u32 = 8;
/// Units of a workgroup that unpacks.
const UNPACKING: u32 = 256;

/// A packed weight on a device: how it is stored, and its tensors.
pub(crate) struct Weight<R: CubeRuntime> {
    pub(crate) packed: Packed,
    /// K, elements of a row.
    pub(crate) columns: usize,
    pub(crate) tensors: Vec<CubeTensor<R>>,
}

/// What kernels know of the format when they are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Format {
    packed: Packed,
    /// Elements of a row.
    columns: u32,
    /// Bytes of a row, in the first tensor.
    row: u32,
}

/// The sizes of groups with scales in a tensor of their own.
#[derive(Clone, Copy)]
struct Groups {
    /// Bits of an element.
    bits: u32,
    /// Elements of a group in a row.
    group: u32,
    /// Element type of the scales.
    scales: Dtype,
}

impl Format {
    fn groups(&self) -> Groups {
        match self.packed {
            Packed::Affine {
                bits,
                group,
                scales,
            } => Groups {
                bits,
                group,
                scales,
            },
            Packed::Float8 { scales } => Groups {
                bits: 8,
                group: super::SQUARE as u32,
                scales,
            },
            _ => unreachable!("the formats with scales in a tensor of floats"),
        }
    }
}

impl<R: CubeRuntime> Weight<R> {
    fn format(&self) -> Format {
        Format {
            packed: self.packed,
            columns: self.columns as u32,
            row: self.packed.row_bytes(self.columns) as u32,
        }
    }

    /// The buffers of its tensors as words; formats with fewer than three repeat the first.
    fn words(&self) -> [ArrayArg<R>; 3] {
        [0, 1, 2].map(|i| {
            let tensor = self.tensors.get(i).unwrap_or(&self.tensors[0]);
            let words = tensor.meta.num_elements().div_ceil(4);
            // SAFETY: buffers hold whole words, as the operation's inputs are checked to do.
            unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), words) }
        })
    }

    /// Rows `first..first + count` as a contiguous [count, K] tensor of `F`, in memory for a whole
    /// panel: so panels of all weights reuse the same memory.
    pub(crate) fn unpacked<F: FloatElement>(&self, first: usize, count: usize) -> CubeTensor<R> {
        let like = &self.tensors[0];
        let panel = empty(like, [Packed::PANEL.max(count * self.columns)], F::dtype());
        let out = shaped(panel, [count, self.columns]);
        self.unpack::<F>(None, first, &out);
        out
    }

    /// The rows that `ids`, integers of 32 or 64 bits, name, as a [count, K] tensor of `F`.
    pub(crate) fn picked<F: FloatElement>(&self, ids: &CubeTensor<R>) -> CubeTensor<R> {
        let shape = [ids.meta.num_elements(), self.columns];
        let out = empty(&self.tensors[0], shape, F::dtype());
        self.unpack::<F>(Some(ids), 0, &out);
        out
    }

    /// Unpacks the rows that `ids` name or, without ids, the rows from `first` on to `out` [count, K].
    fn unpack<F: FloatElement>(
        &self,
        ids: Option<&CubeTensor<R>>,
        first: usize,
        out: &CubeTensor<R>,
    ) {
        let like = &self.tensors[0];
        let groups = out.meta.num_elements() as u32 / TOGETHER;
        // Words of an id.
        let id = ids.map_or(0, |ids| ids.dtype.size() as u32 / 4);
        let [weight, scales, biases] = self.words();
        // Without ids, any buffer stands for them: it is not read.
        let (named, length) = match ids {
            Some(ids) => (ids, ids.meta.num_elements() * id as usize),
            None => (like, 1),
        };
        // SAFETY: the length is that of the ids, in words; packed weights hold at least one word.
        let ids = unsafe { ArrayArg::from_raw_parts(named.handle.clone(), length) };
        // SAFETY: units beyond the last group do nothing; ids are below the number of rows.
        unsafe {
            unpack_kernel::launch_unchecked::<F, R>(
                &like.client,
                grid(groups.div_ceil(UNPACKING)),
                CubeDim::new_1d(UNPACKING),
                weight,
                scales,
                biases,
                ids,
                array(out),
                groups,
                first as u32,
                id,
                self.format(),
            );
        }
    }

    /// The products of the `m` rows of x, [m, K] contiguous, with the first `rows` rows of the weight,
    /// written to columns `column..column + rows` of y, [m, n] contiguous.
    pub(crate) fn times_few<F: FloatElement>(
        &self,
        x: &CubeTensor<R>,
        y: &CubeTensor<R>,
        rows: usize,
        column: usize,
    ) {
        let [weight, scales, biases] = self.words();
        // SAFETY: units of rows beyond the last read and write nothing.
        unsafe {
            few_rows_kernel::launch_unchecked::<F, R>(
                &x.client,
                grid((rows as u32).div_ceil(ROWS)),
                CubeDim::new_2d(UNITS, ROWS),
                weight,
                scales,
                biases,
                array(x),
                array(y),
                rows as u32,
                column as u32,
                y.shape()[1] as u32,
                x.shape()[0] as u32,
                plane(&x.client) == UNITS,
                self.format(),
            );
        }
    }
}

/// Elements `8 * group ..` of a row of the weight.
#[cube]
fn eight(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let packed = comptime!(format.packed);
    let start = row * comptime!(format.row);
    let groups = comptime!(format.packed.block().0 as u32 / TOGETHER);
    let at = start + group / groups * comptime!(format.packed.block().1 as u32);
    let within = group % groups;
    if comptime!(packed == Packed::Q4_0) {
        blocks::q4(weight, at, within, out, false);
    } else if comptime!(packed == Packed::Q4_1) {
        blocks::q4(weight, at, within, out, true);
    } else if comptime!(packed == Packed::Q5_0) {
        blocks::q5(weight, at, within, out, false);
    } else if comptime!(packed == Packed::Q5_1) {
        blocks::q5(weight, at, within, out, true);
    } else if comptime!(packed == Packed::Q8_0) {
        blocks::q8(weight, at, within, out);
    } else if comptime!(packed == Packed::Q2K) {
        blocks::q2k(weight, at, within, out);
    } else if comptime!(packed == Packed::Q3K) {
        blocks::q3k(weight, at, within, out);
    } else if comptime!(packed == Packed::Q4K) {
        blocks::q45k(weight, at, within, out, false);
    } else if comptime!(packed == Packed::Q5K) {
        blocks::q45k(weight, at, within, out, true);
    } else if comptime!(packed == Packed::Q6K) {
        blocks::q6k(weight, at, within, out);
    } else if comptime!(packed == Packed::Mxfp4) {
        blocks::mxfp4(weight, at, within, out);
    } else if comptime!(packed == Packed::Microscaled) {
        let scale = e8m0(byte(
            scales,
            row * comptime!(format.columns / 32) + group / 4u32,
        ));
        blocks::e2m1s(word(weight, start + group * 4u32), scale, out);
    } else if comptime!(matches!(packed, Packed::Float8 { .. })) {
        float8(weight, scales, row, group, out, format);
    } else {
        affine(weight, scales, biases, row, group, out, format);
    }
}

/// Floats of 8 bits, with a scale for each square of 128 rows and columns.
#[cube]
fn float8(
    weight: &Array<u32>,
    scales: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let across = comptime!(format.columns.div_ceil(128));
    let at = row / 128u32 * across + group / 16u32;
    let scale = number(scales, at, comptime!(format.groups().scales));
    let low = word(weight, row * comptime!(format.row) + group * TOGETHER);
    let high = word(
        weight,
        row * comptime!(format.row) + group * TOGETHER + 4u32,
    );
    #[unroll]
    for i in 0..8u32 {
        out[i as usize] = e4m3(of_two(low, high, i)) * scale;
    }
}

/// Integers of 2, 4 or 8 bits, each group of elements with a scale and a bias.
#[cube]
fn affine(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let bits = comptime!(format.groups().bits);
    let of_group = comptime!(format.groups().group);
    let at = row * comptime!(format.columns / of_group) + group * TOGETHER / of_group;
    let scale = number(scales, at, comptime!(format.groups().scales));
    let bias = number(biases, at, comptime!(format.groups().scales));
    let start = row * comptime!(format.row) + group * bits;
    let low = word(weight, start);
    #[unroll]
    for i in 0..8u32 {
        let quant = if comptime!(bits == 2) {
            (low >> comptime!(2 * i)) & 3u32
        } else if comptime!(bits == 4) {
            nibble(low, i)
        } else {
            of_two(low, word(weight, start + 4u32), i)
        };
        out[i as usize] = f32::cast_from(quant) * scale + bias;
    }
}

/// Each unit unpacks eight elements.
#[cube(launch_unchecked)]
fn unpack_kernel<F: Float>(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    ids: &Array<u32>,
    out: &mut Array<F>,
    groups: u32,
    first: u32,
    #[comptime] id: u32,
    #[comptime] format: Format,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNPACKING + UNIT_POS_X;
    let of_row = comptime!(format.columns / TOGETHER);
    if at < groups {
        let mut row = at / of_row + first;
        if comptime!(id > 0) {
            // The low word of an id.
            row = ids[(at / of_row * id) as usize];
        }
        let mut numbers = Array::<f32>::new(comptime!(TOGETHER as usize));
        eight(
            weight,
            scales,
            biases,
            row,
            at % of_row,
            &mut numbers,
            format,
        );
        #[unroll]
        for i in 0..TOGETHER {
            out[(at * TOGETHER + i) as usize] = F::cast_from(numbers[i as usize]);
        }
    }
}

/// [`UNITS`] units multiply one row of the weight by all rows of x.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn few_rows_kernel<F: Float>(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    x: &Array<F>,
    y: &mut Array<F>,
    rows: u32,
    column: u32,
    width: u32,
    #[comptime] m: u32,
    #[comptime] planes: bool,
    #[comptime] format: Format,
) {
    let row = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * ROWS + UNIT_POS_Y;
    let columns = comptime!(format.columns);
    let mut sums = Array::<f32>::new(comptime!(m as usize));
    #[unroll]
    for i in 0..m {
        sums[i as usize] = 0.0f32;
    }
    if row < rows {
        let mut numbers = Array::<f32>::new(comptime!(TOGETHER as usize));
        let mut group = UNIT_POS_X;
        while group < comptime!(columns / TOGETHER) {
            eight(weight, scales, biases, row, group, &mut numbers, format);
            #[unroll]
            for i in 0..m {
                let start = comptime!(i * columns) + group * TOGETHER;
                #[unroll]
                for lane in 0..TOGETHER {
                    let x = f32::cast_from(x[(start + lane) as usize]);
                    sums[i as usize] += x * numbers[lane as usize];
                }
            }
            group += UNITS;
        }
    }
    let mut shared = SharedMemory::<f32>::new(comptime!((UNITS * ROWS) as usize));
    #[unroll]
    for i in 0..m {
        let sum = sum_of_row(sums[i as usize], &mut shared, planes);
        if row < rows && UNIT_POS_X == 0u32 {
            y[(i * width + column + row) as usize] = F::cast_from(sum);
        }
    }
}

/// Sum over the units of a row of the weight, in a fixed order; the first of them gets it.
#[cube]
fn sum_of_row(value: f32, shared: &mut SharedMemory<f32>, #[comptime] planes: bool) -> f32 {
    if comptime!(planes) {
        plane_sum(value)
    } else {
        let start = UNIT_POS_Y * UNITS;
        shared[(start + UNIT_POS_X) as usize] = value;
        sync_cube();
        let mut reach = comptime!(UNITS / 2).runtime();
        while reach > 0u32 {
            if UNIT_POS_X < reach {
                let other = shared[(start + UNIT_POS_X + reach) as usize];
                shared[(start + UNIT_POS_X) as usize] += other;
            }
            sync_cube();
            reach /= 2u32;
        }
        let sum = shared[start as usize];
        sync_cube();
        sum
    }
}
