//! Products of norms against f64: what is added, norms and products, by one kernel or by several.

use crate::few::{FORMATS, Weight};
use crate::values::{floats, number, rounded};
use crate::{Cuda, Vulkan};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata, TensorPrimitive};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{
    Activation, Added, Choose, Joined, Normed, Operation, Part, Products, Project, Route, Storage,
};
use butterfly::{AttentionBackend, OperationError, Plan, run};
use butterfly_ir::model::{Router, Scores};

const EPSILON: f32 = 1e-5;

/// A weight, of which all parts are packed, or one of floats of a type.
enum Stored {
    Packed(Vec<Weight>),
    Floats(DType, [usize; 2]),
}

impl Stored {
    fn values(&self) -> Vec<f32> {
        match self {
            Self::Packed(parts) => parts.iter().flat_map(Weight::values).collect(),
            Self::Floats(dtype, [rows, columns]) => {
                let scale = 1.0 / (*columns as f32).sqrt();
                let value = |i| rounded(*dtype, scale * number(i + 3));
                (0..rows * columns).map(value).collect()
            }
        }
    }

    fn parts(&self) -> Vec<Part> {
        match self {
            Self::Packed(parts) => parts.iter().map(Weight::part).collect(),
            Self::Floats(dtype, [rows, _]) => vec![Part {
                storage: Storage::Dense(*dtype),
                rows: *rows,
            }],
        }
    }

    fn upload<B: AttentionBackend>(&self, device: &B::Device) -> Vec<FloatTensor<B>> {
        match self {
            Self::Packed(parts) => {
                let parts = parts.iter().map(|part| part.upload::<B>(device));
                parts.collect::<Vec<_>>().concat()
            }
            Self::Floats(dtype, shape) => {
                vec![floats::<B>(&self.values(), shape, *dtype, device)]
            }
        }
    }
}

/// So many rows of so many elements, what is added to them, and what is done with the norms.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    columns: usize,
    added: Added,
    terms: usize,
    keep: bool,
    wide: bool,
    gate: Option<Activation>,
}

/// What is given to an operation, in floats that its types have.
struct Given {
    x: Vec<f32>,
    added: Vec<f32>,
    factors: Vec<f32>,
    norm: Vec<f32>,
}

impl Case {
    fn given(&self, dtype: DType) -> Given {
        let Self {
            rows,
            columns,
            terms,
            ..
        } = *self;
        let count = rows * columns;
        Given {
            x: (0..count).map(|i| 2.0 * number(i + 11)).collect(),
            added: (0..count * terms)
                .map(|i| rounded(dtype, number(i + 5)))
                .collect(),
            factors: (0..rows * terms).map(|i| 0.4 * number(i + 1)).collect(),
            norm: (0..columns).map(|i| 1.0 + 0.5 * number(i)).collect(),
        }
    }

    fn operation(&self, dtype: DType, parts: Vec<Part>) -> Operation {
        Operation::Normed(Normed {
            added: self.added,
            epsilon: EPSILON,
            dtype,
            keep: self.keep,
            project: Project {
                parts: parts.into(),
                wide: self.wide,
                gate: self.gate,
                products: Products::default(),
                grouped: Plan::dense().grouped(),
            },
        })
    }

    fn inputs<B: AttentionBackend>(
        &self,
        (given, dtype): (&Given, DType),
        weight: &Stored,
        device: &B::Device,
    ) -> Vec<FloatTensor<B>> {
        let Self {
            rows,
            columns,
            terms,
            ..
        } = *self;
        let mut inputs = vec![floats::<B>(
            &given.x,
            &[1, rows, columns],
            DType::F32,
            device,
        )];
        match self.added {
            Added::None => {}
            Added::Rows => {
                inputs.push(floats::<B>(
                    &given.added,
                    &[1, rows, columns],
                    dtype,
                    device,
                ));
            }
            Added::Weighted => {
                let shape = [1, rows, terms, columns];
                inputs.push(floats::<B>(&given.added, &shape, dtype, device));
                let shape = [1, rows, terms];
                inputs.push(floats::<B>(&given.factors, &shape, DType::F32, device));
            }
        }
        inputs.push(floats::<B>(&given.norm, &[columns], DType::F32, device));
        inputs.extend(weight.upload::<B>(device));
        inputs
    }

    /// Sums, norms, products, and the magnitudes of what products add up.
    fn reference(&self, given: &Given, weight: &[f32]) -> [Vec<f64>; 4] {
        let Self { columns, terms, .. } = *self;
        let mut sums: Vec<f64> = given.x.iter().map(|x| f64::from(*x)).collect();
        for (number, row) in given.added.chunks(columns).enumerate() {
            let factor = match self.added {
                Added::Weighted => f64::from(given.factors[number]),
                Added::None | Added::Rows => 1.0,
            };
            let to = &mut sums[number / terms * columns..][..columns];
            for (sum, x) in to.iter_mut().zip(row) {
                *sum += factor * f64::from(*x);
            }
        }
        let mut norms = Vec::new();
        for row in sums.chunks(columns) {
            let square: f64 = row.iter().map(|x| x * x).sum();
            let factor = (square / columns as f64 + f64::from(EPSILON)).sqrt();
            let scaled = row.iter().zip(&given.norm);
            norms.extend(scaled.map(|(x, scale)| x / factor * f64::from(*scale)));
        }
        let (mut products, mut sizes) = (Vec::new(), Vec::new());
        for row in norms.chunks(columns) {
            let of = |w: &[f32]| {
                let terms = row.iter().zip(w).map(|(x, w)| x * f64::from(*w));
                terms.fold([0.0, 0.0], |[sum, size], term| {
                    [sum + term, size + term.abs()]
                })
            };
            let all: Vec<[f64; 2]> = weight.chunks(columns).map(of).collect();
            match self.gate {
                None => all.iter().for_each(|[sum, size]| {
                    products.push(*sum);
                    sizes.push(*size);
                }),
                Some(_) => {
                    let (gates, values) = all.split_at(all.len() / 2);
                    for ([gate, of_gate], [value, of_value]) in gates.iter().zip(values) {
                        let silu = gate / (1.0 + (-gate).exp());
                        products.push(silu * value);
                        sizes.push(silu.abs() * of_value + 1.1 * value.abs() * of_gate);
                    }
                }
            }
        }
        [sums, norms, products, sizes]
    }

    fn check<B: AttentionBackend>(
        &self,
        weight: &Stored,
        (dtype, most): (DType, f64),
        device: &B::Device,
    ) {
        let given = self.given(dtype);
        let operation = self.operation(dtype, weight.parts());
        let inputs = self.inputs::<B>((&given, dtype), weight, device);
        let run = || run::<B>(&operation.clone().into(), inputs.clone()).expect("a product");
        let outputs = run();
        let [sums, norms, products, sizes] = self.reference(&given, &weight.values());
        let mut wanted = Vec::new();
        if self.added != Added::None {
            // Where several kernels compute it, what experts give is rounded in between.
            let most = match self.added {
                Added::Weighted if dtype != DType::F32 => most,
                _ => 1e-5,
            };
            let sizes = sums.iter().map(|sum| sum.abs() + 1.0).collect();
            wanted.push((DType::F32, sums, sizes, most));
        }
        if self.keep {
            let added = if self.added == Added::Weighted {
                0.5
            } else {
                0.0
            };
            let sizes = norms.iter().map(|norm| norm.abs() + added).collect();
            wanted.push((dtype, norms, sizes, most));
        }
        let of_product = if self.wide { DType::F32 } else { dtype };
        wanted.push((of_product, products, sizes, most));
        assert_eq!(outputs.len(), wanted.len());
        for (output, (kind, want, sizes, most)) in outputs.into_iter().zip(wanted) {
            assert_eq!(output.dtype(), kind);
            let got = numbers::<B>(output);
            assert_eq!(got.len(), want.len());
            for (i, got) in got.iter().enumerate() {
                let off = (f64::from(*got) - want[i]).abs();
                assert!(
                    off <= most * sizes[i].abs().max(1e-2),
                    "{self:?} {dtype:?} {kind:?} {i}: {got}, not {}",
                    want[i]
                );
            }
        }
        let bits = |outputs: Vec<FloatTensor<B>>| -> Vec<u32> {
            let numbers = outputs.into_iter().flat_map(numbers::<B>);
            numbers.map(f32::to_bits).collect()
        };
        assert_eq!(bits(run()), bits(run()));
    }
}

fn numbers<B: AttentionBackend>(x: FloatTensor<B>) -> Vec<f32> {
    let x = Tensor::<B, 3>::from_primitive(TensorPrimitive::Float(x));
    let data = x.into_data().convert::<f32>();
    data.into_vec().expect("f32")
}

/// Everything that can be added.
const ADDED: [(Added, usize); 4] = [
    (Added::None, 0),
    (Added::Rows, 1),
    (Added::Weighted, 1),
    (Added::Weighted, 9),
];

/// Every way to add, with norms kept or not, gates or products in f32 or not.
fn cases(rows: usize, columns: usize) -> Vec<Case> {
    let case = |i: usize, (added, terms)| Case {
        rows,
        columns,
        added,
        terms,
        keep: i % 2 == 1,
        wide: false,
        gate: (i / 2 % 2 == 1).then_some(Activation::Silu),
    };
    let plain = ADDED.into_iter().enumerate().map(|(i, one)| case(i, one));
    let gated = ADDED
        .into_iter()
        .enumerate()
        .map(|(i, one)| case(i + 2, one));
    let wide = plain.clone().map(|case| Case {
        wide: true,
        gate: None,
        ..case
    });
    plain.chain(gated).chain(wide).collect()
}

fn agrees<B: AttentionBackend>(
    rows: &[usize],
    (columns, step): (usize, usize),
    weight: &Stored,
    dtype: (DType, f64),
    device: &B::Device,
) {
    let cases = rows.iter().flat_map(|rows| cases(*rows, columns));
    let parts = weight.parts();
    // Of several parts, half is not a part; nor of an odd number of rows.
    let halves = parts.len() == 1 && parts[0].rows.is_multiple_of(2);
    let cases = cases.filter(|case| case.gate.is_none() || halves);
    let wide = parts
        .iter()
        .all(|part| matches!(part.storage, Storage::Dense(_)));
    for case in cases.filter(|case| !case.wide || wide).step_by(step) {
        case.check::<B>(weight, dtype, device);
    }
}

#[test]
fn cpu_agrees_with_f64() {
    let device = Default::default();
    for packed in FORMATS {
        let weight = Stored::Packed(vec![Weight::new(packed, [40, 256])]);
        agrees::<Flex>(&[1, 3], (256, 1), &weight, (DType::F32, 1e-4), &device);
        agrees::<Flex>(&[9], (256, 3), &weight, (DType::BF16, 8e-3), &device);
    }
    let weight = Stored::Floats(DType::F32, [24, 40]);
    agrees::<Flex>(&[1, 12], (40, 1), &weight, (DType::F32, 1e-5), &device);
}

/// Each kernel is compiled, which takes longer than to run it.
#[test]
fn vulkan_agrees_with_f64() {
    let device = WgpuDevice::Cpu;
    let weight = Stored::Packed(vec![Weight::new(FORMATS[1], [24, 128])]);
    agrees::<Vulkan>(&[3], (128, 3), &weight, (DType::F32, 1e-4), &device);
    let weight = Stored::Floats(DType::F32, [24, 40]);
    agrees::<Vulkan>(&[1], (40, 4), &weight, (DType::F32, 1e-5), &device);
}

/// One kernel for all formats, numbers of rows and of elements that it takes, and several for others; second parts, whose
/// products come from kept norms; routers in f32 and in 16 bits.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_norms_of_a_few_rows_agree_with_f64() {
    let device = Default::default();
    for dtype in [(DType::BF16, 1e-2), (DType::F16, 2e-3)] {
        for (i, packed) in FORMATS.into_iter().enumerate() {
            for (columns, rows) in [(128, 48), (128 * 17, 208), (4096, 176), (128 * 40, 16)] {
                let weight = Weight::new(packed, [rows, columns]);
                let weight = Stored::Packed(vec![weight]);
                agrees::<Cuda>(&[1, 2, 8], (columns, 3), &weight, dtype, &device);
            }
            let parts = [
                Weight::new(packed, [48, 512]),
                Weight::new(FORMATS[i / 2], [13, 512]),
            ];
            let weight = Stored::Packed(parts.into());
            agrees::<Cuda>(&[1, 4], (512, 1), &weight, dtype, &device);
        }
        for stored in [dtype.0, DType::F32] {
            for shape in [[64, 2048], [257, 2048], [5, 4096], [12, 72]] {
                let weight = Stored::Floats(stored, shape);
                agrees::<Cuda>(&[1, 2, 4, 9], (shape[1], 1), &weight, dtype, &device);
            }
        }
    }
    // Else another form was compared.
    let made = butterfly::compiled();
    let kernel = "cuda:sm_90a products with packed weights bf16 affine4-64-bf16 4096";
    assert!(made.iter().any(|made| made == kernel), "{made:?}");
}

/// Choices by the products of norms, against f64.
fn chooses<B: AttentionBackend>(dtype: DType, device: &B::Device) {
    for (experts, columns, shared, stored) in [
        (64, 2048, Joined::Plain, dtype),
        (5, 72, Joined::Gated, DType::F32),
        (130, 320, Joined::None, dtype),
    ] {
        for (i, (added, terms)) in ADDED.into_iter().enumerate() {
            let case = Case {
                rows: 1 + i,
                columns,
                added,
                terms,
                keep: true,
                wide: true,
                gate: None,
            };
            let router = Router {
                scores: [Scores::Sigmoid, Scores::Softmax][i % 2],
                biased: i > 1,
                groups: None,
                normalised: i != 1,
                scale: 1.5,
            };
            let route = Route {
                chosen: 3,
                router,
                shared,
            };
            let gate = usize::from(shared == Joined::Gated);
            let weight = Stored::Floats(stored, [experts + gate, columns]);
            let given = case.given(dtype);
            let inputs = case.inputs::<B>((&given, dtype), &weight, device);
            let biases: Vec<f32> = (0..experts).map(|e| 0.3 * number(e + 9)).collect();
            let bias = floats::<B>(&biases, &[experts], DType::F32, device);
            let bias = router.biased.then_some(bias);
            let Operation::Normed(normed) = case.operation(dtype, weight.parts()) else {
                unreachable!("a product of norms");
            };
            let together = Operation::Choose(Choose { normed, route }).into();
            let inputs = inputs.into_iter().chain(bias);
            let outputs = run::<B>(&together, inputs.collect()).expect("a choice");
            let types = outputs.iter().map(|output| output.dtype());
            let mut wanted = vec![dtype, DType::I32, DType::F32];
            if added != Added::None {
                wanted.insert(0, DType::F32);
            }
            assert_eq!(types.collect::<Vec<_>>(), wanted);
            let mut outputs: Vec<_> = outputs.into_iter().map(numbers::<B>).collect();
            let [weights, ids, norms] = [0; 3].map(|_| outputs.pop().expect("an output"));
            let [sums, want, _, _] = case.reference(&given, &weight.values());
            for (got, want) in outputs.iter().flatten().zip(&sums) {
                assert!((f64::from(*got) - want).abs() <= 1e-2 * (want.abs() + 1.0));
            }
            for (got, want) in norms.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() <= 2e-2 * (want.abs() + 0.5));
            }
            // Which experts are chosen hangs on how norms were rounded: so it is by those that were kept.
            let router = RouterOf {
                route,
                weight: &weight.values(),
                bias: &biases,
            };
            let all = ids.len() / case.rows;
            let rows = norms.chunks(columns).zip(ids.chunks(all));
            for ((norm, ids), weights) in rows.zip(weights.chunks(all)) {
                router.check(norm, ids, weights);
            }
        }
    }
}

/// A router, and how it chooses.
struct RouterOf<'a> {
    route: Route,
    weight: &'a [f32],
    bias: &'a [f32],
}

impl RouterOf<'_> {
    /// Compares what was chosen for a norm with f64, as far as it does not hang on rounding.
    fn check(&self, norm: &[f32], ids: &[f32], weights: &[f32]) {
        let Route {
            chosen,
            router,
            shared,
        } = self.route;
        let product = |w: &[f32]| -> f64 {
            let terms = norm.iter().zip(w);
            terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        let mut logits: Vec<f64> = self.weight.chunks(norm.len()).map(product).collect();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let last = match shared {
            Joined::None => None,
            Joined::Plain => Some(1.0),
            Joined::Gated => logits.pop().map(sigmoid),
        };
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        let score = |x: &f64| match router.scores {
            Scores::Sigmoid => sigmoid(*x),
            Scores::Softmax => x.exp() / sum,
        };
        let scores: Vec<f64> = logits.iter().map(score).collect();
        let rank = |e: usize| {
            scores[e]
                + if router.biased {
                    f64::from(self.bias[e])
                } else {
                    0.0
                }
        };
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| rank(*b).total_cmp(&rank(*a)));
        let clear = |pair: &[usize]| rank(pair[0]) - rank(pair[1]) > 1e-5;
        let best = &order[..chosen];
        let all: f64 = best.iter().map(|e| scores[*e]).sum();
        let factor = router.scale / if router.normalised { all } else { 1.0 };
        if order.windows(2).take(chosen).all(clear) {
            for ((e, id), weight) in best.iter().zip(ids).zip(weights) {
                assert_eq!(*id, *e as f32, "{:?}", self.route);
                let want = scores[*e] * factor;
                assert!((f64::from(*weight) - want).abs() <= 1e-4 * want.max(1.0));
            }
        }
        if let Some(want) = last {
            let (id, weight) = (ids[chosen], weights[chosen]);
            assert_eq!(id, scores.len() as f32);
            assert!(
                (f64::from(weight) - want).abs() <= 1e-4,
                "{weight}, not {want}"
            );
        }
    }
}

#[test]
fn choices_by_norms_on_cpu_and_vulkan() {
    chooses::<Flex>(DType::F32, &Default::default());
    chooses::<Flex>(DType::BF16, &Default::default());
    chooses::<Vulkan>(DType::F32, &WgpuDevice::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_choices_by_norms() {
    chooses::<Cuda>(DType::BF16, &Default::default());
    chooses::<Cuda>(DType::F16, &Default::default());
}

/// Inputs that do not fit are named.
#[test]
fn wrong_inputs() {
    let device = Default::default();
    let case = Case {
        rows: 2,
        columns: 64,
        added: Added::Weighted,
        terms: 3,
        keep: true,
        wide: false,
        gate: None,
    };
    let weight = Stored::Floats(DType::F32, [8, 64]);
    let given = case.given(DType::F32);
    let inputs = case.inputs::<Flex>((&given, DType::F32), &weight, &device);
    let said = |change: &dyn Fn(&mut Vec<FloatTensor<Flex>>)| -> String {
        let mut inputs = inputs.clone();
        change(&mut inputs);
        let operation = case.operation(DType::F32, weight.parts());
        let error: OperationError = run::<Flex>(&operation.into(), inputs).expect_err("wrong");
        error.to_string()
    };
    let tensor = |shape: &[usize], dtype| {
        let count = shape.iter().product::<usize>();
        floats::<Flex>(&vec![0.5; count], shape, dtype, &device)
    };
    let added = said(&|inputs| inputs[1] = tensor(&[1, 2, 4, 64], DType::F32));
    assert!(added.contains("`added`"), "{added}");
    let factors = said(&|inputs| inputs[2] = tensor(&[1, 3, 3], DType::F32));
    assert!(factors.contains("`factors`"), "{factors}");
    let kind = said(&|inputs| inputs[2] = tensor(&[1, 2, 3], DType::F16));
    assert!(kind.contains("`factors`"), "{kind}");
    let norm = said(&|inputs| inputs[3] = tensor(&[63], DType::F32));
    assert!(norm.contains("`norm`"), "{norm}");
    let product = said(&|inputs| inputs[4] = tensor(&[8, 65], DType::F32));
    assert!(product.contains("`weight`"), "{product}");
    let count = said(&|inputs| {
        inputs.pop();
    });
    assert!(count.contains("normed: takes 5 tensors"), "{count}");
}
