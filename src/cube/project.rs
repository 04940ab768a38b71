//! Linear layers: rows by rows of a weight.
//!
//! On NVIDIA a few rows are multiplied by a kernel that reads the weight once, many rows of
//! 16-bit floats by Hopper's matrix instructions, and f32 without matrix units, which would
//! round it to 10 bits. Everything else is Burn's own product.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::{array, empty, grid};
use crate::{OperationError, Plan};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use burn_std::Metadata;
use butterfly_ir::Dtype;
use butterfly_runtime::{Device, Launches, Multiply, ReadyProduct};
use cubecl::prelude::*;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;
#[cfg(all(feature = "jit", feature = "cuda"))]
use std::sync::{Mutex, PoisonError};

/// Rows up to which the weight is read once by scalar code.
const FEW: usize = 8;
/// Elements in a load: 16 bytes.
const LANES: usize = 8;
/// Planes of a workgroup.
const PLANES: u32 = 8;
/// Units of a plane.
const PLANE: u32 = 32;

pub(super) fn project<R: CubeRuntime + Launches, F: FloatElement>(
    inputs: Vec<CubeTensor<R>>,
    plan: Option<&Plan>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let mut next = || inputs.next().expect("the inputs were counted");
    let (x, weight) = (next(), next());
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    let k = shape[last];
    let (n, m) = (weight.shape()[0], x.meta.num_elements() / k);
    shape[last] = n;
    if m == 0 {
        return Ok(vec![empty(&x, shape, F::dtype())]);
    }
    let rows = reshaped(x, [m, k]);
    let device = R::device(&rows.client);
    // Vectors of a weight are counted in 32 bits.
    let few = m <= FEW && k.is_multiple_of(LANES) && counts(n, k / LANES) && counts(FEW, n);
    let y = match (device, F::dtype()) {
        (Device::Cuda, DType::F32) => without_matrix_units(rows, weight),
        (Device::Cuda, _) if few => few_rows::<R, F>(&rows, &weight),
        (Device::Cuda, dtype) => match on_hopper(&rows, &weight, dtype, plan)? {
            Some(y) => y,
            None => general(rows, weight),
        },
        _ => general(rows, weight),
    };
    Ok(vec![CubeTensor::new_contiguous(
        y.client,
        y.device,
        shape.into(),
        y.handle,
        y.dtype,
    )])
}

/// Whether 32 bits count so many rows of so many elements.
fn counts(rows: usize, row: usize) -> bool {
    rows.checked_mul(row)
        .is_some_and(|n| u32::try_from(n).is_ok())
}

/// The same elements in order, in another shape.
fn reshaped<R: CubeRuntime>(x: CubeTensor<R>, shape: [usize; 2]) -> CubeTensor<R> {
    CubeTensor::new_contiguous(x.client, x.device, shape.into(), x.handle, x.dtype)
}

/// The weight as a right factor: [K, N], its columns contiguous.
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

fn general<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = x.dtype;
    let y = matmul(
        x,
        transposed(weight),
        None,
        MatmulStrategy::default(),
        dtype,
    );
    into_contiguous(y.expect("Burn multiplies all shapes"))
}

fn without_matrix_units<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
    let y = empty(&x, [x.shape()[0], weight.shape()[0]], x.dtype);
    let client = x.client.clone();
    let dtype = x.dtype.into();
    let launch = |strategy: &Strategy| {
        let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: dtype,
            rhs: dtype,
            out: dtype,
        });
        let factor = transposed(weight.clone());
        let factors = [x.clone(), factor].map(|x| InputBinding::new(x.binding(), dtype));
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

/// The product for an element type on Hopper: one of the plan's artifacts, or one that is made
/// now, once for the process: what is made depends on nothing but the type.
#[cfg(feature = "cuda")]
fn product_of(dtype: Dtype, plan: Option<&Plan>) -> Result<Option<ReadyProduct>, OperationError> {
    if let Some(product) = plan.and_then(|plan| plan.product(dtype)) {
        return Ok(Some(product.clone()));
    }
    #[cfg(feature = "jit")]
    {
        static MADE: Mutex<Vec<ReadyProduct>> = Mutex::new(Vec::new());
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(product) = made.iter().find(|product| product.dtype() == dtype) {
            return Ok(Some(product.clone()));
        }
        if let Some((product, text)) = butterfly_codegen::product(dtype) {
            crate::compiled::add(format!("cuda:sm_90a product {}", dtype.name()));
            let product = ReadyProduct::new(product, text.as_bytes())?;
            made.push(product.clone());
            return Ok(Some(product));
        }
    }
    Ok(None)
}

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
fn product_of(_: Dtype, _: Option<&Plan>) -> Result<Option<ReadyProduct>, OperationError> {
    Ok(None)
}

/// By the kernel for Hopper, where this is one and the rows start at multiples of 16 bytes.
fn on_hopper<R: CubeRuntime + Launches>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    dtype: DType,
    plan: Option<&Plan>,
) -> Result<Option<CubeTensor<R>>, OperationError> {
    if super::attend::capability()?.version != 90 {
        return Ok(None);
    }
    let dtype = match dtype {
        DType::F16 => Dtype::F16,
        _ => Dtype::Bf16,
    };
    let [m, k] = [x.shape()[0], x.shape()[1]];
    let n = weight.shape()[0];
    if ![(m, k), (n, k), (m, n)]
        .iter()
        .all(|(rows, row)| counts(*rows, *row))
    {
        return Ok(None);
    }
    let multiply = Multiply {
        shape: [m, n, k].map(|n| n as u32),
        rows: [k, k, n].map(|n| n as u32),
    };
    match product_of(dtype, plan)? {
        Some(product) if product.takes(&multiply) => {
            let y = empty(x, [m, n], x.dtype);
            product.launch(&x.client, &multiply, [&x.handle, &weight.handle, &y.handle])?;
            Ok(Some(y))
        }
        _ => Ok(None),
    }
}

fn few_rows<R: CubeRuntime, F: FloatElement>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
) -> CubeTensor<R> {
    let (m, k, n) = (x.shape()[0], x.shape()[1], weight.shape()[0]);
    let y = empty(x, [m, n], x.dtype);
    let vectors = (k / LANES) as u32;
    let at_once = match vectors.is_multiple_of(4 * PLANE) {
        true => 4,
        false => 1,
    };
    // SAFETY: each plane writes its own column of all rows; rows hold `vectors` vectors.
    unsafe {
        few_rows_kernel::launch_unchecked::<F, R>(
            &x.client,
            grid((n as u32).div_ceil(PLANES)),
            CubeDim::new_2d(PLANE, PLANES),
            LANES,
            array(x),
            array(weight),
            array(&y),
            n as u32,
            m as u32,
            vectors,
            LANES as u32,
            at_once,
        );
    }
    y
}

/// One row of the weight in a plane, times all rows of x.
#[cube(launch_unchecked)]
fn few_rows_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<F, N>>,
    y: &mut Array<F>,
    columns: u32,
    #[comptime] m: u32,
    #[comptime] vectors: u32,
    #[comptime] lanes: u32,
    #[comptime] at_once: u32,
) {
    let column = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * PLANES + UNIT_POS_Y;
    // The whole plane.
    if column < columns {
        let start = column * vectors;
        let mut sums = Array::<f32>::new(comptime!(m as usize));
        #[unroll]
        for row in 0..m {
            sums[row as usize] = 0.0f32;
        }
        let mut loaded = Array::<Vector<F, N>>::new(comptime!(at_once as usize));
        let mut at = UNIT_POS_X;
        while at < vectors {
            #[unroll]
            for i in 0..at_once {
                loaded[i as usize] = weight[(start + at + comptime!(i * PLANE)) as usize];
            }
            #[unroll]
            for i in 0..at_once {
                let w = Vector::<f32, N>::cast_from(loaded[i as usize]);
                #[unroll]
                for row in 0..m {
                    let x = x[(comptime!(row * vectors) + at + comptime!(i * PLANE)) as usize];
                    let products = w * Vector::<f32, N>::cast_from(x);
                    #[unroll]
                    for lane in 0..lanes {
                        sums[row as usize] += products[lane as usize];
                    }
                }
            }
            at += comptime!(at_once * PLANE);
        }
        #[unroll]
        for row in 0..m {
            let sum = plane_sum(sums[row as usize]);
            if UNIT_POS_X == 0u32 {
                y[(row * columns + column) as usize] = F::cast_from(sum);
            }
        }
    }
}
