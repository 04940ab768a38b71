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
mod elements;

pub(crate) use bits::e4m3;
pub(crate) use elements::eight;

use super::super::Storage;
use super::Packed;
use crate::cube::launch::{array, empty, grid, plane, shaped};
use ::cubecl::prelude::*;
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
    pub(crate) storage: Storage,
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
    pub(crate) tensors: &'a [CubeTensor<R>],
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
            Storage::Packed(Packed::Float8 { scales, .. }) => Groups {
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

    /// The one matrix of `rows` rows that the weight is.
    pub(crate) fn of_rows(&self, rows: usize) -> Words<'_, R> {
        let storage = Storage::Packed(self.packed);
        words_of(storage, self.columns, rows, &self.tensors)
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

    /// As [`unpacked`](Self::unpacked): `count` rows from each of two rows on, those of the second below the others.
    pub(crate) fn unpacked_both<F: FloatElement>(
        &self,
        [first, second]: [usize; 2],
        count: usize,
    ) -> CubeTensor<R> {
        let like = &self.tensors[0];
        let half = count * self.columns;
        let panel = empty(like, [Packed::PANEL.max(2 * half)], F::dtype());
        for (from, at) in [(first, 0), (second, half)] {
            let mut out = shaped(panel.clone(), [count, self.columns]);
            out.handle = out.handle.offset_start((at * F::dtype().size()) as u64);
            self.unpack::<F>(None, from, &out);
        }
        shaped(panel, [2 * count, self.columns])
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
