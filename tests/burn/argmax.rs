//! The largest element of each part of rows, against a search on the host.

use crate::values::{data, floats, number};
use crate::{Cuda, Fused, Vulkan};
use burn::tensor::{DType, TensorMetadata};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{ArgMax, Operation};
use butterfly::{AttentionBackend, run};

/// What the operation says about each part of rows of so many elements.
fn found<B: AttentionBackend>(
    numbers: &[f32],
    [rows, row, part]: [usize; 3],
    dtype: DType,
    device: &B::Device,
) -> Vec<[i32; 3]> {
    let x = floats::<B>(numbers, &[1, rows, row], dtype, device);
    let outputs = run::<B>(&Operation::ArgMax(ArgMax { part }).into(), vec![x]);
    let output = outputs.expect("a search").into_iter().next().expect("one");
    assert_eq!(output.shape().to_vec(), [1, rows, row.div_ceil(part), 3]);
    // Devices cannot copy tensors without elements.
    if rows == 0 {
        return Vec::new();
    }
    let found = data::<B>(output).into_vec::<i32>().expect("i32");
    found.as_chunks().0.to_vec()
}

/// Elements that every type holds: each occurs several times, and none is 0.
fn element(seed: usize) -> f32 {
    (number(seed) * 40.0).round() / 8.0 + 0.0625
}

fn agrees<B: AttentionBackend>(dtypes: &[DType], device: &B::Device) {
    let sizes = [
        [1, 1, 2048],
        [3, 7, 4],
        [2, 256, 64],
        [5, 2050, 256],
        [1, 4099, 2048],
        [2, 32_000, 2048],
        [1, 248_320, 2048],
        [1, 5000, 5000],
    ];
    for dtype in dtypes {
        for (case, [rows, row, part]) in sizes.into_iter().enumerate() {
            let numbers: Vec<f32> = (0..rows * row).map(|i| element(case << 20 | i)).collect();
            let got = found::<B>(&numbers, [rows, row, part], *dtype, device);
            let mut got = got.into_iter();
            for row in numbers.chunks(row) {
                for (number, elements) in row.chunks(part).enumerate() {
                    let most = elements.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let first = elements.iter().position(|x| *x == most).expect("one");
                    let [index, bits, bad] = got.next().expect("a part");
                    let value = f32::from_bits(bits.cast_unsigned());
                    let want = (number * part + first, most, 0);
                    assert_eq!((index as usize, value, bad), want, "{dtype:?}, case {case}");
                }
            }
        }
    }
}

/// NaN and infinities are counted in the part where they are, and numbers below all others are found.
fn counts_what_is_not_finite<B: AttentionBackend>(device: &B::Device) {
    let mut numbers = vec![f32::MIN; 3 * 1024];
    numbers[1024] = f32::NAN;
    numbers[1027] = f32::INFINITY;
    numbers[2047] = f32::NEG_INFINITY;
    numbers[1025] = -f32::NAN;
    let got = found::<B>(&numbers, [1, 3072, 1024], DType::F32, device);
    let lowest = f32::MIN.to_bits().cast_signed();
    assert_eq!([got[0], got[2]], [[0, lowest, 0], [2048, lowest, 0]]);
    assert_eq!(got[1][2], 4);
    found::<B>(&[], [0, 5, 4], DType::F32, device);
}

#[test]
fn cpu_finds_the_largest() {
    agrees::<Flex>(&[DType::F32, DType::F16, DType::BF16], &Default::default());
    counts_what_is_not_finite::<Flex>(&Default::default());
}

#[test]
fn vulkan_finds_the_largest() {
    agrees::<Vulkan>(&[DType::F32], &WgpuDevice::Cpu);
    agrees::<Fused>(&[DType::F32], &WgpuDevice::Cpu);
    counts_what_is_not_finite::<Vulkan>(&WgpuDevice::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_finds_the_largest() {
    let dtypes = [DType::F32, DType::F16, DType::BF16];
    agrees::<Cuda>(&dtypes, &Default::default());
    counts_what_is_not_finite::<Cuda>(&Default::default());
}

#[test]
fn parts_of_no_elements_are_refused() {
    let x = floats::<Flex>(&[1.0, 2.0], &[1, 1, 2], DType::F32, &Default::default());
    let outputs = run::<Flex>(&Operation::ArgMax(ArgMax { part: 0 }).into(), vec![x]);
    let error = outputs.expect_err("refused").to_string();
    assert_eq!(error, "argmax: part is 0, but must be at least 1");
    let none = floats::<Flex>(&[], &[1, 1, 0], DType::F32, &Default::default());
    let outputs = run::<Flex>(&Operation::ArgMax(ArgMax { part: 4 }).into(), vec![none]);
    let error = outputs.expect_err("refused").to_string();
    assert!(error.contains("at least one element in a row"), "{error}");
}
