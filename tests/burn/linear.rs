//! Linear layers against f64: of the type of x, in f32, and with a gate.

use crate::few::Weight;
use crate::gates::gated;
use crate::quantised;
use crate::values::{floats, number, rounded};
use crate::{Cuda, Vulkan};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata, TensorPrimitive};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{Activation, Operation, Packed, Project};
use butterfly::{AttentionBackend, Plan, run};
use butterfly_ir::Dtype;

/// What a layer does with its products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Result {
    /// Rounds them to the type of x.
    Rounded,
    /// Gives them as f32.
    Wide,
    /// The second half times the activation of the first.
    Gated(Activation),
}

pub(crate) const RESULTS: [Result; 4] = [
    Result::Rounded,
    Result::Wide,
    Result::Gated(Activation::Silu),
    Result::Gated(Activation::Gelu),
];

/// Rows, results before a gate, and elements of a row: sizes that use each of the kernels.
const SIZES: [[usize; 3]; 8] = [
    [1, 300, 256],
    [5, 24, 1024],
    [9, 8, 40],
    [9, 14, 40],
    [130, 520, 200],
    [65, 100, 4096],
    [300, 520, 776],
    [257, 1040, 320],
];

/// x [m, K] times a weight of some values [n, K], in f64: once for all results that are compared with it.
pub(crate) struct Products {
    sizes: [usize; 3],
    dtype: DType,
    x: Vec<f32>,
    /// [m, n].
    values: Vec<f64>,
}

impl Products {
    /// Of rows of `dtype`, which are in FP8 when they are multiplied if `quantises`.
    pub(crate) fn new(
        sizes @ [m, _, k]: [usize; 3],
        dtype: DType,
        weight: &[f32],
        quantises: bool,
    ) -> Self {
        let x: Vec<f32> = (0..m * k)
            .map(|i| rounded(dtype, 2.0 * number(i + 5)))
            .collect();
        let rows: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let rows = match quantises {
            true => quantised::rows(&rows, k),
            false => rows,
        };
        let products = rows.chunks(k).flat_map(|x| {
            let product = |w: &[f32]| {
                let pairs = x.iter().zip(w);
                pairs.map(|(x, w)| x * f64::from(*w)).sum()
            };
            weight.chunks(k).map(product)
        });
        Self {
            values: products.collect(),
            sizes,
            dtype,
            x,
        }
    }
}

/// What is made of products, and by which operation.
pub(crate) struct Case<'a> {
    pub(crate) operation: Project,
    pub(crate) result: Result,
    pub(crate) products: &'a Products,
}

/// The products of rows x [m, k] of `dtype` with a weight.
pub(crate) fn times<B: AttentionBackend>(
    operation: &Project,
    (x, shape, dtype): (&[f32], [usize; 2], DType),
    weight: Vec<FloatTensor<B>>,
    device: &B::Device,
) -> Vec<f32> {
    let x = [floats::<B>(x, &shape, dtype, device)].into_iter();
    let project = Operation::Project(operation.clone());
    let outputs = run::<B>(&project.into(), x.chain(weight).collect()).expect("a product");
    let y = outputs.into_iter().next().expect("one output");
    assert_eq!(y.dtype(), if operation.wide { DType::F32 } else { dtype });
    crate::numbers(&Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(y)))
}

impl Case<'_> {
    /// Compares the layer with f64, whose results it may be off by `most` of their length, and with itself.
    pub(crate) fn agrees<B: AttentionBackend>(
        &self,
        weight: &[FloatTensor<B>],
        most: f64,
        device: &B::Device,
    ) {
        let &Products {
            sizes: [m, n, k],
            dtype,
            ref x,
            ref values,
        } = self.products;
        let (wide, gate, columns) = match self.result {
            Result::Rounded => (false, None, n),
            Result::Wide => (true, None, n),
            Result::Gated(activation) => (false, Some(activation), n / 2),
        };
        let operation = Project {
            wide,
            gate,
            ..self.operation.clone()
        };
        let compute = || times::<B>(&operation, (x, [m, k], dtype), weight.to_vec(), device);
        let y = compute();
        assert_eq!(y, compute(), "{:?} {:?}", self.result, [m, n, k]);
        let (mut off, mut all) = (0.0, 0.0);
        for (y, products) in y.chunks(columns).zip(values.chunks(n)) {
            let want = match gate {
                None => products.to_vec(),
                Some(activation) => gated(activation, products),
            };
            for (got, want) in y.iter().zip(want) {
                off += (f64::from(*got) - want).powi(2);
                all += want.powi(2);
            }
        }
        let error = (off / all).sqrt();
        assert!(
            error <= most,
            "{dtype:?} {:?} {:?}: {error}",
            self.result,
            [m, n, k]
        );
    }
}

/// Rows of `dtype` with a dense weight that is stored in `stored`. Results in f32 may be off by 3e-6, of 16-bit floats by
/// 1e-5: matrix units add up to f32, but cut off what is added to larger sums.
fn dense<B: AttentionBackend>(device: &B::Device, dtype: DType, stored: DType, most: f64) {
    for sizes in SIZES {
        let [_, n, k] = sizes;
        let scale = 3.0 / (k as f32).sqrt();
        let values: Vec<f32> = (0..n * k)
            .map(|i| rounded(stored, scale * number(i)))
            .collect();
        let weight = [floats::<B>(&values, &[n, k], stored, device)];
        let products = Products::new(sizes, dtype, &values, false);
        for result in RESULTS {
            let operation = Project {
                products: Plan::dense().products(),
                ..Project::dense(n, stored)
            };
            let case = Case {
                operation,
                result,
                products: &products,
            };
            // Gates of 16-bit products: these are rounded where they are not made at once.
            let most = match result {
                Result::Rounded => most,
                Result::Wide if dtype == DType::F32 => 3e-6,
                Result::Wide => 1e-5,
                Result::Gated(_) => 2.0 * most,
            };
            case.agrees::<B>(&weight, most, device);
        }
    }
}

#[test]
fn dense_weights() {
    let cpu = Default::default();
    dense::<Flex>(&cpu, DType::F32, DType::F32, 3e-6);
    dense::<Flex>(&cpu, DType::F32, DType::BF16, 3e-6);
    dense::<Flex>(&cpu, DType::F16, DType::F32, 4e-4);
    dense::<Vulkan>(&WgpuDevice::Cpu, DType::F32, DType::F32, 3e-6);
    dense::<Vulkan>(&WgpuDevice::Cpu, DType::F32, DType::F16, 3e-6);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_dense_weights() {
    let device = Default::default();
    for (dtype, most) in [(DType::F32, 3e-6), (DType::F16, 4e-4), (DType::BF16, 3e-3)] {
        for stored in [DType::F32, DType::F16, DType::BF16] {
            dense::<Cuda>(&device, dtype, stored, most);
        }
    }
}

/// Of the rows of a gate and of what it gates, panels are unpacked together: with one panel, and with several.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_packed_weights_of_gates() {
    let device = Default::default();
    let affine = Packed::Affine {
        bits: 4,
        group: 64,
        scales: Dtype::Bf16,
    };
    let float8 = Packed::float8(Dtype::F32);
    for (packed, sizes) in [
        (affine, [70, 1040, 320]),
        (float8, [130, 768, 256]),
        (affine, [9, 2 * Packed::PANEL / 8192 + 272, 8192]),
    ] {
        let weight = Weight::new(packed, [sizes[1], sizes[2]]);
        let products = Products::new(sizes, DType::BF16, &weight.values(), false);
        for result in RESULTS {
            let operation = Project {
                parts: [weight.part()].into(),
                products: Plan::dense().products(),
                ..Project::dense(0, DType::BF16)
            };
            let case = Case {
                operation,
                result,
                products: &products,
            };
            // A packed weight is rounded to the type of x, but for results in f32.
            let most = if result == Result::Wide { 3e-6 } else { 1e-2 };
            case.agrees::<Cuda>(&weight.upload::<Cuda>(&device), most, &device);
        }
    }
}
