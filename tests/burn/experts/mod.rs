//! Layers of experts against f64: few rows and many, in every way of storing weights.

mod bad;
mod hopper;
mod layer;
mod route;
mod weights;

use crate::values::floats;
use crate::{Cuda, Fused, Vulkan};
use burn::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{Activation, Shared, Storage};
use butterfly::{AttentionBackend, run};
use layer::{Choice, Given, Kind, Layer, alone, spread};
use weights::{AFFINE, BF16, DENSE, F16, FLOAT8, MXFP4, Q4_0};

/// Experts of a layer.
const COUNT: usize = 5;
/// Those that rows choose: nobody chooses number 1.
const USED: [i32; 4] = [4, 0, 2, 3];

/// Results are off by at most a share `most` of the largest one, beyond what other numbers of FP8 explain.
fn agrees<B: AttentionBackend>(
    layer: &Layer,
    choices: &[Choice],
    (dtype, most): (DType, f64),
    device: &B::Device,
) {
    for choice in choices {
        let given = choice.given(layer.kind.sizes[0], dtype);
        let (want, doubts) = layer.reference(&given, dtype);
        let inputs = layer.inputs::<B>(&given, dtype, device);
        let got = layer.compute::<B>(inputs.clone());
        assert_eq!(got.len(), want.len());
        if !layer.kind.biased && layer.kind.shared == Shared::None {
            let apart = layer.compute_apart::<B>(inputs);
            for (one, other) in got.iter().zip(&apart) {
                assert!((one - other).abs() <= 2.0 * most as f32 * one.abs().max(1.0));
            }
        }
        let largest = want.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        for (i, ((got, want), doubt)) in got.iter().zip(&want).zip(&doubts).enumerate() {
            let off = (f64::from(*got) - want).abs();
            assert!(
                off <= most * largest + doubt,
                "{:?}, {choice:?}, {dtype:?}, {i}: {got}, not {want} (of {largest}; {doubt})",
                layer.kind
            );
        }
    }
}

/// The gate of gpt-oss, with a limit that many numbers are beyond.
fn clamped(alternate: bool) -> Activation {
    Activation::Clamped {
        alpha: 1.702,
        limit: 0.75,
        alternate,
    }
}

/// Every way of storing weights with every activation; sizes, sections and biases in turn. A format that has no
/// blocks of so many columns leaves them dense.
fn kinds(joined: bool) -> Vec<Kind> {
    let storages = [DENSE, AFFINE, FLOAT8, Q4_0, MXFP4, F16, BF16];
    let activations = [
        Activation::Silu,
        Activation::Gelu,
        clamped(false),
        clamped(true),
    ];
    let sizes = [[32, 64], [64, 24], [72, 24], [256, 128]];
    let kind = |i: usize| {
        let (s, a) = (i / 4, i % 4);
        let sizes = sizes[(s + a) % 4];
        let stored = |columns: usize| match storages[s] {
            Storage::Packed(packed) if !columns.is_multiple_of(packed.block().0) => DENSE,
            storage => storage,
        };
        // Rows of gate and up that alternate are one section.
        let sections = if a == 3 { 1 } else { 1 + (s + a / 2) % 2 };
        Kind {
            sizes,
            inner: vec![stored(sizes[0]); sections],
            outer: stored(sizes[1]),
            activation: activations[a],
            biased: (s + a.div_ceil(2)).is_multiple_of(2),
            shared: [Shared::None, Shared::Gated, Shared::Rows][(s + a) % 3],
            joined: joined || !i.is_multiple_of(3),
        }
    };
    (0..4 * storages.len()).map(kind).collect()
}

#[test]
fn cpu_agrees_with_f64() {
    let device = Default::default();
    for (i, kind) in kinds(false).into_iter().enumerate() {
        let layer = Layer::new(kind);
        let mut choices = vec![spread(1, 2), spread(3, 4), alone(12)];
        // The reference would take long.
        if layer.kind.sizes[0] < 256 {
            choices.extend([spread(40, 2), alone(40)]);
            if i.is_multiple_of(5) {
                choices.extend([spread(200, 2), alone(200)]);
            }
        }
        agrees::<Flex>(&layer, &choices, (DType::F32, 1e-4), &device);
        agrees::<Flex>(&layer, &choices[..2], (DType::F16, 1e-3), &device);
        agrees::<Flex>(&layer, &choices[..2], (DType::BF16, 8e-3), &device);
    }
}

/// Rows in FP8 where there are many pairs.
#[test]
fn pairs_in_fp8_agree_with_f64() {
    let choices = [spread(16, 4), spread(40, 2), alone(70)];
    for (i, layer) in hopper::quantised().iter().enumerate() {
        agrees::<Flex>(layer, &choices, (DType::F32, 1e-4), &Default::default());
        if i % 2 == 1 {
            agrees::<Vulkan>(layer, &choices[1..], (DType::F32, 1e-4), &WgpuDevice::Cpu);
        }
    }
}

/// The layer of gpt-oss: rows of gate and up that alternate, and biases.
fn alternating() -> Layer {
    Layer::new(Kind {
        sizes: [64, 24],
        inner: vec![DENSE],
        outer: DENSE,
        activation: clamped(true),
        biased: true,
        shared: Shared::None,
        joined: true,
    })
}

/// Each kernel is compiled, which takes longer than to run it: so formats come either with few rows or with many.
#[test]
fn vulkan_agrees_with_f64() {
    let device = WgpuDevice::Cpu;
    let check = |layer: &Layer, choices: &[Choice]| {
        agrees::<Vulkan>(layer, choices, (DType::F32, 1e-4), &device);
    };
    check(&alternating(), &[spread(3, 2), spread(40, 2), alone(200)]);
    let layer = |sizes, inner, outer, activation, biased, shared| {
        Layer::new(Kind {
            sizes,
            inner,
            outer,
            activation,
            biased,
            shared,
            joined: true,
        })
    };
    let other = layer(
        [32, 64],
        vec![Q4_0; 2],
        MXFP4,
        Activation::Gelu,
        false,
        Shared::Rows,
    );
    check(&other, &[spread(3, 2)]);
    let other = layer(
        [64, 32],
        vec![AFFINE],
        FLOAT8,
        Activation::Silu,
        true,
        Shared::Gated,
    );
    check(&other, &[spread(40, 2)]);
    // Experts whose squares of 128 rows and columns are two by two.
    let other = layer(
        [256, 128],
        vec![FLOAT8],
        Q4_0,
        clamped(false),
        false,
        Shared::None,
    );
    check(&other, &[spread(1, 2)]);
    // Rows that end within a step of the product, and sections that differ.
    let other = layer(
        [72, 24],
        vec![F16, DENSE],
        DENSE,
        Activation::Silu,
        false,
        Shared::Gated,
    );
    check(&other, &[spread(40, 2)]);
}

#[test]
fn fusion_agrees_with_f64() {
    let choices = [spread(3, 2), spread(40, 2)];
    agrees::<Fused>(
        &alternating(),
        &choices,
        (DType::F32, 1e-4),
        &WgpuDevice::Cpu,
    );
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_agrees_with_f64() {
    let device = Default::default();
    for kind in kinds(true) {
        let layer = Layer::new(kind);
        let choices = [spread(1, 2), spread(3, 4), spread(40, 2), alone(200)];
        agrees::<Cuda>(&layer, &choices, (DType::F32, 1e-4), &device);
        agrees::<Cuda>(&layer, &choices, (DType::BF16, 2e-2), &device);
    }
    repeats::<Cuda>(&device);
    ids_of_no_expert::<Cuda>(&device);
}

/// Ten launches give the same bits.
fn repeats<B: AttentionBackend>(device: &B::Device) {
    let layer = alternating();
    for rows in [40, 200] {
        let given = spread(rows, 2).given(layer.kind.sizes[0], DType::F32);
        let inputs = layer.inputs::<B>(&given, DType::F32, device);
        let bits = || {
            let y = layer.compute::<B>(inputs.clone()).into_iter();
            y.map(f32::to_bits).collect::<Vec<_>>()
        };
        let first = bits();
        for _ in 1..10 {
            assert_eq!(bits(), first, "{rows}");
        }
    }
}

#[test]
fn experts_repeat_on_cpu_and_vulkan() {
    repeats::<Flex>(&Default::default());
    repeats::<Vulkan>(&WgpuDevice::Cpu);
}

/// Ids that no expert has stand for the last one.
fn ids_of_no_expert<B: AttentionBackend>(device: &B::Device) {
    let layer = alternating();
    for rows in [3, 40] {
        let mut given = spread(rows, 2).given(layer.kind.sizes[0], DType::F32);
        let compute = |given: &Given| {
            let inputs = layer.inputs::<B>(given, DType::F32, device);
            layer.compute::<B>(inputs)
        };
        let count = COUNT as i32;
        given.ids.fill(count - 1);
        let want = compute(&given);
        let none = [-1, count, i32::MIN, i32::MAX].into_iter().cycle();
        given.ids.iter_mut().zip(none).for_each(|(id, n)| *id = n);
        assert_eq!(compute(&given), want, "{rows}");
    }
}

#[test]
fn ids_of_no_expert_on_cpu_and_vulkan() {
    ids_of_no_expert::<Flex>(&Default::default());
    ids_of_no_expert::<Vulkan>(&WgpuDevice::Cpu);
}

/// Rows [m, n] as their columns, [n, m].
fn turned<T: Copy>(rows: &[T], n: usize) -> Vec<T> {
    let m = rows.len() / n;
    let at = |i: usize| rows[i % m * n + i / m];
    (0..rows.len()).map(at).collect()
}

/// Inputs may lie in memory by columns; there may be no rows.
fn lies_anyhow<B: AttentionBackend>(device: &B::Device) {
    let layer = alternating();
    let hidden = layer.kind.sizes[0];
    let given = spread(3, 2).given(hidden, DType::F32);
    let mut inputs = layer.inputs::<B>(&given, DType::F32, device);
    let want = layer.compute::<B>(inputs.clone());
    let columns = |values: &[f32], n: usize| {
        let shape = [1, n, given.rows];
        let x = floats::<B>(&turned(values, n), &shape, DType::F32, device);
        B::float_swap_dims(x, 1, 2)
    };
    inputs[0] = columns(&given.x, hidden);
    inputs[2] = columns(&given.weights, given.each);
    let ids = TensorData::new(turned(&given.ids, given.each), [1, given.each, given.rows]);
    let ids = B::int_from_data(ids, device);
    inputs[1] = B::integers(B::int_swap_dims(ids, 1, 2));
    assert_eq!(layer.compute::<B>(inputs), want);

    let given = spread(0, 2).given(hidden, DType::F32);
    let inputs = layer.inputs::<B>(&given, DType::F32, device);
    let outputs = run::<B>(&layer.operation().into(), inputs).expect("no rows");
    assert_eq!(outputs[0].shape().to_vec(), [1, 0, hidden]);
}

#[test]
fn inputs_lie_anyhow() {
    lies_anyhow::<Flex>(&Default::default());
    lies_anyhow::<Vulkan>(&WgpuDevice::Cpu);
}
