//! Rows of weights as f32, whatever they are stored in, and products with them on the host.
//!
//! Sums are f32. A product of a few rows unpacks the weight in registers as it reads it, once; one of
//! many unpacks panels of the weight that fit the cache of a core. No sum is split between threads, and
//! panels do not depend on their number, so neither do results.

use super::packed::{
    Affine, Float8, Microscaled, Mxfp4, Packed, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K,
    Q8_0, widened,
};
use super::storage::Storage;
use burn::tensor::DType;
use butterfly_ir::Dtype;
use half::{bf16, f16};
use rayon::prelude::*;
use std::marker::PhantomData;

/// A block of a format whose rows are sequences of blocks.
pub(crate) trait Block {
    /// Elements of a block.
    const ELEMENTS: usize;
    /// Bytes of a block.
    const BYTES: usize;

    /// Unpacks a block of [`BYTES`](Self::BYTES) bytes into as many numbers as it has elements.
    fn unpack(block: &[u8], out: &mut [f32]);
}

/// A weight whose rows are unpacked in spans of a fixed number of elements.
pub(crate) trait Source: Sync {
    /// Elements of a span, at most [`LONGEST`].
    const SPAN: usize;

    /// Unpacks span `span` of row `row` into `out`, which has room for just one.
    fn unpack(&self, row: usize, span: usize, out: &mut [f32]);
}

/// The longest span.
const LONGEST: usize = 256;

/// Floats in a tensor of their own, such as scales.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) dtype: Dtype,
}

impl Numbers<'_> {
    /// Number `i` as f32.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> f32 {
        let two = || [self.bytes[2 * i], self.bytes[2 * i + 1]];
        match self.dtype {
            Dtype::F16 => f16::from_le_bytes(two()).to_f32(),
            Dtype::Bf16 => bf16::from_le_bytes(two()).to_f32(),
            Dtype::F32 => {
                let b = &self.bytes[4 * i..][..4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
        }
    }
}

/// Rows that are sequences of blocks.
struct Blocks<'a, B> {
    bytes: &'a [u8],
    row_bytes: usize,
    block: PhantomData<B>,
}

impl<B: Block + Sync> Source for Blocks<'_, B> {
    const SPAN: usize = B::ELEMENTS;

    #[inline(always)]
    fn unpack(&self, row: usize, span: usize, out: &mut [f32]) {
        let block = &self.bytes[row * self.row_bytes + span * B::BYTES..][..B::BYTES];
        B::unpack(block, &mut out[..B::ELEMENTS]);
    }
}

/// Rows of floats.
struct Floats<'a, const BYTES: usize> {
    numbers: Numbers<'a>,
    columns: usize,
}

impl<const BYTES: usize> Source for Floats<'_, BYTES> {
    const SPAN: usize = 32;

    #[inline(always)]
    fn unpack(&self, row: usize, span: usize, out: &mut [f32]) {
        let first = row * self.columns + span * Self::SPAN;
        let bytes = &self.numbers.bytes[first * BYTES..][..Self::SPAN * BYTES];
        let numbers = out.iter_mut().zip(bytes.chunks_exact(BYTES));
        match self.numbers.dtype {
            Dtype::F32 => {
                for (out, b) in numbers {
                    *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Dtype::F16 => {
                for (out, b) in numbers {
                    *out = widened(u16::from_le_bytes([b[0], b[1]]));
                }
            }
            Dtype::Bf16 => {
                for (out, b) in numbers {
                    *out = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                }
            }
        }
    }
}

/// A weight matrix [N, K] on the host.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    storage: Storage,
    rows: usize,
    columns: usize,
    tensors: [&'a [u8]; 3],
}

impl<'a> Rows<'a> {
    /// A weight of `rows` rows of `columns` elements in the bytes of its tensors.
    ///
    /// # Errors
    /// If a tensor has another length, or there is another number of them.
    pub fn new(
        storage: Storage,
        [rows, columns]: [usize; 2],
        tensors: &[&'a [u8]],
    ) -> Result<Self, String> {
        let sizes = match storage {
            Storage::Dense(dtype) => {
                vec![rows.saturating_mul(columns).saturating_mul(dtype.size())]
            }
            Storage::Packed(packed) => packed.sizes(rows, columns)?,
        };
        let given: Vec<usize> = tensors.iter().map(|bytes| bytes.len()).collect();
        if given != sizes {
            return Err(format!("tensors of {given:?} bytes, expected {sizes:?}"));
        }
        let tensor = |i: usize| tensors.get(i).copied().unwrap_or_default();
        Ok(Self {
            storage,
            rows,
            columns,
            tensors: [tensor(0), tensor(1), tensor(2)],
        })
    }

    /// Row `row`, as f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not K long.
    pub fn unpack(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns);
        self.run(Unpack { row, out });
    }

    /// Calls a visitor with the source of the rows.
    fn run<V: Visitor>(&self, visitor: V) {
        let [bytes, second, third] = self.tensors;
        let columns = self.columns;
        let numbers = |bytes: &'a [u8], dtype: Dtype| Numbers { bytes, dtype };
        let packed = match self.storage {
            Storage::Dense(dtype) => {
                let dtype = match dtype {
                    DType::F16 => Dtype::F16,
                    DType::BF16 => Dtype::Bf16,
                    _ => Dtype::F32,
                };
                let numbers = numbers(bytes, dtype);
                return match dtype {
                    Dtype::F32 => visitor.visit(&Floats::<4> { numbers, columns }, self),
                    Dtype::F16 | Dtype::Bf16 => {
                        visitor.visit(&Floats::<2> { numbers, columns }, self)
                    }
                };
            }
            Storage::Packed(packed) => packed,
        };
        match packed {
            Packed::Q4_0 => self.blocks::<Q4_0, V>(visitor),
            Packed::Q4_1 => self.blocks::<Q4_1, V>(visitor),
            Packed::Q5_0 => self.blocks::<Q5_0, V>(visitor),
            Packed::Q5_1 => self.blocks::<Q5_1, V>(visitor),
            Packed::Q8_0 => self.blocks::<Q8_0, V>(visitor),
            Packed::Q2K => self.blocks::<Q2K, V>(visitor),
            Packed::Q3K => self.blocks::<Q3K, V>(visitor),
            Packed::Q4K => self.blocks::<Q4K, V>(visitor),
            Packed::Q5K => self.blocks::<Q5K, V>(visitor),
            Packed::Q6K => self.blocks::<Q6K, V>(visitor),
            Packed::Mxfp4 => self.blocks::<Mxfp4, V>(visitor),
            Packed::Microscaled => visitor.visit(
                &Microscaled {
                    bytes,
                    powers: second,
                    columns,
                },
                self,
            ),
            Packed::Float8 { scales } => visitor.visit(
                &Float8 {
                    bytes,
                    factors: numbers(second, scales),
                    columns,
                },
                self,
            ),
            Packed::Affine {
                bits,
                group,
                scales,
            } => {
                let (scales, biases) = (numbers(second, scales), numbers(third, scales));
                let group = group as usize;
                match bits {
                    2 => visitor.visit(
                        &Affine::<2> {
                            bytes,
                            scales,
                            biases,
                            columns,
                            group,
                        },
                        self,
                    ),
                    4 => visitor.visit(
                        &Affine::<4> {
                            bytes,
                            scales,
                            biases,
                            columns,
                            group,
                        },
                        self,
                    ),
                    _ => visitor.visit(
                        &Affine::<8> {
                            bytes,
                            scales,
                            biases,
                            columns,
                            group,
                        },
                        self,
                    ),
                }
            }
        }
    }

    fn blocks<B: Block + Sync, V: Visitor>(&self, visitor: V) {
        let source = Blocks::<B> {
            bytes: self.tensors[0],
            row_bytes: self.columns / B::ELEMENTS * B::BYTES,
            block: PhantomData,
        };
        visitor.visit(&source, self);
    }
}

/// Code that is compiled for each kind of source.
trait Visitor {
    fn visit<S: Source>(self, source: &S, rows: &Rows<'_>);
}

/// Unpacks a row.
struct Unpack<'a> {
    row: usize,
    out: &'a mut [f32],
}

impl Visitor for Unpack<'_> {
    fn visit<S: Source>(self, source: &S, rows: &Rows<'_>) {
        row_of(source, rows, self.row, self.out);
    }
}

/// Unpacks a row. Rows of floats may end within a span.
#[inline(always)]
fn row_of<S: Source>(source: &S, rows: &Rows<'_>, row: usize, out: &mut [f32]) {
    let mut spans = out.chunks_exact_mut(S::SPAN);
    let mut span = 0;
    for out in &mut spans {
        source.unpack(row, span, out);
        span += 1;
    }
    rows.rest(row, span * S::SPAN, spans.into_remainder());
}

impl Rows<'_> {
    /// The elements from `first` on of a row of floats.
    #[inline(always)]
    fn rest(&self, row: usize, first: usize, out: &mut [f32]) {
        let Storage::Dense(dtype) = self.storage else {
            return;
        };
        let numbers = Numbers {
            bytes: self.tensors[0],
            dtype: match dtype {
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::Bf16,
                _ => Dtype::F32,
            },
        };
        for (i, out) in out.iter_mut().enumerate() {
            *out = numbers.at(row * self.columns + first + i);
        }
    }
}

/// Columns of the matrix [m, n] that a product writes.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    y: *mut f32,
    /// Elements of a row of y.
    width: usize,
    /// The first column.
    first: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads write columns of their own, as each panel of the weight has.
unsafe impl Sync for Columns<'_> {}
// SAFETY: as above.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Columns `first..first + count` of y, whose rows have `width` elements.
    ///
    /// # Panics
    /// If y has no such columns.
    pub(crate) fn new(y: &'a mut [f32], width: usize, first: usize, count: usize) -> Self {
        assert!(first + count <= width && y.len().is_multiple_of(width));
        Self {
            y: y.as_mut_ptr(),
            width,
            first,
            life: PhantomData,
        }
    }

    fn at(self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: callers stay within the rows of y and the columns that were checked.
        unsafe { self.y.add(row * self.width + self.first + column) }
    }
}

/// Most rows of x for which the weight is unpacked in registers.
const FEW: usize = 8;
/// Rows of the weight in a panel. A panel of 128 rows of up to 2048 elements takes a megabyte in f32.
const PANEL: usize = 128;
/// Bytes of a weight that are worth a task of their own.
const TASK: usize = 1 << 15;

/// Writes x [m, K] times the weight's rows to columns of y.
pub(crate) fn multiply(x: &[f32], weight: &Rows<'_>, y: Columns<'_>) {
    let m = x.len() / weight.columns.max(1);
    if m * weight.columns == 0 {
        return;
    }
    match m <= FEW {
        true => weight.run(FewRows { x, m, y }),
        false => weight.run(ManyRows { x, m, y }),
    }
}

struct FewRows<'a> {
    x: &'a [f32],
    m: usize,
    y: Columns<'a>,
}

impl Visitor for FewRows<'_> {
    fn visit<S: Source>(self, source: &S, rows: &Rows<'_>) {
        let row_bytes = (rows.tensors[0].len() / rows.rows).max(1);
        let count = TASK.div_ceil(row_bytes).max(8);
        let tasks = rows.rows.div_ceil(count);
        let run = |task: usize| {
            let range = task * count..((task + 1) * count).min(rows.rows);
            #[cfg(target_arch = "x86_64")]
            if has_avx2() {
                // SAFETY: the instructions were found.
                return unsafe { few_avx2(source, rows, range, &self) };
            }
            few::<S, false>(source, rows, range, &self);
        };
        match tasks {
            1 => run(0),
            _ => (0..tasks).into_par_iter().for_each(run),
        }
    }
}

/// Whether this CPU has the instructions for which the fast versions are compiled.
#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    butterfly_cpu::Isa::Avx2.is_available() && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn few_avx2<S: Source>(
    source: &S,
    rows: &Rows<'_>,
    range: std::ops::Range<usize>,
    product: &FewRows<'_>,
) {
    few::<S, true>(source, rows, range, product);
}

/// Lanes of a sum: two vectors of eight, so that one addition does not wait for another.
const LANES: usize = 16;

/// Products of the few rows of x with a range of the weight's rows.
#[inline(always)]
fn few<S: Source, const FMA: bool>(
    source: &S,
    rows: &Rows<'_>,
    range: std::ops::Range<usize>,
    product: &FewRows<'_>,
) {
    match product.m {
        1 => few_of::<S, FMA, 1>(source, rows, range, product),
        2 => few_of::<S, FMA, 2>(source, rows, range, product),
        3 | 4 => few_of::<S, FMA, 4>(source, rows, range, product),
        _ => few_of::<S, FMA, FEW>(source, rows, range, product),
    }
}

#[inline(always)]
fn few_of<S: Source, const FMA: bool, const M: usize>(
    source: &S,
    rows: &Rows<'_>,
    range: std::ops::Range<usize>,
    &FewRows { x, m, y }: &FewRows<'_>,
) {
    let k = rows.columns;
    let whole = k / S::SPAN;
    let mut numbers = [0.0f32; LONGEST];
    let numbers = &mut numbers[..S::SPAN];
    for row in range {
        let mut sums = [[0.0f32; LANES]; M];
        for span in 0..whole {
            source.unpack(row, span, numbers);
            for (i, sums) in sums.iter_mut().enumerate().take(m) {
                let x = &x[i * k + span * S::SPAN..][..S::SPAN];
                add::<FMA>(sums, x, numbers);
            }
        }
        let rest = k - whole * S::SPAN;
        let mut last = [0.0; 32];
        rows.rest(row, whole * S::SPAN, &mut last[..rest]);
        for (i, sums) in sums.iter_mut().enumerate().take(m) {
            let x = &x[i * k + whole * S::SPAN..][..rest];
            add::<FMA>(sums, x, &last[..rest]);
            // SAFETY: this task alone writes the columns of its rows.
            unsafe { *y.at(i, row) = sums.iter().sum() };
        }
    }
}

/// Adds products lane by lane.
#[inline(always)]
fn add<const FMA: bool>(sums: &mut [f32; LANES], x: &[f32], w: &[f32]) {
    for (x, w) in x.chunks(LANES).zip(w.chunks(LANES)) {
        for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
            *sum = match FMA {
                true => x.mul_add(*w, *sum),
                false => *sum + x * w,
            };
        }
    }
}

struct ManyRows<'a> {
    x: &'a [f32],
    m: usize,
    y: Columns<'a>,
}

impl Visitor for ManyRows<'_> {
    fn visit<S: Source>(self, source: &S, rows: &Rows<'_>) {
        let k = rows.columns;
        let run = |first: usize| {
            let count = PANEL.min(rows.rows - first);
            let mut panel = vec![0.0f32; count * k];
            for (i, out) in panel.chunks_exact_mut(k).enumerate() {
                unpack_row(source, rows, first + i, out);
            }
            // SAFETY: x is [m, K] and the panel [count, K], both contiguous; this task alone writes
            // the columns of its panel.
            unsafe {
                gemm::gemm(
                    self.m,
                    count,
                    k,
                    self.y.at(0, first),
                    1,
                    self.y.width as isize,
                    false,
                    self.x.as_ptr(),
                    1,
                    k as isize,
                    panel.as_ptr(),
                    k as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        };
        let panels = (0..rows.rows).step_by(PANEL).collect::<Vec<_>>();
        panels.into_par_iter().for_each(run);
    }
}

/// Unpacks a row with the best instructions that there are.
fn unpack_row<S: Source>(source: &S, rows: &Rows<'_>, row: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2<S: Source>(source: &S, rows: &Rows<'_>, row: usize, out: &mut [f32]) {
        row_of(source, rows, row, out);
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the instructions were found.
        return unsafe { avx2(source, rows, row, out) };
    }
    row_of(source, rows, row, out);
}
