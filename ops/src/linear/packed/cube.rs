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

use super::super::Storage;
use super::Packed;
use crate::cube::launch::{array, empty, grid, plane, shaped};
use ::cubecl::prelude::*;
use bits::{byte, e4m3, e8m0, float, nibble, number, of_two, word};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_ir::Dtype;

/// Elements that a unit unpacks at once. The blocks of all formats hold a multiple of it.
pub(crate) const TOGETHER: u32 = 8;
/// Units that share a row of the weight.
pub(crate) const UNITS: u32 = 32;
/// Rows of the weight in a workgroup.
pub(crate) const ROWS: u32 = 8;
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
pub(crate) struct Format {
    storage: Storage,
    /// Elements of a row.
    pub(crate) columns: u32,
    /// Bytes of a row, in the first tensor.
    row: u32,
    /// Rows of a matrix, of which the weight is one or several, one below another.
    rows: u32,
}

/// The matrices of all experts as the words of their buffers.
pub(crate) struct Words<'a, R: CubeRuntime> {
    pub(crate) format: Format,
    /// Rows of an expert.
    pub(crate) rows: usize,
    tensors: &'a [CubeTensor<R>],
}

impl<R: CubeRuntime> Words<'_, R> {
    /// The buffers; formats with fewer than three repeat the first.
    pub(crate) fn arrays(&self) -> [ArrayArg<R>; 3] {
        words(self.tensors)
    }
}

/// Matrices of `rows` rows of `columns` elements, one for each expert.
pub(crate) fn words_of<R: CubeRuntime>(
    storage: Storage,
    columns: usize,
    rows: usize,
    tensors: &[CubeTensor<R>],
) -> Words<'_, R> {
    let row = match storage {
        Storage::Dense(dtype) => columns * dtype.size(),
        Storage::Packed(packed) => packed.row_bytes(columns),
    };
    let format = Format {
        storage,
        columns: columns as u32,
        row: row as u32,
        rows: rows as u32,
    };
    Words {
        format,
        rows,
        tensors,
    }
}

/// The buffers of tensors as words; of fewer than three the first is repeated.
fn words<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> [ArrayArg<R>; 3] {
    [0, 1, 2].map(|i| {
        let tensor = tensors.get(i).unwrap_or(&tensors[0]);
        let bytes = tensor.meta.num_elements() * tensor.dtype.size();
        // SAFETY: buffers hold whole words, as the operation's inputs are checked to do.
        unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), bytes.div_ceil(4)) }
    })
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
    fn packed(&self) -> Packed {
        match self.storage {
            Storage::Packed(packed) => packed,
            Storage::Dense(_) => unreachable!("packed weights"),
        }
    }

    /// Bytes of an element that is stored as it is.
    fn dense_size(&self) -> u32 {
        match self.storage {
            Storage::Dense(dtype) => dtype.size() as u32,
            Storage::Packed(_) => unreachable!("dense weights"),
        }
    }

    fn is_bf16(&self) -> bool {
        self.storage == Storage::Dense(DType::BF16)
    }

    fn groups(&self) -> Groups {
        match self.storage {
            Storage::Packed(Packed::Affine {
                bits,
                group,
                scales,
            }) => Groups {
                bits,
                group,
                scales,
            },
            Storage::Packed(Packed::Float8 { scales }) => Groups {
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
            storage: Storage::Packed(self.packed),
            columns: self.columns as u32,
            row: self.packed.row_bytes(self.columns) as u32,
            rows: 0,
        }
    }

    fn words(&self) -> [ArrayArg<R>; 3] {
        words(&self.tensors)
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
pub(crate) fn eight(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    if comptime!(matches!(format.storage, Storage::Dense(_))) {
        dense(weight, row, group, out, format);
    } else {
        packed(weight, scales, biases, row, group, out, format);
    }
}

/// Floats that are stored as they are.
#[cube]
fn dense(
    weight: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let start = row * comptime!(format.row / 4) + group * comptime!(format.dense_size() * 2);
    if comptime!(format.dense_size() == 4) {
        #[unroll]
        for i in 0..8u32 {
            out[i as usize] = f32::reinterpret(weight[(start + i) as usize]);
        }
    } else {
        #[unroll]
        for i in 0..4u32 {
            let two = weight[(start + i) as usize];
            if comptime!(format.is_bf16()) {
                out[comptime!(2 * i as usize)] = f32::reinterpret(two << 16u32);
                out[comptime!(2 * i as usize + 1)] = f32::reinterpret(two & 0xffff_0000u32);
            } else {
                out[comptime!(2 * i as usize)] = float(two & 0xffffu32, 10u32, 5u32);
                out[comptime!(2 * i as usize + 1)] = float(two >> 16u32, 10u32, 5u32);
            }
        }
    }
}

#[cube]
fn packed(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let packed = comptime!(format.packed());
    let start = row * comptime!(format.row);
    let groups = comptime!(packed.block().0 as u32 / TOGETHER);
    let at = start + group / groups * comptime!(packed.block().1 as u32);
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
    let mut square = row / 128u32;
    if comptime!(format.rows > 0) {
        // Each matrix begins with squares of its own.
        let down = comptime!(format.rows.div_ceil(128));
        square = row / comptime!(format.rows) * down + row % comptime!(format.rows) / 128u32;
    }
    let at = square * across + group / 16u32;
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
pub(crate) fn sum_of_row(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] planes: bool,
) -> f32 {
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
