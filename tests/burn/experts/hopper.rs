//! Generated kernels for products with experts on Hopper, against f64.

use super::layer::{Kind, Layer, alone, spread};
use super::weights::{AFFINE, BF16, F16, FLOAT8, MICROSCALED, QUANTISED};
use super::{agrees, clamped};
use crate::Cuda;
use burn::tensor::DType;
use butterfly::ops::{Activation, Shared, Storage};

/// Rows of a weight, whole and in two sections, of whole squares and not.
fn layers(storage: Storage) -> [Layer; 4] {
    let layer = |sizes, sections, activation, biased| {
        Layer::new(Kind {
            sizes,
            inner: vec![storage; sections],
            outer: storage,
            activation,
            biased,
            shared: if biased { Shared::Rows } else { Shared::Gated },
            joined: true,
        })
    };
    [
        layer([320, 256], 1, clamped(true), true),
        layer([256, 320], 2, Activation::Silu, false),
        layer([64, 128], 2, Activation::Gelu, true),
        // Gates and what they gate in one section, of which a square of FP8 has rows of both.
        layer([128, 192], 1, Activation::Silu, false),
    ]
}

/// Layers of whole groups of elements, and one of others; of one section and of two.
pub(super) fn quantised() -> [Layer; 4] {
    let layer = |sizes, sections, activation| {
        Layer::new(Kind {
            sizes,
            inner: vec![QUANTISED; sections],
            outer: QUANTISED,
            activation,
            biased: false,
            shared: Shared::None,
            joined: true,
        })
    };
    [
        layer([256, 128], 1, Activation::Silu),
        layer([384, 256], 2, Activation::Silu),
        layer([128, 384], 1, Activation::Gelu),
        layer([256, 72], 1, Activation::Silu),
    ]
}

/// Single tokens and a few: each pair by itself.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_generated_products_of_a_few_pairs_agree_with_f64() {
    let device = Default::default();
    let choices = [spread(1, 4), spread(3, 2), alone(5), spread(16, 4)];
    for (dtype, dense, most) in [(DType::BF16, BF16, 2e-2), (DType::F16, F16, 4e-3)] {
        for storage in [dense, AFFINE, FLOAT8, MICROSCALED] {
            for layer in layers(storage) {
                agrees::<Cuda>(&layer, &choices, (dtype, most), &device);
            }
        }
    }
}

/// A tile of an expert that is not full, several tiles of one expert, and experts that nobody chooses.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_generated_products_with_experts_agree_with_f64() {
    let device = Default::default();
    let choices = [spread(40, 2), spread(100, 4), alone(300)];
    for (dtype, dense, most) in [(DType::BF16, BF16, 2e-2), (DType::F16, F16, 4e-3)] {
        for storage in [dense, AFFINE, FLOAT8, MICROSCALED] {
            for layer in layers(storage) {
                agrees::<Cuda>(&layer, &choices, (dtype, most), &device);
            }
        }
    }
    // Else another form of the products was compared.
    let made = butterfly::compiled();
    for dtype in ["bf16", "f16"] {
        for format in ["dense", "affine4-32-f16", "float8-f32", "microscaled"] {
            for columns in [64, 128, 256, 320] {
                let kernel =
                    format!("cuda:sm_90a products with packed weights {dtype} {format} {columns}");
                assert!(made.contains(&kernel), "{kernel}: {made:?}");
            }
        }
    }
}

/// Pairs in FP8, whose products are gated at once, and one after the other.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_pairs_in_fp8_agree_with_f64() {
    let device = Default::default();
    let choices = [spread(16, 4), spread(40, 2), spread(100, 4), alone(300)];
    for (dtype, most) in [(DType::BF16, 2e-2), (DType::F16, 4e-3)] {
        for layer in quantised() {
            agrees::<Cuda>(&layer, &choices, (dtype, most), &device);
        }
    }
}

/// Ten launches give the same bits.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_generated_products_with_experts_repeat() {
    let device = Default::default();
    for storage in [BF16, AFFINE, FLOAT8, MICROSCALED, QUANTISED] {
        let layers = match storage {
            QUANTISED => quantised(),
            _ => layers(storage),
        };
        for layer in layers {
            for choice in [spread(2, 4), spread(100, 4), alone(300)] {
                let given = choice.given(layer.kind.sizes[0], DType::BF16);
                let inputs = layer.inputs::<Cuda>(&given, DType::BF16, &device);
                let bits = || {
                    let y = layer.compute::<Cuda>(inputs.clone()).into_iter();
                    y.map(f32::to_bits).collect::<Vec<_>>()
                };
                let first = bits();
                for _ in 1..10 {
                    assert_eq!(bits(), first, "{:?}, {choice:?}", layer.kind);
                }
            }
        }
    }
}
