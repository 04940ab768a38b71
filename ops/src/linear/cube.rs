//! Linear layers: rows times the rows of a weight.
//!
//! On NVIDIA devices, a few rows are multiplied by a kernel that reads the weight once, with packed
//! weights on Hopper by a generated one (`few.rs`); many rows of 16-bit floats by a generated kernel
//! with Hopper's matrix instructions (`hopper.rs`); f32 without tensor cores, which would round it to
//! TF32, 10 bits of mantissa. Everything else is Burn's own product.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

mod dense_few;
mod gate;
pub(crate) mod normed_few;

use super::few::{self, Pairs, Rows};
use super::hopper::{self, Matrix};
use super::quantised::cube::Forms;
use super::quantised::hopper::{Gates, Product};
use super::{Embed, Packed, Part, Products, Project, Storage, packed};
use crate::Activation;
use crate::OperationError;
use crate::cube::launch::{array, empty, grid, shaped};
use crate::gate::cube::gated;
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use burn_std::Metadata;
use butterfly_runtime::{Device, Launches};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;
use half::{bf16, f16};

/// Most rows for which the kernel is used that reads the weight once, without tensor cores.
pub(crate) const FEW: usize = Project::FEW;

/// Rows of a panel are a multiple of it, as are those of the tiles of all products.
const TILE: usize = 128;

/// Rows of a packed embedding.
pub(crate) fn embed<R: CubeRuntime, F: FloatElement>(
    op: &Embed,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let ids = inputs.next().expect("the inputs were counted");
    let shape = [ids.shape()[0], ids.shape()[1], op.columns];
    if ids.meta.num_elements() == 0 {
        return vec![empty(&ids, shape, F::dtype())];
    }
    let table = packed::cube::Weight {
        packed: op.table,
        columns: op.columns,
        tensors: inputs.collect(),
    };
    vec![shaped(table.picked::<F>(&ids), shape)]
}

/// The next part's tensors, which are taken off `inputs`.
fn stored<R: CubeRuntime>(
    part: Part,
    columns: usize,
    inputs: &mut impl Iterator<Item = CubeTensor<R>>,
) -> Weight<R> {
    let tensors: Vec<_> = inputs.take(part.names().len()).collect();
    match part.storage {
        Storage::Dense(_) => {
            Weight::Dense(Box::new(tensors.into_iter().next().expect("one tensor")))
        }
        Storage::Packed(packed) => Weight::Packed(packed::cube::Weight {
            packed,
            columns,
            tensors,
        }),
    }
}

pub(crate) fn project<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Project,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let inputs: Vec<_> = inputs.into_iter().map(into_contiguous).collect();
    let Some(activation) = op.gate else {
        return times::<R, F>(op, inputs);
    };
    if activation == Activation::Silu
        && let Some(y) = gate::times::<R, F>(op, &inputs)?
    {
        return Ok(vec![y]);
    }
    Ok(gated::<R, F>(times::<R, F>(op, inputs)?, activation))
}

/// The products of rows with all parts of a weight, contiguous, without a gate.
fn times<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Project,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let mut inputs = inputs.into_iter();
    let x = inputs.next().expect("the inputs were counted");
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    let k = shape[last];
    let (n, m) = (op.rows(), x.meta.num_elements() / k);
    shape[last] = n;
    if m == 0 {
        return Ok(vec![empty(&x, shape, F::dtype())]);
    }
    let x = shaped(x, [m, k]);
    if op.wide && F::dtype() != DType::F32 {
        return wide::<R, F>(op, x, inputs, shape);
    }
    // A part that is the whole weight makes the result; others write columns of it.
    if let [part] = op.parts.as_ref()
        && let Storage::Dense(_) = part.storage
    {
        let weight = inputs.next().expect("the inputs were counted");
        let y = dense::<R, F>(&x, &weight, &op.products)?;
        return Ok(vec![shaped(y, shape)]);
    }
    let y = empty(&x, [m, n], F::dtype());
    rest::<R, F>(op, &x, (&op.parts, inputs), &y, 0)?;
    Ok(vec![shaped(y, shape)])
}

/// Writes the products of contiguous rows [m, K] with parts of a weight to columns of y from `column` on.
pub(crate) fn rest<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Project,
    x: &CubeTensor<R>,
    (parts, tensors): (&[Part], impl Iterator<Item = CubeTensor<R>>),
    y: &CubeTensor<R>,
    mut column: usize,
) -> Result<(), OperationError> {
    let (m, k) = (x.meta.shape()[0], x.meta.shape()[1]);
    let mut tensors = tensors;
    let mut forms = Forms::of(x);
    for part in parts {
        let rows = part.rows;
        match stored(*part, k, &mut tensors) {
            Weight::Packed(weight) if m <= FEW => {
                let words = weight.of_rows(rows);
                let all = Rows::All(&words);
                if !few::multiply::<R, F>(x, all, Pairs::Rows, y, column, &op.grouped)? {
                    weight.times_few::<F>(x, y, rows, column);
                }
            }
            Weight::Packed(weight) => {
                let product = Product {
                    weight: &weight.of_rows(rows),
                    gates: Gates::None,
                    listed: None,
                    rows: m,
                    width: y.meta.shape()[1],
                    column,
                };
                let storage = Storage::Packed(weight.packed);
                if !(storage.quantises() && forms.multiply::<F>(&product, y, &op.grouped)?) {
                    let x = forms.for_weight::<F>(storage);
                    let panel = panel_rows(k);
                    for first in (0..rows).step_by(panel) {
                        let part = weight.unpacked::<F>(first, panel.min(rows - first));
                        columns::<R, F>(x, &part, y, column + first, &op.products)?;
                    }
                }
            }
            Weight::Dense(weight) => columns::<R, F>(x, &weight, y, column, &op.products)?,
        }
        column += rows;
    }
    Ok(())
}

/// The products of rows x [m, K] of 16-bit floats as f32: with a weight of the same floats on NVIDIA devices, whose
/// matrix units sum in f32; else x is made f32 first.
fn wide<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Project,
    x: CubeTensor<R>,
    mut weight: impl Iterator<Item = CubeTensor<R>>,
    shape: Vec<usize>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let same = match op.parts.as_ref() {
        [part] => part.storage == Storage::Dense(F::dtype()),
        _ => false,
    };
    if !same || R::device(&x.client) != Device::Cuda {
        let x = into_contiguous(cast(x, DType::F32));
        return times::<R, f32>(op, [x].into_iter().chain(weight).collect());
    }
    let weight = weight.next().expect("the inputs were counted");
    let (m, k, n) = (x.shape()[0], x.shape()[1], weight.shape()[0]);
    if dense_few::takes([m, k, n]) {
        let y = dense_few::multiply::<R, F, F, f32>(&x, &weight);
        return Ok(vec![shaped(y, shape)]);
    }
    let y = match hopper::multiply_wide::<R, F>([&x, &weight], &op.products)? {
        Some(y) => y,
        None => on_any(x, transposed(weight), DType::F32),
    };
    Ok(vec![shaped(y, shape)])
}

/// The tensors of a part.
enum Weight<R: CubeRuntime> {
    Dense(Box<CubeTensor<R>>),
    Packed(packed::cube::Weight<R>),
}

/// Rows of `k` elements that are unpacked at once.
fn panel_rows(k: usize) -> usize {
    match Packed::PANEL / k {
        few @ 0..TILE => few.max(1),
        many => many / TILE * TILE,
    }
}

/// The product of contiguous rows [m, K] with a dense weight [N, K], written to columns
/// `column..column + N` of y [m, n].
fn columns<R: CubeRuntime + Launches, F: FloatElement>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    y: &CubeTensor<R>,
    column: usize,
    products: &Products,
) -> Result<(), OperationError> {
    let [m, k, n] = [x.shape()[0], x.shape()[1], weight.shape()[0]];
    let factors = [x, weight].map(Matrix::all);
    let to = [column, y.shape()[1]];
    let made = || y.clone();
    if m > FEW && hopper::multiply::<R, F>(factors, [m, n, k], to, products, made)?.is_some() {
        return Ok(());
    }
    let part = dense::<R, F>(x, weight, products)?;
    place::<R, F>(&part, y, column);
    Ok(())
}

/// The product of contiguous rows [m, K] with a dense weight [N, K] → [m, N].
pub(crate) fn dense<R: CubeRuntime + Launches, F: FloatElement>(
    rows: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    products: &Products,
) -> Result<CubeTensor<R>, OperationError> {
    let [m, k, n] = [rows.shape()[0], rows.shape()[1], weight.shape()[0]];
    let (rows, weight) = (rows.clone(), weight.clone());
    let device = R::device(&rows.client);
    let few = dense_few::takes([m, k, n]);
    let same = weight.dtype == F::dtype();
    let y = || empty(&rows, [m, n], F::dtype());
    let factors = [&rows, &weight].map(Matrix::all);
    if !few && let Some(y) = hopper::multiply::<R, F>(factors, [m, n, k], [0, n], products, y)? {
        return Ok(y);
    }
    Ok(match (device, F::dtype()) {
        (Device::Cuda, dtype) if few && !(same && dtype == DType::F32) => match weight.dtype {
            DType::F16 => dense_few::multiply::<R, F, f16, F>(&rows, &weight),
            DType::BF16 => dense_few::multiply::<R, F, bf16, F>(&rows, &weight),
            _ => dense_few::multiply::<R, F, f32, F>(&rows, &weight),
        },
        (_, dtype) if !same => rounded(rows, weight, dtype),
        (Device::Cuda, DType::F32) => without_matrix_units(rows, weight),
        _ => general(rows, weight),
    })
}

/// Copies `part` [m, count] to columns `column..column + count` of y [m, n].
fn place<R: CubeRuntime, F: FloatElement>(part: &CubeTensor<R>, y: &CubeTensor<R>, column: usize) {
    let count = part.meta.num_elements() as u32;
    // SAFETY: units beyond the last element do nothing; the columns are some of y's.
    unsafe {
        place_kernel::launch_unchecked::<F, R>(
            &y.client,
            grid(count.div_ceil(PLACING)),
            CubeDim::new_1d(PLACING),
            array(part),
            array(y),
            count,
            part.shape()[1] as u32,
            y.shape()[1] as u32,
            column as u32,
        );
    }
}

/// Units of a workgroup that copies.
const PLACING: u32 = 256;

#[cube(launch_unchecked)]
fn place_kernel<F: Float>(
    part: &Array<F>,
    y: &mut Array<F>,
    count: u32,
    columns: u32,
    width: u32,
    column: u32,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * PLACING + UNIT_POS_X;
    if at < count {
        y[(at / columns * width + column + at % columns) as usize] = part[at as usize];
    }
}

/// The weight as the right factor of a product: a [K, N] view with contiguous columns.
fn transposed<R: CubeRuntime>(weight: CubeTensor<R>) -> CubeTensor<R> {
    let (shape, strides) = (weight.meta.shape(), weight.meta.strides());
    let meta = Metadata::new([shape[1], shape[0]], [strides[1], strides[0]]);
    CubeTensor::new(
        weight.client,
        weight.handle,
        meta,
        weight.device,
        weight.dtype,
    )
}

/// The product of factors of two types: computed in f32, then rounded to `dtype`.
fn rounded<R: CubeRuntime + Launches>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    dtype: DType,
) -> CubeTensor<R> {
    let [x, weight] = [x, weight].map(|x| cast(x, DType::F32));
    let y = match R::device(&x.client) {
        Device::Cuda => without_matrix_units(x, weight),
        Device::Vulkan | Device::Webgpu => general(x, weight),
    };
    // What a cast makes may have gaps between its rows.
    into_contiguous(cast(y, dtype))
}

/// A product for each matrix of a batch: x [H, M, K] times factors [H, K, N] of the same type →
/// [H, M, N]. Both may be views whose rows or columns lie apart.
pub(crate) fn batched<R: CubeRuntime + Launches>(
    x: CubeTensor<R>,
    factors: CubeTensor<R>,
) -> CubeTensor<R> {
    match (R::device(&x.client), x.dtype) {
        (Device::Cuda, DType::F32) => on_units(x, factors),
        (Device::Cuda | Device::Vulkan | Device::Webgpu, dtype) => on_any(x, factors, dtype),
    }
}

fn general<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = x.dtype;
    on_any(x, transposed(weight), dtype)
}

fn without_matrix_units<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
    on_units(x, transposed(weight))
}

/// Burn's own product, of type `dtype`.
fn on_any<R: CubeRuntime>(x: CubeTensor<R>, factor: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    let y = matmul(x, factor, None, MatmulStrategy::default(), dtype);
    into_contiguous(y.expect("Burn multiplies all shapes"))
}

/// A product without matrix units.
fn on_units<R: CubeRuntime>(x: CubeTensor<R>, right: CubeTensor<R>) -> CubeTensor<R> {
    let mut shape = x.shape().to_vec();
    if let (Some(to), Some(columns)) = (shape.last_mut(), right.shape().last()) {
        *to = *columns;
    }
    let y = empty(&x, shape, x.dtype);
    let client = x.client.clone();
    let dtype = x.dtype.into();
    let launch = |strategy: &Strategy| {
        let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: dtype,
            rhs: dtype,
            out: dtype,
        });
        let factors = [x.clone(), right.clone()].map(|x| InputBinding::new(x.binding(), dtype));
        let [left, right] = factors;
        launch_ref(
            strategy,
            &client,
            left,
            right,
            y.clone().binding(),
            &mut dtypes,
        )
    };
    launch(&Strategy::SimpleUnit(Default::default()))
        .or_else(|_| launch(&Strategy::Naive))
        .expect("the naive product takes all shapes");
    y
}
