//! Weights of experts in every way of storing them, and their values.

use super::COUNT;
use crate::quantised;
use crate::values::{bits, floats, number, rounded};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use butterfly::AttentionBackend;
use butterfly::ops::{Activations, Packed, Rows, Section, Storage};
use butterfly_ir::Dtype;
use half::f16;

pub(super) const DENSE: Storage = Storage::Dense(DType::F32);
pub(super) const F16: Storage = Storage::Dense(DType::F16);
pub(super) const BF16: Storage = Storage::Dense(DType::BF16);
pub(super) const Q4_0: Storage = Storage::Packed(Packed::Q4_0);
pub(super) const MXFP4: Storage = Storage::Packed(Packed::Mxfp4);
pub(super) const MICROSCALED: Storage = Storage::Packed(Packed::Microscaled);
pub(super) const AFFINE: Storage = Storage::Packed(Packed::Affine {
    bits: 4,
    group: 32,
    scales: Dtype::F16,
});
pub(super) const FLOAT8: Storage = Storage::Packed(Packed::float8(Dtype::F32));
/// Rows become FP8 too.
pub(super) const QUANTISED: Storage = Storage::Packed(Packed::Float8 {
    scales: Dtype::F32,
    activations: Activations::Float8,
});

/// Some rows of the weight of each expert.
pub(super) struct Part {
    pub(super) section: Section,
    columns: usize,
    /// [experts, rows, columns].
    values: Vec<f32>,
    /// If they are packed, the bytes of the tensors of each expert.
    packed: Vec<Vec<Vec<u8>>>,
}

impl Part {
    pub(super) fn new(storage: Storage, shape: [usize; 2], joined: bool, seed: usize) -> Self {
        let [rows, columns] = shape;
        // So far apart that experts have no numbers in common.
        let seeds = (0..COUNT).map(|expert| (seed * COUNT + expert) << 24);
        let (values, packed): (Vec<f32>, Vec<_>) = match storage {
            Storage::Dense(dtype) => {
                let values = seeds.flat_map(|seed| dense(dtype, shape, seed));
                (values.collect(), Vec::new())
            }
            Storage::Packed(packed) => {
                let tensors: Vec<_> = seeds.map(|seed| tensors(packed, shape, seed)).collect();
                let values = tensors.iter();
                let values = values.flat_map(|tensors| unpacked(storage, shape, tensors));
                (values.collect(), tensors)
            }
        };
        Self {
            section: Section {
                storage,
                rows,
                joined,
            },
            columns,
            values,
            packed,
        }
    }

    /// The rows of an expert times x, in f64. If x is one of `many` rows, it is rounded where that is wanted.
    pub(super) fn times(&self, expert: usize, x: &[f64], many: bool) -> Vec<f64> {
        let x = match many && self.section.storage == QUANTISED {
            true => quantised::rows(x, x.len()),
            false => x.to_vec(),
        };
        self.sums(expert, |w, column| w * x[column])
    }

    /// How far results of [`times`](Self::times) are from those of another x at most, of which every element is a share of
    /// up to `off` smaller or larger and therefore rounded to another number of FP8. Zeros if x is not rounded.
    pub(super) fn doubt(&self, expert: usize, x: &[f64], many: bool, off: f64) -> Vec<f64> {
        if !many || self.section.storage != QUANTISED {
            return vec![0.0; self.section.rows];
        }
        let scaled = |factor: f64| -> Vec<f64> {
            let x: Vec<f64> = x.iter().map(|x| factor * x).collect();
            quantised::rows(&x, x.len())
        };
        let [low, as_is, high] = [1.0 - off, 1.0, 1.0 + off].map(scaled);
        self.sums(expert, |w, column| {
            let [low, high] = [&low, &high].map(|x| (x[column] - as_is[column]).abs());
            w.abs() * low.max(high)
        })
    }

    /// For each row of an expert, the sum of what weights and their columns become.
    fn sums(&self, expert: usize, term: impl Fn(f64, usize) -> f64) -> Vec<f64> {
        let each = self.section.rows * self.columns;
        let rows = self.values[expert * each..][..each].chunks(self.columns);
        let sum = |row: &[f32]| -> f64 {
            let columns = row.iter().enumerate();
            columns.map(|(column, w)| term(f64::from(*w), column)).sum()
        };
        rows.map(sum).collect()
    }

    /// The tensors as inputs of the operation.
    pub(super) fn upload<B: AttentionBackend>(&self, device: &B::Device) -> Vec<FloatTensor<B>> {
        let Section {
            storage,
            rows,
            joined,
        } = self.section;
        if let Storage::Dense(dtype) = storage {
            let rows = if joined { COUNT * rows } else { rows };
            let pieces = self.values.chunks(rows * self.columns);
            let shape = [rows, self.columns];
            return pieces
                .map(|values| floats::<B>(values, &shape, dtype, device))
                .collect();
        }
        let tensors = match joined {
            true => joined_bytes(&self.packed),
            false => self.packed.concat(),
        };
        let tensors = tensors.into_iter().map(|mut bytes| {
            if !B::ON_HOST {
                bytes.resize(bytes.len().next_multiple_of(4), 0xff);
            }
            let length = bytes.len();
            let data = TensorData::from_bytes_vec(bytes, [length], DType::U8);
            B::integers(B::int_from_data(data, device))
        });
        tensors.collect()
    }
}

/// Each tensor with the bytes of all experts, one after another.
fn joined_bytes(experts: &[Vec<Vec<u8>>]) -> Vec<Vec<u8>> {
    let tensor = |i: usize| -> Vec<u8> {
        let bytes = experts.iter().flat_map(|tensors| &tensors[i]);
        bytes.copied().collect()
    };
    (0..experts[0].len()).map(tensor).collect()
}

/// The largest weight, with which products of rows are about as large as the rows.
fn largest(columns: usize) -> f32 {
    (3.0 / columns as f32).sqrt()
}

fn dense(dtype: DType, [rows, columns]: [usize; 2], seed: usize) -> Vec<f32> {
    let largest = largest(columns);
    let weight = |i: usize| rounded(dtype, largest * number(seed + i));
    (0..rows * columns).map(weight).collect()
}

/// The bytes of a packed weight, with scales of ordinary size.
fn tensors(packed: Packed, [rows, columns]: [usize; 2], seed: usize) -> Vec<Vec<u8>> {
    let largest = largest(columns);
    let sizes = packed.sizes(rows, columns).expect("whole blocks");
    let scaled = |tensor: usize, i: usize| largest * number(seed + (tensor << 20) + i);
    let code = |i: usize| (bits(seed + i) >> 56) as u8;
    let mut codes: Vec<u8> = (0..sizes[0]).map(code).collect();
    let (_, block) = packed.block();
    match packed {
        Packed::Q4_0 => {
            for (i, block) in codes.chunks_exact_mut(block).enumerate() {
                let scale = f16::from_f32(scaled(1, i) / 8.0);
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        // Powers of two from 1/128 to 1/16.
        Packed::Mxfp4 => {
            for block in codes.chunks_exact_mut(block) {
                block[0] = 120 + block[0] % 4;
            }
        }
        // Below 1, and not NaN.
        Packed::Float8 { .. } => codes.iter_mut().for_each(|code| *code &= 0xb7),
        _ => {}
    }
    let mut tensors = vec![codes];
    match packed {
        Packed::Affine { .. } => {
            let half = |x: f32| f16::from_f32(x).to_le_bytes();
            let scales = (0..sizes[1] / 2).flat_map(|i| half(scaled(1, i) / 8.0));
            let biases = (0..sizes[2] / 2).flat_map(|i| half(scaled(2, i)));
            tensors.push(scales.collect());
            tensors.push(biases.collect());
        }
        Packed::Float8 { .. } => {
            let scales = (0..sizes[1] / 4).flat_map(|i| (2.0 * scaled(1, i)).to_le_bytes());
            tensors.push(scales.collect());
        }
        // As those of `Mxfp4`.
        Packed::Microscaled => {
            let scales = (0..sizes[1]).map(|i| 120 + code(sizes[0] + i) % 4);
            tensors.push(scales.collect());
        }
        _ => assert_eq!(sizes.len(), 1, "{packed}"),
    }
    tensors
}

fn unpacked(storage: Storage, shape: [usize; 2], tensors: &[Vec<u8>]) -> Vec<f32> {
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let weight = Rows::new(storage, shape, &tensors).expect("a weight");
    let [rows, columns] = shape;
    let mut values = vec![0.0; rows * columns];
    for (row, values) in values.chunks_mut(columns).enumerate() {
        weight.unpack(row, values);
    }
    values
}
