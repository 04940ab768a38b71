//! Single tokens, one after the other, against f64 and against several tokens at a time.

use super::{Inputs, delta, off};
use crate::{Cuda, Vulkan};
use burn::tensor::DType;
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::{AttentionBackend, Delta};

/// Heads of k and of v, Dk and Dv, taps, and whether heads of v are tiled.
type Case = ([usize; 2], [usize; 2], usize, bool);

/// Every ratio of heads; Dk that is and is not a multiple of what units share, Dv that is and is not one of a vector,
/// either the longer; and a state that is too large for one kernel.
const CASES: [Case; 12] = [
    ([16, 32], [128, 128], 4, false),
    ([2, 6], [128, 128], 4, true),
    ([1, 3], [64, 128], 2, false),
    ([3, 3], [32, 96], 3, false),
    ([4, 8], [96, 64], 4, true),
    ([1, 2], [128, 256], 4, false),
    ([1, 2], [100, 36], 3, true),
    ([2, 4], [8, 12], 2, false),
    ([2, 6], [4, 40], 3, true),
    ([1, 4], [20, 7], 4, false),
    ([16, 16], [32, 8], 2, true),
    ([1, 2], [128, 264], 4, false),
];

const TOKENS: usize = 5;

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// A head in length 1.
fn unit(head: &[f64]) -> Vec<f64> {
    let square: f64 = head.iter().map(|x| x * x).sum();
    head.iter().map(|x| x / (square + 1e-6).sqrt()).collect()
}

/// The outputs, as the rule is defined.
fn reference(op: &Delta, inputs: &Inputs) -> [Vec<f32>; 3] {
    let [batch, tokens, width] = inputs.sizes;
    let (dk, dv, taps, channels) = (op.k_dim, op.v_dim, op.taps, op.channels());
    let keys = op.k_heads * dk;
    let [convolution, decay, bias, norm] = &inputs.weights;
    let (mut out, mut kept) = (Vec::new(), Vec::new());
    let mut states: Vec<f64> = inputs.state.iter().map(|x| f64::from(*x)).collect();
    for b in 0..batch {
        // Rows from the first that the convolution reads on.
        let row = |at: usize| match at.checked_sub(taps - 1) {
            Some(token) => &inputs.rows[(b * tokens + token) * width + inputs.first..],
            None => &inputs.last[(b * (taps - 1) + at) * channels..],
        };
        for token in 0..tokens {
            let convolved = |c: usize| {
                let products = (0..taps).map(|tap| {
                    f64::from(convolution[tap * channels + c]) * f64::from(row(token + tap)[c])
                });
                silu(products.sum())
            };
            let mixed: Vec<f64> = (0..channels).map(convolved).collect();
            let now = &row(token + taps - 1)[channels..];
            for h in 0..op.v_heads {
                let of = match op.tiled {
                    true => h % op.k_heads,
                    false => h / (op.v_heads / op.k_heads),
                };
                let q = unit(&mixed[of * dk..][..dk]);
                let k = unit(&mixed[keys + of * dk..][..dk]);
                let v = &mixed[2 * keys + h * dv..][..dv];
                let gates = &now[op.v_heads * dv..];
                let beta = 1.0 / (1.0 + (-f64::from(gates[h])).exp());
                let a = f64::from(gates[op.v_heads + h]);
                let step = (a + f64::from(bias[h])).exp().ln_1p();
                let forget = (f64::from(decay[h]) * step).exp();
                let state = &mut states[(b * op.v_heads + h) * dk * dv..][..dk * dv];
                state.iter_mut().for_each(|x| *x *= forget);
                let column = |j: usize| {
                    let known: f64 = (0..dk).map(|i| k[i] * state[i * dv + j]).sum();
                    let change = beta * (v[j] - known);
                    (0..dk).for_each(|i| state[i * dv + j] += k[i] * change);
                    let sum: f64 = (0..dk).map(|i| q[i] * state[i * dv + j]).sum();
                    sum / (dk as f64).sqrt()
                };
                let read: Vec<f64> = (0..dv).map(column).collect();
                let square: f64 = read.iter().map(|x| x * x).sum();
                let factor = 1.0 / (square / dv as f64 + f64::from(op.epsilon)).sqrt();
                out.extend((0..dv).map(|j| {
                    let gate = silu(f64::from(now[h * dv + j]));
                    (read[j] * factor * f64::from(norm[j]) * gate) as f32
                }));
            }
        }
        for at in tokens..tokens + taps - 1 {
            kept.extend_from_slice(&row(at)[..channels]);
        }
    }
    [out, kept, states.iter().map(|x| *x as f32).collect()]
}

/// Tokens one by one are those of the reference and, where `exact` says that several tokens take the same form, have
/// the bits of all in one call.
fn agrees<B: AttentionBackend>(
    (heads, [k_dim, v_dim], taps, tiled): Case,
    dtype: DType,
    batch: usize,
    exact: bool,
    device: &B::Device,
) {
    let [k_heads, v_heads] = heads;
    let op = Delta {
        k_dim,
        v_dim,
        taps,
        ..delta((k_heads, v_heads, tiled))
    };
    let what = format!("{heads:?} {k_dim} {v_dim} taps {taps} tiled {tiled} {dtype:?} of {batch}");
    let inputs = Inputs::new(&op, dtype, [batch, TOKENS], false);
    let want = reference(&op, &inputs);
    let cuts: Vec<usize> = (1..TOKENS).collect();
    let got = inputs.cut::<B>(&op, dtype, &cuts, device);
    // Results are rounded to their type; the state never is.
    let most = match dtype {
        DType::F16 => 2e-3,
        DType::BF16 => 6e-3,
        _ => 1e-4,
    };
    let [out, state] = [0, 2].map(|i| off(&got[i], &want[i]));
    assert!(out < most, "{what}: the result is off by {out:.2e}");
    assert!(state < 1e-4, "{what}: the state is off by {state:.2e}");
    assert_eq!(got[1], want[1], "{what}: the last rows are copied");
    if exact {
        assert!(got == inputs.run::<B>(&op, dtype, device), "{what}: cuts");
        let halves = inputs.cut::<B>(&op, dtype, &[1, 3], device);
        assert!(got == halves, "{what}: cuts at 1 and 3");
    }
}

#[test]
fn cpu_single_tokens_of_the_delta_rule_agree() {
    for case in CASES {
        agrees::<Flex>(case, DType::F32, 3, true, &Default::default());
    }
}

/// It takes the kernels for many tokens, which are tested beside this; and compilation on a CPU takes its time.
#[test]
fn vulkan_single_tokens_of_the_delta_rule_agree() {
    for case in CASES.into_iter().step_by(3) {
        for dtype in [DType::F32, DType::F16] {
            agrees::<Vulkan>(case, dtype, 3, true, &WgpuDevice::Cpu);
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_single_tokens_of_the_delta_rule_agree() {
    for case in CASES {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            // Several tokens of these heads may be a chunk.
            let exact = dtype == DType::F32 || case.1 != [128, 128];
            for batch in [1, 3] {
                agrees::<Cuda>(case, dtype, batch, exact, &Default::default());
            }
        }
    }
}
