//! Elements on every instruction set; products against sums in f64. That elements are those of other
//! implementations is tested in `tests/burn/packed.rs`, on the set that the machine has.

use super::product::multiply_with;
use super::{Isa, Rows};
use crate::{Packed, Storage};
use burn::tensor::DType;
use butterfly_ir::Dtype;
use half::{bf16, f16};

/// GGUF's formats, with the places of f16 in a block.
const GGUF: [(Packed, &[usize]); 11] = [
    (Packed::Q4_0, &[0]),
    (Packed::Q4_1, &[0, 2]),
    (Packed::Q5_0, &[0]),
    (Packed::Q5_1, &[0, 2]),
    (Packed::Q8_0, &[0]),
    (Packed::Q2K, &[80, 82]),
    (Packed::Q3K, &[108]),
    (Packed::Q4K, &[0, 2]),
    (Packed::Q5K, &[0, 2]),
    (Packed::Q6K, &[208]),
    (Packed::Mxfp4, &[]),
];

fn sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// All elements have the same bits on all instruction sets, also row by row.
fn same_bits(name: &str, rows: &Rows<'_>) -> Vec<f32> {
    let (n, k) = (rows.n, rows.k);
    let mut want = vec![1.0; n * k];
    rows.unpack_with(Isa::Portable, 0..n, &mut want);
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    for isa in sets() {
        let mut got = vec![1.0; n * k];
        rows.unpack_with(isa, 0..n, &mut got);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let text = || format!("{name}, {isa:?}, element {i}: {got:e}, not {want:e}");
            assert!(same(*got, *want), "{}", text());
        }
    }
    let mut one = vec![1.0; k];
    for (row, want) in want.chunks(k).enumerate() {
        rows.unpack(row, &mut one);
        let pairs = one.iter().zip(want);
        assert!(pairs.into_iter().all(|(a, b)| same(*a, *b)), "{name}");
    }
    want
}

/// Random bytes, so that scales are of any size, infinite or NaN.
#[test]
fn elements_on_all_instruction_sets() {
    for format in formats() {
        let (n, k) = (130, 256);
        let sizes = format.sizes(n, k).expect("sizes");
        let tensors: Vec<Vec<u8>> = sizes
            .iter()
            .map(|bytes| (0..*bytes).map(|i| byte(i + bytes)).collect())
            .collect();
        let rows = Rows::new(Storage::Packed(format), [n, k], &slices(&tensors));
        same_bits(&format.to_string(), &rows.expect("rows"));
    }
}

fn put(dtype: Dtype, number: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => number.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(number).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(number).to_le_bytes().to_vec(),
    }
}

#[test]
fn elements_of_dense_weights() {
    let halves = || (0..=u16::MAX).map(|bits| (bits, f16::from_bits(bits).to_f32()));
    let brains = || (0..=u16::MAX).map(|bits| (bits, bf16::from_bits(bits).to_f32()));
    let check = |dtype, pairs: Vec<(u16, f32)>| {
        let bytes: Vec<u8> = pairs
            .iter()
            .flat_map(|(bits, _)| bits.to_ne_bytes())
            .collect();
        let rows = Rows::new(Storage::Dense(dtype), [256, 256], &[&bytes]).expect("rows");
        let got = same_bits("16 bits", &rows);
        for ((_, want), got) in pairs.iter().zip(got) {
            assert!(got == *want || got.is_nan() && want.is_nan());
        }
    };
    check(DType::F16, halves().collect());
    check(DType::BF16, brains().collect());
    // Rows that are no whole pieces.
    let want: Vec<f32> = brains().map(|(_, x)| x).take(70 * 33).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&want);
    let rows = Rows::new(Storage::Dense(DType::F32), [33, 70], &[bytes]).expect("rows");
    assert_eq!(same_bits("f32", &rows), want);
}

/// Numbers in -1..1.
fn number(seed: usize) -> f32 {
    let mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn byte(seed: usize) -> u8 {
    ((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// The tensors of a weight with random codes and scales of ordinary size.
fn tensors(format: Packed, n: usize, k: usize, seed: usize) -> Vec<Vec<u8>> {
    let sizes = format.sizes(n, k).expect("sizes");
    let codes = (0..sizes[0]).map(|i| byte(seed + i)).collect();
    let mut tensors: Vec<Vec<u8>> = vec![codes];
    for (bytes, seed) in sizes[1..].iter().zip(seed..) {
        tensors.push(match format {
            Packed::Affine { scales, .. } | Packed::Float8 { scales, .. } => {
                let numbers = bytes / scales.bytes() as usize;
                (0..numbers)
                    .flat_map(|i| put(scales, number(seed + i)))
                    .collect()
            }
            _ => (0..*bytes).map(|i| 120 + byte(seed + i) % 16).collect(),
        });
    }
    let blocks = tensors[0].chunks_mut(format.block().1);
    let places = GGUF.iter().find(|(other, _)| *other == format);
    if let Some((_, places)) = places {
        for (i, block) in blocks.enumerate() {
            for place in *places {
                let half = f16::from_f32(number(seed + i + place) / 16.0);
                block[*place..place + 2].copy_from_slice(&half.to_le_bytes());
            }
            if format == Packed::Mxfp4 {
                block[0] = 120 + block[0] % 16;
            }
        }
    }
    if let Packed::Float8 { .. } = format {
        // No NaN.
        tensors[0].iter_mut().for_each(|byte| *byte &= 0xf7);
    }
    tensors
}

fn formats() -> Vec<Packed> {
    let mut formats: Vec<Packed> = GGUF.iter().map(|(format, _)| *format).collect();
    formats.push(Packed::Microscaled);
    for scales in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        formats.push(Packed::float8(scales));
        for bits in [2, 4, 8] {
            let group = 32 * bits;
            formats.push(Packed::Affine {
                bits,
                group: group.min(128),
                scales,
            });
        }
    }
    formats
}

fn packed(format: Packed, n: usize, k: usize, tensors: &[Vec<u8>]) -> Rows<'_> {
    Rows::new(Storage::Packed(format), [n, k], &slices(tensors)).expect("rows")
}

fn slices(tensors: &[Vec<u8>]) -> Vec<&[u8]> {
    tensors.iter().map(|tensor| &tensor[..]).collect()
}

#[test]
fn products_with_packed_weights() {
    for format in formats() {
        let k = 256;
        let [a, b] = [(3, 1 << 20), (18, 2 << 20)].map(|(n, seed)| tensors(format, n, k, seed));
        let weights = [packed(format, 3, k, &a), packed(format, 18, k, &b)];
        products(&format.to_string(), &weights);
    }
}

/// Enough rows for several tasks and panels.
#[test]
fn products_of_many_tasks() {
    let (format, n, k) = (Packed::Q4_1, 600, 512);
    let tensors = tensors(format, n, k, 3);
    let weight = packed(format, n, k, &tensors);
    products("many", &[weight]);
}

/// Two formats side by side, and rows that end within a piece.
#[test]
fn products_with_ragged_weights() {
    for k in [8, 40, 296] {
        for (dtype, stored) in [
            (Dtype::F32, DType::F32),
            (Dtype::F16, DType::F16),
            (Dtype::Bf16, DType::BF16),
        ] {
            let bytes = |n: usize| (0..n * k).flat_map(|i| put(dtype, number(i * 3)));
            let dense: Vec<u8> = bytes(7).collect();
            let format = Packed::float8(dtype);
            let float8 = tensors(format, 130, k, 5);
            let weights = [
                Rows::new(Storage::Dense(stored), [7, k], &[&dense]).expect("rows"),
                packed(format, 130, k, &float8),
            ];
            products(&format!("{dtype:?} and FP8, K {k}"), &weights);
        }
    }
}

/// Products with these weights side by side are those in f64 of their elements, and do not depend on
/// the number of threads.
fn products(name: &str, weights: &[Rows<'_>]) {
    let k = weights[0].k;
    let elements: Vec<f32> = weights
        .iter()
        .flat_map(|weight| {
            let mut elements = vec![0.0; weight.n * k];
            weight.unpack_with(Isa::best(), 0..weight.n, &mut elements);
            elements
        })
        .collect();
    let n = elements.len() / k;
    let pools = [1, 2].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    });
    for m in [0, 1, 2, 3, 8, 9, 64] {
        let x: Vec<f32> = (0..m * k).map(|i| number(i + 77)).collect();
        for isa in sets() {
            let run = |pool: &rayon::ThreadPool| {
                let mut y = vec![f32::NAN; m * n];
                pool.install(|| multiply_with(isa, &x, (m, false), weights, &mut y));
                y
            };
            let [one, two] = pools.each_ref().map(run);
            for (i, (one, two)) in one.iter().zip(&two).enumerate() {
                assert_eq!(
                    one.to_bits(),
                    two.to_bits(),
                    "{name}, {isa:?}, M {m}, at {i}"
                );
                let (x, w) = (&x[i / n * k..][..k], &elements[i % n * k..][..k]);
                let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let want: f64 = terms.sum();
                // What is added to codes may cancel most of an element.
                let largest = w.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
                let size: f32 = x.iter().map(|x| x.abs()).sum();
                let off = (f64::from(*one) - want).abs();
                let allowed = f64::from(largest * size) * 2e-6;
                assert!(
                    off <= allowed,
                    "{name}, {isa:?}, M {m}, at {i}: {one}, not {want}"
                );
            }
        }
    }
}

/// What is no number stays none, in the row where it stands and nowhere else.
#[test]
fn products_with_infinite_scales() {
    let (format, k) = (Packed::Q4_1, 64);
    let mut tensors = tensors(format, 3, k, 9);
    let row = tensors[0].len() / 3;
    tensors[0][row..row + 2].copy_from_slice(&f16::NAN.to_le_bytes());
    tensors[0][2 * row..2 * row + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    let weight = packed(format, 3, k, &tensors);
    for (m, isa) in [1, 2, 4, 9]
        .into_iter()
        .flat_map(|m| sets().map(move |isa| (m, isa)))
    {
        let mut y = vec![0.0; 3 * m];
        multiply_with(isa, &vec![0.5; m * k], (m, false), &[weight], &mut y);
        for y in y.chunks(3) {
            assert!(y[0].is_finite() && y[1].is_nan() && !y[2].is_finite());
        }
    }
}
