//! Rows that become FP8 before they are multiplied with weights in FP8, against their definition.

use crate::few::Weight;
use crate::linear::{Case, Products, RESULTS, Result};
use crate::values::{floats, number, rounded};
use crate::{Cuda, Vulkan};
use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{Activation, Activations, Operation, Packed, Project};
use butterfly::{AttentionBackend, Plan, run};
use butterfly_ir::Dtype;
use std::time::Instant;

/// Many rows, of which a row has whole groups, several of them and some that are not whole.
const SIZES: [[usize; 3]; 7] = [
    [9, 128, 128],
    [9, 24, 40],
    [130, 264, 256],
    [65, 136, 1408],
    [150, 136, 776],
    [257, 520, 384],
    [140, 384, 2048],
];

/// The numbers of e4m3 that are not negative, up to 448.
fn numbers() -> Vec<f64> {
    let number = |code: u32| match (code >> 3, f64::from(code & 7)) {
        (0, eighths) => eighths / 512.0,
        (exponent, eighths) => (1.0 + eighths / 8.0) * 2f64.powi(exponent as i32 - 7),
    };
    (0..127).map(number).collect()
}

/// Rows of `k` elements, of which every 128 share the smallest power of two by which none is beyond 448, and are the
/// nearest numbers of e4m3, with an even code of two as near.
pub(crate) fn rows(x: &[f64], k: usize) -> Vec<f64> {
    let numbers = numbers();
    let nearest = |x: f64| {
        let above = numbers.partition_point(|number| *number < x);
        let (low, high) = (above.saturating_sub(1), above.min(numbers.len() - 1));
        match (x - numbers[low]).partial_cmp(&(numbers[high] - x)) {
            Some(std::cmp::Ordering::Less) => numbers[low],
            Some(std::cmp::Ordering::Equal) if low % 2 == 0 => numbers[low],
            _ => numbers[high],
        }
    };
    let group = |group: &[f64]| -> Vec<f64> {
        let largest = group.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let mut factor = 2f64.powi(-60);
        while largest / factor > 448.0 {
            factor *= 2.0;
        }
        let round = |x: &f64| nearest((x / factor).abs()) * factor * x.signum();
        group.iter().map(round).collect()
    };
    let groups = x.chunks(k).flat_map(|row| row.chunks(128));
    groups.flat_map(group).collect()
}

/// The products with some weights, one below another, by generated kernels where there are any.
fn project(weights: &[&Weight], dtype: DType) -> Project {
    Project {
        parts: weights.iter().map(|weight| weight.part()).collect(),
        products: Plan::dense().products(),
        grouped: Plan::dense().grouped(),
        ..Project::dense(0, dtype)
    }
}

/// Compares products of rows of `dtype`, which may be off by `most` of their length.
fn products<B: AttentionBackend>(
    sizes: &[[usize; 3]],
    (dtype, most): (DType, f64),
    device: &B::Device,
) {
    for (i, sizes) in sizes.iter().enumerate() {
        let scales = [Dtype::F32, Dtype::Bf16, Dtype::F16][i % 3];
        let packed = Packed::float8(scales).with(Activations::Float8);
        let weight = Weight::new(packed, [sizes[1], sizes[2]]);
        let products = Products::new(*sizes, dtype, &weight.values(), true);
        let tensors = weight.upload::<B>(device);
        for result in RESULTS {
            let case = Case {
                operation: project(&[&weight], dtype),
                result,
                products: &products,
            };
            // Without the generated kernel for gates, these are rounded before they are gates.
            let most = match result {
                Result::Rounded => most,
                Result::Wide => 1e-5,
                Result::Gated(_) => 2.0 * most,
            };
            case.agrees::<B>(&tensors, most, device);
        }
    }
}

/// Rows that are few stay what they are.
fn few<B: AttentionBackend>((dtype, most): (DType, f64), device: &B::Device) {
    for m in [1, Project::FEW] {
        let sizes = [m, 136, 256];
        let packed = Packed::float8(Dtype::F32).with(Activations::Float8);
        let weight = Weight::new(packed, [sizes[1], sizes[2]]);
        let case = Case {
            operation: project(&[&weight], dtype),
            result: Result::Rounded,
            products: &Products::new(sizes, dtype, &weight.values(), false),
        };
        case.agrees::<B>(&weight.upload::<B>(device), most, device);
    }
}

/// A weight of which one part is FP8 and others are not: only the first part's rows are rounded.
fn parts<B: AttentionBackend>((dtype, most): (DType, f64), device: &B::Device) {
    let (m, k) = (70, 384);
    let stored = |packed, rows| Weight::new(packed, [rows, k]);
    let float8 = Packed::float8(Dtype::F32);
    let all = [
        stored(float8.with(Activations::Float8), 136),
        stored(float8, 24),
        stored(float8.with(Activations::Float8), 40),
    ];
    let inputs: Vec<FloatTensor<B>> = all.iter().flat_map(|one| one.upload::<B>(device)).collect();
    let operation = project(&all.each_ref(), dtype);
    let x: Vec<f32> = (0..m * k)
        .map(|i| rounded(dtype, 2.0 * number(i + 5)))
        .collect();
    let y = crate::linear::times::<B>(&operation, (&x, [m, k], dtype), inputs, device);
    let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let quantised = rows(&wide, k);
    let (mut off, mut length) = (0.0, 0.0);
    for (row, y) in y.chunks(200).enumerate() {
        let of = |x: &[f64], weight: &Weight| -> Vec<f64> {
            let x = &x[row * k..][..k];
            let product = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
            weight.values().chunks(k).map(product).collect()
        };
        let want = [
            of(&quantised, &all[0]),
            of(&wide, &all[1]),
            of(&quantised, &all[2]),
        ];
        for (y, want) in y.iter().zip(want.concat()) {
            off += (f64::from(*y) - want).powi(2);
            length += want.powi(2);
        }
    }
    let error = (off / length).sqrt();
    assert!(error <= most, "{dtype:?}: {error}");
}

#[test]
fn rows_in_fp8() {
    let cpu = Default::default();
    products::<Flex>(&SIZES[..5], (DType::F32, 3e-6), &cpu);
    products::<Flex>(&SIZES[..4], (DType::F16, 4e-4), &cpu);
    few::<Flex>((DType::F32, 3e-6), &cpu);
    parts::<Flex>((DType::F32, 3e-6), &cpu);
    let vulkan = WgpuDevice::Cpu;
    products::<Vulkan>(&SIZES[..3], (DType::F32, 3e-6), &vulkan);
    few::<Vulkan>((DType::F32, 3e-6), &vulkan);
    parts::<Vulkan>((DType::F32, 3e-6), &vulkan);
}

/// Prints how fast many rows are multiplied, in FP8 and as they are, with what it takes to quantise them.
#[test]
#[ignore = "measures an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored --nocapture cuda_speed"]
fn cuda_speed_of_rows_in_fp8() {
    const ROUNDS: u32 = 40;
    let device = Default::default();
    let float8 = Packed::float8(Dtype::F32);
    for (m, n, k, gate) in [
        (8192, 4096, 4096, None),
        (8192, 24_576, 4096, Some(Activation::Silu)),
        (8192, 4096, 12_288, None),
    ] {
        let x = floats::<Cuda>(&vec![0.5; m * k], &[m, k], DType::BF16, &device);
        for packed in [float8, float8.with(Activations::Float8)] {
            let weight = Weight::new(packed, [n, k]);
            let operation = Operation::Project(Project {
                gate,
                ..project(&[&weight], DType::BF16)
            });
            let tensors = weight.upload::<Cuda>(&device);
            let multiply = || {
                let inputs = [x.clone()].into_iter().chain(tensors.iter().cloned());
                run::<Cuda>(&operation.clone().into(), inputs.collect()).expect("products")
            };
            multiply();
            Cuda::sync(&device).expect("a device");
            let start = Instant::now();
            (0..ROUNDS).for_each(|_| drop(multiply()));
            Cuda::sync(&device).expect("a device");
            let seconds = start.elapsed().as_secs_f64() / f64::from(ROUNDS);
            let rate = 2e-12 * (m * n * k) as f64 / seconds;
            println!(
                "[{m}, {k}] x {n}, {packed:?}: {:.3} ms, {rate:.0} TFLOP/s",
                seconds * 1e3
            );
        }
    }
}

/// In 16 bits, weights that are unpacked are rounded once more than by the generated kernel: its results are closer to
/// the definition, and `most` is between the two.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_rows_in_fp8() {
    let device = Default::default();
    let whole: Vec<[usize; 3]> = SIZES.into_iter().filter(|[_, _, k]| k % 128 == 0).collect();
    products::<Cuda>(&whole, (DType::BF16, 1.9e-3), &device);
    products::<Cuda>(&whole, (DType::F16, 4e-4), &device);
    products::<Cuda>(&SIZES, (DType::BF16, 5e-3), &device);
    products::<Cuda>(&SIZES, (DType::F32, 3e-6), &device);
    few::<Cuda>((DType::BF16, 5e-3), &device);
    parts::<Cuda>((DType::BF16, 3e-3), &device);
}
