//! The gates of feed-forward layers against f64.

use crate::values::{data, floats, number, rounded};
use crate::{Cuda, Vulkan};
use burn::tensor::DType;
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{Activation, Operation as LayerOperation};
use butterfly::{AttentionBackend, run};

/// The gated row [n] of a row [2 n], in f64.
pub(crate) fn gated(activation: Activation, row: &[f64]) -> Vec<f64> {
    let n = row.len() / 2;
    let of = |i: usize| {
        let (gate, x) = match activation {
            Activation::Clamped {
                alternate: true, ..
            } => (row[2 * i], row[2 * i + 1]),
            _ => (row[i], row[n + i]),
        };
        match activation {
            Activation::Silu => gate / (1.0 + (-gate).exp()) * x,
            // arXiv:1606.08415, section 2.
            Activation::Gelu => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let inner = root * (gate + 0.044_715 * gate.powi(3));
                0.5 * gate * (1.0 + inner.tanh()) * x
            }
            Activation::Clamped { alpha, limit, .. } => {
                let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                let gate = gate.min(limit);
                let x = x.clamp(-limit, limit);
                gate / (1.0 + (-alpha * gate).exp()) * (x + 1.0)
            }
        }
    };
    (0..n).map(of).collect()
}

/// The gate of gpt-oss.
fn clamped(alternate: bool) -> Activation {
    Activation::Clamped {
        alpha: 1.702,
        limit: 7.0,
        alternate,
    }
}

/// Numbers on either side of the limit, and some for which exponentials overflow.
fn agrees<B: AttentionBackend>(device: &B::Device, dtype: DType, most: f64) {
    let activations = [Activation::Silu, Activation::Gelu];
    let activations = activations.into_iter().chain([false, true].map(clamped));
    for activation in activations {
        for n in [1, 5, 40] {
            let at = |i: usize| match i % 11 {
                3 => 100.0,
                7 => -100.0,
                _ => 12.0 * number(i),
            };
            let x: Vec<f32> = (0..6 * 2 * n).map(|i| rounded(dtype, at(i))).collect();
            let input = floats::<B>(&x, &[2, 3, 2 * n], dtype, device);
            let operation = LayerOperation::Gated(activation).into();
            let outputs = run::<B>(&operation, vec![input]).expect("a gate");
            let y = outputs.into_iter().next().expect("one output");
            let got: Vec<f32> = data::<B>(y).convert::<f32>().into_vec().expect("f32");
            let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let rows = exact.chunks(2 * n);
            let want: Vec<f64> = rows.flat_map(|row| gated(activation, row)).collect();
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let off = (f64::from(*got) - want).abs();
                assert!(
                    off <= most * (1.0 + want.abs()),
                    "{activation:?}, {dtype:?}, n {n}, {i}: {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn gates_agree_with_f64() {
    for (dtype, most) in [(DType::F32, 1e-5), (DType::F16, 1e-3), (DType::BF16, 8e-3)] {
        agrees::<Flex>(&Default::default(), dtype, most);
    }
    agrees::<Vulkan>(&WgpuDevice::Cpu, DType::F32, 1e-5);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_gates_agree_with_f64() {
    for (dtype, most) in [(DType::F32, 1e-5), (DType::F16, 1e-3), (DType::BF16, 8e-3)] {
        agrees::<Cuda>(&Default::default(), dtype, most);
    }
}

#[test]
fn rows_of_gates_have_two_halves() {
    for activation in [Activation::Silu, Activation::Gelu, clamped(true)] {
        let said = |shape: [usize; 2], dtype: DType| {
            let outputs = LayerOperation::Gated(activation).outputs(&[(shape.into(), dtype)]);
            outputs.expect_err("refused").to_string()
        };
        assert_eq!(
            said([2, 5], DType::F32),
            "gated: `x` has shape [2, 5], expected an even last dimension"
        );
        assert_eq!(
            said([2, 0], DType::F32),
            "gated: `x` has shape [2, 0], expected at least one element in a row"
        );
        assert_eq!(
            said([2, 4], DType::I32),
            "gated: tensors of I32; cast them to f32, f16 or bf16"
        );
    }
}
