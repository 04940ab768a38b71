//! The gated delta rule in chunks, on Hopper, against token by token on the CPU; and single tokens.

mod single;

use crate::Cuda;
use crate::values::{floats, number, rounded};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata, TensorPrimitive};
use burn_flex::Flex;
use butterfly::ops::Operation as LayerOperation;
use butterfly::{AttentionBackend, Delta, Plan, run};

/// Heads of k and of v, and whether these are tiled: each ratio, with odd numbers of heads.
const HEADS: [(usize, usize, bool); 6] = [
    (2, 2, false),
    (2, 4, false),
    (2, 4, true),
    (1, 3, false),
    (2, 6, true),
    (3, 3, false),
];

fn delta((k_heads, v_heads, tiled): (usize, usize, bool)) -> Delta {
    Delta {
        k_heads,
        v_heads,
        k_dim: 128,
        v_dim: 128,
        taps: 4,
        tiled,
        epsilon: 1e-6,
        rules: Plan::dense().delta_rules(),
    }
}

/// The inputs of a delta rule, as numbers of f32 that `dtype` holds where it has to.
struct Inputs {
    /// B, T and the elements of a row of projections, of which the rule reads those from `first` on.
    sizes: [usize; 3],
    first: usize,
    /// Convolution, decay, dt_bias and norm.
    weights: [Vec<f32>; 4],
    rows: Vec<f32>,
    last: Vec<f32>,
    state: Vec<f32>,
}

impl Inputs {
    /// `batch` sequences of `tokens` tokens; rows have more elements than the rule reads, and start at multiples of
    /// 16 bytes if they are `aligned`.
    fn new(op: &Delta, dtype: DType, [batch, tokens]: [usize; 2], aligned: bool) -> Self {
        let (first, width) = match aligned {
            true => (8, (8 + op.width()).next_multiple_of(8) + 8),
            false => (1, 1 + op.width()),
        };
        let (channels, heads) = (op.channels(), op.v_heads);
        let many = |seed: usize, count: usize, of: &dyn Fn(f32) -> f32| -> Vec<f32> {
            (0..count).map(|i| of(number(seed << 40 | i))).collect()
        };
        let stored = |x: f32| rounded(dtype, 2.0 * x);
        Self {
            sizes: [batch, tokens, width],
            first,
            weights: [
                many(1, op.taps * channels, &|x| 0.7 * x),
                // Some heads forget within a few tokens, others hardly.
                (0..heads)
                    .map(|head| -[0.004, 0.1, 2.0][head % 3])
                    .collect(),
                many(2, heads, &|x| x),
                many(3, op.v_dim, &|x| 1.0 + 0.5 * x),
            ],
            rows: many(4, batch * tokens * width, &stored),
            last: many(5, batch * (op.taps - 1) * channels, &stored),
            state: many(6, batch * heads * op.k_dim * op.v_dim, &|x| 0.3 * x),
        }
    }

    /// The tokens `from..to` of these, after what earlier tokens left.
    fn tensors<B: Backend>(
        &self,
        op: &Delta,
        dtype: DType,
        [from, to]: [usize; 2],
        device: &B::Device,
    ) -> Vec<FloatTensor<B>> {
        let [batch, tokens, width] = self.sizes;
        let (channels, f32) = (op.channels(), DType::F32);
        let rows = floats::<B>(&self.rows, &[batch, tokens, width], dtype, device);
        let rows = Tensor::<B, 3>::from_primitive(TensorPrimitive::Float(rows));
        let end = self.first + op.width();
        let rows = rows.slice([0..batch, from..to, self.first..end]);
        let shapes = [
            vec![op.taps, channels],
            vec![op.v_heads],
            vec![op.v_heads],
            vec![op.v_dim],
        ];
        let weights = self.weights.iter().zip(&shapes);
        let mut all = vec![rows.into_primitive().tensor()];
        all.extend(weights.map(|(values, shape)| floats::<B>(values, shape, f32, device)));
        let last = [batch, op.taps - 1, channels];
        let state = [batch, op.v_heads, op.k_dim, op.v_dim];
        all.push(floats::<B>(&self.last, &last, dtype, device));
        all.push(floats::<B>(&self.state, &state, f32, device));
        all
    }

    /// The outputs for all tokens.
    fn run<B: AttentionBackend>(
        &self,
        op: &Delta,
        dtype: DType,
        device: &B::Device,
    ) -> [Vec<f32>; 3] {
        self.cut::<B>(op, dtype, &[], device)
    }

    /// The outputs for all tokens, in calls that are cut before these.
    fn cut<B: AttentionBackend>(
        &self,
        op: &Delta,
        dtype: DType,
        cuts: &[usize],
        device: &B::Device,
    ) -> [Vec<f32>; 3] {
        let [batch, tokens, _] = self.sizes;
        let mut parts: Vec<Tensor<B, 3>> = Vec::new();
        let mut kept: Option<[FloatTensor<B>; 2]> = None;
        let ends = cuts.iter().copied().chain([tokens]);
        let mut from = 0;
        for to in ends {
            let mut inputs = self.tensors::<B>(op, dtype, [from, to], device);
            if let Some([last, state]) = kept {
                inputs[5] = last;
                inputs[6] = state;
            }
            let operation = LayerOperation::Delta(op.clone()).into();
            let outputs = run::<B>(&operation, inputs).expect("right inputs");
            let [out, last, state] = <[_; 3]>::try_from(outputs).expect("three outputs");
            parts.push(Tensor::from_primitive(TensorPrimitive::Float(out)));
            kept = Some([last, state]);
            from = to;
        }
        let out = Tensor::cat(parts, 1);
        assert_eq!(out.dims(), [batch, tokens, op.v_heads * op.v_dim]);
        let [last, state] = kept.expect("a call");
        [out.into_primitive().tensor(), last, state].map(read::<B>)
    }
}

fn read<B: Backend>(x: FloatTensor<B>) -> Vec<f32> {
    let count = x.shape().num_elements();
    let flat = B::float_reshape(x, Shape::from([count]));
    let flat = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(flat));
    flat.into_data()
        .convert::<f32>()
        .into_vec()
        .expect("numbers")
}

/// The length of the difference, relative to that of `want`.
fn off(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let pairs = got.iter().zip(want);
    let difference = pairs.map(|(got, want)| square(f64::from(*got) - f64::from(*want)));
    let length = want.iter().map(|want| square(f64::from(*want)));
    (difference.sum::<f64>() / length.sum::<f64>()).sqrt()
}

/// Outputs of these heads and tokens are those of the CPU in f32, from the same numbers.
fn agrees(op: &Delta, dtype: DType, sizes: [usize; 2], aligned: bool) {
    let inputs = Inputs::new(op, dtype, sizes, aligned);
    let want = inputs.run::<Flex>(op, DType::F32, &Default::default());
    let got = inputs.run::<Cuda>(op, dtype, &Default::default());
    let most = if dtype == DType::BF16 { 1e-2 } else { 2e-3 };
    let what = format!(
        "{}/{} tiled {} {sizes:?} {dtype:?} aligned {aligned}",
        op.k_heads, op.v_heads, op.tiled
    );
    let [out, state] = [0, 2].map(|i| off(&got[i], &want[i]));
    assert!(out < most, "{what}: the result is off by {out:.2e}");
    assert!(state < most, "{what}: the state is off by {state:.2e}");
    assert_eq!(got[1], want[1], "{what}: the last rows are copied");
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_chunks_of_the_delta_rule_agree_with_single_tokens() {
    for dtype in [DType::BF16, DType::F16] {
        for heads in HEADS {
            let op = delta(heads);
            for tokens in [1, 2, 63, 64, 65, 200] {
                agrees(&op, dtype, [2, tokens], true);
            }
            // These take the form of other devices.
            agrees(&op, dtype, [2, 65], false);
        }
        agrees(&delta((2, 4, false)), dtype, [1, 1000], true);
        agrees(&delta((1, 3, false)), dtype, [2, 1000], true);
    }
    // Else no call had chunks.
    let made = butterfly::compiled();
    for dtype in ["f16", "bf16"] {
        let kernel = format!("cuda:sm_90a delta rule {dtype} 1/3");
        assert!(made.contains(&kernel), "{made:?}");
    }
}

/// Other heads, and fewer or more taps.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_delta_rules_of_other_shapes_agree() {
    let right = delta((2, 4, false));
    for taps in [2, 3, 8] {
        let op = Delta {
            taps,
            ..right.clone()
        };
        for tokens in [2, 70] {
            agrees(&op, DType::BF16, [1, tokens], true);
        }
    }
    let op = Delta {
        k_dim: 64,
        ..right.clone()
    };
    agrees(&op, DType::BF16, [1, 70], true);
}

/// Cut at multiples of a chunk, outputs have the same bits; and so have those of equal calls.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_cuts_and_repeats_of_the_delta_rule_are_exact() {
    let device = Default::default();
    for dtype in [DType::BF16, DType::F16] {
        for heads in [(2, 4, false), (1, 3, false)] {
            let op = delta(heads);
            let inputs = Inputs::new(&op, dtype, [2, 1000], true);
            let want = inputs.run::<Cuda>(&op, dtype, &device);
            for cuts in [&[64][..], &[128], &[640], &[64, 128, 640]] {
                let got = inputs.cut::<Cuda>(&op, dtype, cuts, &device);
                assert!(got == want, "{heads:?} {dtype:?} cut at {cuts:?}");
            }
            for again in 0..10 {
                let got = inputs.run::<Cuda>(&op, dtype, &device);
                assert!(got == want, "{heads:?} {dtype:?} run {again}");
            }
        }
    }
}
