//! Layers of experts: what they are made of, their inputs, and their results in f64.

use super::weights::Part;
use super::{COUNT, USED};
use crate::gates::gated;
use crate::values::{data, floats, integers, number, rounded};
use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use butterfly::ops::{Activation, Experts, Operation as LayerOperation, Shared, Storage};
use butterfly::{AttentionBackend, Plan, run};

/// What sets a layer of experts apart.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    /// H and I.
    pub(super) sizes: [usize; 2],
    /// How inner weights are stored: gate and up as one section, or each as its own.
    pub(super) inner: Vec<Storage>,
    pub(super) outer: Storage,
    pub(super) activation: Activation,
    pub(super) biased: bool,
    pub(super) shared: Shared,
    /// Whether tensors hold the rows of all experts.
    pub(super) joined: bool,
}

pub(super) struct Layer {
    pub(super) kind: Kind,
    inner: Vec<Part>,
    outer: Part,
    /// [experts, 2 I] and [experts, H].
    biases: Option<[Vec<f32>; 2]>,
}

impl Layer {
    pub(super) fn new(kind: Kind) -> Self {
        let [hidden, size] = kind.sizes;
        let rows = 2 * size / kind.inner.len();
        let inner = kind.inner.iter().zip(1..);
        let inner = inner.map(|(storage, seed)| {
            let shape = [rows, hidden];
            Part::new(*storage, shape, kind.joined, seed)
        });
        let bias = |n: usize| -> Vec<f32> { (0..COUNT * n).map(|i| 0.5 * number(i + n)).collect() };
        Self {
            inner: inner.collect(),
            outer: Part::new(kind.outer, [hidden, size], kind.joined, 3),
            biases: kind.biased.then(|| [bias(2 * size), bias(hidden)]),
            kind,
        }
    }

    pub(super) fn operation(&self) -> LayerOperation {
        LayerOperation::Experts(Experts {
            count: COUNT,
            inner: self.inner.iter().map(|part| part.section).collect(),
            outer: [self.outer.section].into(),
            activation: self.kind.activation,
            biased: self.kind.biased,
            shared: self.kind.shared,
            apart: false,
            products: Plan::dense().grouped(),
        })
    }

    pub(super) fn inputs<B: AttentionBackend>(
        &self,
        given: &Given,
        dtype: DType,
        device: &B::Device,
    ) -> Vec<FloatTensor<B>> {
        let [hidden, size] = self.kind.sizes;
        let choice = [1, given.rows, given.each];
        let mut inputs = vec![
            floats::<B>(&given.x, &[1, given.rows, hidden], dtype, device),
            integers::<B>(&given.ids, &choice, device),
            floats::<B>(&given.weights, &choice, DType::F32, device),
        ];
        for part in self.inner.iter().chain([&self.outer]) {
            inputs.extend(part.upload::<B>(device));
        }
        if let Some([inner, outer]) = &self.biases {
            for (bias, n) in [(inner, 2 * size), (outer, hidden)] {
                inputs.push(floats::<B>(bias, &[COUNT, n], DType::F32, device));
            }
        }
        if self.kind.shared != Shared::None {
            let shape = [1, given.rows, hidden];
            inputs.push(floats::<B>(&given.shared, &shape, dtype, device));
        }
        if self.kind.shared == Shared::Gated {
            inputs.push(floats::<B>(&gate(hidden), &[hidden], DType::F32, device));
        }
        inputs
    }

    pub(super) fn compute<B: AttentionBackend>(&self, inputs: Vec<FloatTensor<B>>) -> Vec<f32> {
        let outputs = run::<B>(&self.operation().into(), inputs).expect("experts");
        let y = outputs.into_iter().next().expect("one output");
        let y = data::<B>(y).convert::<f32>();
        y.into_vec().expect("f32")
    }

    /// As [`compute`](Self::compute), the rows of experts first apart from each other, then together.
    pub(super) fn compute_apart<B: AttentionBackend>(
        &self,
        inputs: Vec<FloatTensor<B>>,
    ) -> Vec<f32> {
        let LayerOperation::Experts(together) = self.operation() else {
            unreachable!("experts");
        };
        let apart = Experts {
            apart: true,
            ..together
        };
        let weights = inputs[2].clone();
        let rows = run::<B>(&LayerOperation::Experts(apart).into(), inputs).expect("rows");
        let rows = rows.into_iter().chain([weights]);
        let y = run::<B>(&LayerOperation::Combine.into(), rows.collect()).expect("sums");
        let y = data::<B>(y.into_iter().next().expect("one output")).convert::<f32>();
        y.into_vec().expect("f32")
    }

    /// Results in f64, and how far from them results may be because what is gated was rounded to `dtype` first, and then
    /// to another number of FP8.
    pub(super) fn reference(&self, given: &Given, dtype: DType) -> (Vec<f64>, Vec<f64>) {
        let [hidden, size] = self.kind.sizes;
        let mut y = vec![0.0; given.x.len()];
        let mut doubts = y.clone();
        // Half of a last digit of the gate, of what it gates, and of their product, and some more, since the product grows
        // faster than the gate; and the error of sums and exponentials in f32.
        let half = match dtype {
            DType::BF16 => 2f64.powi(-8),
            DType::F16 => 2f64.powi(-11),
            _ => 0.0,
        };
        let off = 4.0 * half + 1e-5;
        let many = given.ids.len() > Experts::FEW;
        for (pair, (id, weight)) in given.ids.iter().zip(&given.weights).enumerate() {
            let (row, expert) = (pair / given.each, *id as usize);
            let x = given.x[row * hidden..][..hidden].iter();
            let x: Vec<f64> = x.map(|x| f64::from(*x)).collect();
            let inner = self
                .inner
                .iter()
                .flat_map(|part| part.times(expert, &x, many));
            let mut inner: Vec<f64> = inner.collect();
            let add = |y: &mut [f64], which: usize| {
                if let Some(biases) = &self.biases {
                    let bias = biases[which].chunks(y.len()).nth(expert);
                    let bias = bias.expect("a bias for each expert");
                    y.iter_mut()
                        .zip(bias)
                        .for_each(|(y, b)| *y += f64::from(*b));
                }
            };
            add(&mut inner, 0);
            let between = gated(self.kind.activation, &inner);
            assert_eq!(between.len(), size);
            let mut outer = self.outer.times(expert, &between, many);
            add(&mut outer, 1);
            for (y, outer) in y[row * hidden..][..hidden].iter_mut().zip(outer) {
                *y += f64::from(*weight) * outer;
            }
            let doubt = self.outer.doubt(expert, &between, many, off);
            for (sum, doubt) in doubts[row * hidden..][..hidden].iter_mut().zip(doubt) {
                *sum += f64::from(*weight).abs() * doubt;
            }
        }
        if self.kind.shared == Shared::None {
            return (y, doubts);
        }
        let gate = gate(hidden);
        let rows = y.chunks_mut(hidden).zip(given.x.chunks(hidden));
        for ((y, x), shared) in rows.zip(given.shared.chunks(hidden)) {
            let factor = match self.kind.shared {
                Shared::None | Shared::Rows => 1.0,
                Shared::Gated => {
                    let products = x
                        .iter()
                        .zip(&gate)
                        .map(|(x, g)| f64::from(*x) * f64::from(*g));
                    1.0 / (1.0 + (-products.sum::<f64>()).exp())
                }
            };
            for (y, shared) in y.iter_mut().zip(shared) {
                *y += factor * f64::from(*shared);
            }
        }
        (y, doubts)
    }
}

/// What x is multiplied with for the gate of what is shared.
fn gate(hidden: usize) -> Vec<f32> {
    (0..hidden).map(|i| 0.3 * number(i + 77)).collect()
}

/// How many rows there are, and experts for each of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    rows: usize,
    each: usize,
    /// The one expert that all choose.
    only: Option<i32>,
}

pub(super) fn spread(rows: usize, each: usize) -> Choice {
    let only = None;
    Choice { rows, each, only }
}

pub(super) fn alone(rows: usize) -> Choice {
    let (each, only) = (1, Some(3));
    Choice { rows, each, only }
}

/// Rows of x, and the experts that are chosen for them.
pub(super) struct Given {
    pub(super) rows: usize,
    pub(super) each: usize,
    pub(super) x: Vec<f32>,
    /// What an expert for every row gives.
    pub(super) shared: Vec<f32>,
    pub(super) ids: Vec<i32>,
    pub(super) weights: Vec<f32>,
}

impl Choice {
    /// Rows of numbers that `dtype` has.
    pub(super) fn given(self, hidden: usize, dtype: DType) -> Given {
        let Self { rows, each, only } = self;
        // The experts of a row differ, and come in either order.
        let id = |pair: usize| {
            let (row, j) = (pair / each, pair % each);
            let turn = if row.is_multiple_of(2) { j } else { 4 - j };
            only.unwrap_or(USED[(7 * row + row / 3 + turn) % 4])
        };
        Given {
            rows,
            each,
            x: (0..rows * hidden)
                .map(|i| rounded(dtype, number(i)))
                .collect(),
            shared: (0..rows * hidden)
                .map(|i| rounded(dtype, number(i + 5)))
                .collect(),
            ids: (0..rows * each).map(id).collect(),
            weights: (0..rows * each).map(|i| 0.5 + 0.4 * number(i)).collect(),
        }
    }
}
