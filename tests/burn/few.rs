//! Products of a few rows with packed weights by generated kernels on Hopper, against f64, and how fast they are.

use crate::Cuda;
use crate::values::{bits, floats, number, rounded};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorPrimitive};
use butterfly::ops::{Activation, Operation, Packed, Part, Products, Project, Rows, Storage};
use butterfly::{AttentionBackend, Plan, run};
use butterfly_ir::Dtype;
use half::{bf16, f16};
use std::time::Instant;

/// Every format that there are kernels for, with every type of scales.
pub(crate) const FORMATS: [Packed; 8] = [
    affine(32, Dtype::F16),
    affine(64, Dtype::Bf16),
    affine(64, Dtype::F32),
    affine(128, Dtype::F16),
    Packed::float8(Dtype::F32),
    Packed::float8(Dtype::Bf16),
    Packed::float8(Dtype::F16),
    Packed::Microscaled,
];

const fn affine(group: u32, scales: Dtype) -> Packed {
    Packed::Affine {
        bits: 4,
        group,
        scales,
    }
}

/// A weight, with scales with which a row of it has a length of about 1.
pub(crate) struct Weight {
    packed: Packed,
    shape: [usize; 2],
    tensors: Vec<Vec<u8>>,
}

impl Weight {
    pub(crate) fn new(packed: Packed, [rows, columns]: [usize; 2]) -> Self {
        let sizes = packed.sizes(rows, columns).expect("whole groups");
        let code = |i: usize| (bits(i) >> 56) as u8;
        let mut codes: Vec<u8> = (0..sizes[0]).map(code).collect();
        let largest = 1.0 / (columns as f32).sqrt();
        let numbers = |bytes: usize, scales: Dtype, most: f32| -> Vec<u8> {
            let count = bytes / scales.bytes() as usize;
            let numbers = (0..count).map(|i| most * number(i + bytes));
            numbers.flat_map(|x| stored(scales, x)).collect()
        };
        let others = match packed {
            Packed::Affine { scales, .. } => vec![
                numbers(sizes[1], scales, largest / 8.0),
                numbers(sizes[2], scales, largest),
            ],
            Packed::Float8 { scales, .. } => {
                // Not NaN.
                let nan = codes.iter_mut().filter(|code| **code & 0x7f == 0x7f);
                nan.for_each(|code| *code = 0);
                vec![numbers(sizes[1], scales, largest / 64.0)]
            }
            Packed::Microscaled => {
                let middle = 127.0 + largest.log2();
                let scales = (0..sizes[1]).map(|i| middle as u8 - 3 + code(i + sizes[0]) % 4);
                vec![scales.collect()]
            }
            _ => unreachable!("the formats above"),
        };
        Self {
            packed,
            shape: [rows, columns],
            tensors: [codes].into_iter().chain(others).collect(),
        }
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        let [rows, columns] = self.shape;
        let tensors: Vec<&[u8]> = self.tensors.iter().map(Vec::as_slice).collect();
        let weight = Rows::new(Storage::Packed(self.packed), self.shape, &tensors);
        let weight = weight.expect("a weight");
        let mut values = vec![0.0; rows * columns];
        for (row, values) in values.chunks_mut(columns).enumerate() {
            weight.unpack(row, values);
        }
        values
    }

    pub(crate) fn part(&self) -> Part {
        Part {
            storage: Storage::Packed(self.packed),
            rows: self.shape[0],
        }
    }

    pub(crate) fn upload<B: AttentionBackend>(&self, device: &B::Device) -> Vec<FloatTensor<B>> {
        let upload = |bytes: &Vec<u8>| {
            let mut bytes = bytes.clone();
            if !B::ON_HOST {
                bytes.resize(bytes.len().next_multiple_of(4), 0xff);
            }
            let length = bytes.len();
            let data = TensorData::from_bytes_vec(bytes, [length], DType::U8);
            B::integers(B::int_from_data(data, device))
        };
        self.tensors.iter().map(upload).collect()
    }
}

/// A number in as many bytes as its type has.
fn stored(dtype: Dtype, x: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => x.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
    }
}

fn project(parts: &[&Weight]) -> Operation {
    Operation::Project(Project {
        parts: parts.iter().map(|weight| weight.part()).collect(),
        wide: false,
        gate: None,
        products: Products::default(),
        grouped: Plan::dense().grouped(),
    })
}

fn product(operation: &Operation, inputs: Vec<FloatTensor<Cuda>>) -> FloatTensor<Cuda> {
    let outputs = run::<Cuda>(&operation.clone().into(), inputs).expect("a product");
    outputs.into_iter().next().expect("one output")
}

/// Two parts, the second of which is written to columns that begin anywhere; rows that are no multiple of 16, and last
/// steps that are not whole.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_a_few_rows_times_packed_weights_agree_with_f64() {
    let device = Default::default();
    for (dtype, most) in [(DType::BF16, 4e-3), (DType::F16, 1e-3)] {
        for packed in FORMATS {
            let group = match packed {
                Packed::Affine { group, .. } => group as usize,
                _ => 64,
            };
            for (columns, rows) in [
                (64, 40),
                (64 * 5, 200),
                (64 * 33, 1003),
                (4096, 320),
                (64 * 96, 35),
            ] {
                let columns = columns / group.max(64) * group.max(64);
                if columns == 0 {
                    continue;
                }
                let weights = [rows, 13].map(|rows| Weight::new(packed, [rows, columns]));
                let values = weights.each_ref().map(Weight::values).concat();
                let operation = project(&[&weights[0], &weights[1]]);
                let tensors = weights
                    .each_ref()
                    .map(|weight| weight.upload::<Cuda>(&device));
                let tensors = tensors.concat();
                for m in [1, 2, 3, 7, 8] {
                    let x: Vec<f32> = (0..m * columns)
                        .map(|i| rounded(dtype, number(i + 7)))
                        .collect();
                    let mut inputs = vec![floats::<Cuda>(&x, &[m, columns], dtype, &device)];
                    inputs.extend(tensors.iter().cloned());
                    let repeated = product(&operation, inputs.clone());
                    let y = product(&operation, inputs);
                    let [y, repeated] = [y, repeated].map(|y| {
                        let y = Tensor::<Cuda, 2>::from_primitive(TensorPrimitive::Float(y));
                        crate::numbers(&y)
                    });
                    assert_eq!(y, repeated);
                    let n = rows + 13;
                    for (i, got) in y.iter().enumerate() {
                        let x = &x[i / n * columns..][..columns];
                        let w = &values[i % n * columns..][..columns];
                        let [want, size] = exact(x, w);
                        let off = (f64::from(*got) - want).abs();
                        assert!(
                            off <= most * size,
                            "{packed:?} {dtype:?} [{m}, {columns}] x {n}, {i}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
    // Else another form of the products was compared.
    let made = butterfly::compiled();
    for format in ["affine4-64-bf16", "float8-f32", "microscaled"] {
        for dtype in ["bf16", "f16"] {
            let kernel = format!("cuda:sm_90a products with packed weights {dtype} {format} 4096");
            assert!(made.contains(&kernel), "{kernel}: {made:?}");
        }
    }
}

/// The sum of products in f64, and that of their magnitudes.
pub(crate) fn exact(x: &[f32], w: &[f32]) -> [f64; 2] {
    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
    terms.fold([0.0, 0.0], |[sum, size], term| {
        [sum + term, size + term.abs()]
    })
}

/// The second half of the rows, gated by the first, of whole tiles and not; of FP8 others are two products and a gate.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_a_few_gated_rows_agree_with_f64() {
    let device = Default::default();
    for (dtype, most) in [(DType::BF16, 4e-3), (DType::F16, 1e-3)] {
        for packed in FORMATS {
            for (columns, n) in [(128, 48), (128 * 17, 203), (4096, 176), (64 * 96, 16)] {
                let weight = Weight::new(packed, [2 * n, columns]);
                let values = weight.values();
                let Operation::Project(plain) = project(&[&weight]) else {
                    unreachable!("a product");
                };
                let operation = Operation::Project(Project {
                    gate: Some(Activation::Silu),
                    ..plain
                });
                for m in [1, 5, 8] {
                    let x: Vec<f32> = (0..m * columns)
                        .map(|i| rounded(dtype, number(i + 9)))
                        .collect();
                    let mut inputs = vec![floats::<Cuda>(&x, &[m, columns], dtype, &device)];
                    inputs.extend(weight.upload::<Cuda>(&device));
                    let y = product(&operation, inputs);
                    let y = Tensor::<Cuda, 2>::from_primitive(TensorPrimitive::Float(y));
                    for (i, got) in crate::numbers(&y).iter().enumerate() {
                        let x = &x[i / n * columns..][..columns];
                        let of = |row: usize| exact(x, &values[row * columns..][..columns]);
                        let ([gate, of_gate], [value, of_value]) = (of(i % n), of(n + i % n));
                        let silu = gate / (1.0 + (-gate).exp());
                        let size = silu.abs() * of_value + 1.1 * value.abs() * of_gate;
                        let off = (f64::from(*got) - silu * value).abs();
                        assert!(
                            off <= most * size,
                            "{packed:?} {dtype:?} [{m}, {columns}] x {n}, {i}: {got}, not {}",
                            silu * value
                        );
                    }
                }
            }
        }
    }
}

/// Prints how fast weights are read: some that together do not fit into the L2 cache, one after another, and one as large
/// as these. The first includes what the host needs for a launch where that takes longer than the product.
#[test]
#[ignore = "measures an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored --nocapture cuda_speed"]
fn cuda_speed_of_a_few_rows_times_packed_weights() {
    const COPIES: usize = 8;
    const ROUNDS: usize = 40;
    let device = Default::default();
    let columns = 4096;
    for packed in [
        affine(64, Dtype::Bf16),
        affine(32, Dtype::Bf16),
        affine(128, Dtype::Bf16),
        Packed::float8(Dtype::F32),
        Packed::Microscaled,
    ] {
        for (rows, copies) in [(12_288, COPIES), (12_288 * COPIES, 1)] {
            let weight = Weight::new(packed, [rows, columns]);
            let bytes: usize = weight.tensors.iter().map(Vec::len).sum();
            let weights: Vec<_> = (0..copies)
                .map(|_| weight.upload::<Cuda>(&device))
                .collect();
            let operation = project(&[&weight]);
            for m in [1, 8] {
                let x = vec![0.5; m * columns];
                let x = floats::<Cuda>(&x, &[m, columns], DType::BF16, &device);
                let round = || {
                    for weight in &weights {
                        let inputs = [x.clone()].into_iter().chain(weight.iter().cloned());
                        product(&operation, inputs.collect());
                    }
                };
                round();
                Cuda::sync(&device).expect("a device");
                let start = Instant::now();
                (0..ROUNDS).for_each(|_| round());
                Cuda::sync(&device).expect("a device");
                let seconds = start.elapsed().as_secs_f64() / (ROUNDS * copies) as f64;
                println!(
                    "{packed:?} [{m}, {columns}] x {rows}: {:.1} us, {:.0} GB/s",
                    seconds * 1e6,
                    bytes as f64 / seconds / 1e9
                );
            }
        }
    }
}
