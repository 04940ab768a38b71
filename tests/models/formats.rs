//! Packed weights of random numbers, and the same numbers unpacked.

use butterfly::Dtype;
use butterfly::ops::{Packed, Rows, Storage};

/// Formats of GGUF with the numbers of their types, and where blocks hold scales of 16 bits.
pub(crate) const BLOCKS: [(Packed, u32, &[usize]); 11] = [
    (Packed::Q4_0, 2, &[0]),
    (Packed::Q4_1, 3, &[0, 2]),
    (Packed::Q5_0, 6, &[0]),
    (Packed::Q5_1, 7, &[0, 2]),
    (Packed::Q8_0, 8, &[0]),
    (Packed::Q2K, 10, &[80, 82]),
    (Packed::Q3K, 11, &[108]),
    (Packed::Q4K, 12, &[0, 2]),
    (Packed::Q5K, 13, &[0, 2]),
    (Packed::Q6K, 14, &[208]),
    (Packed::Mxfp4, 39, &[]),
];

/// Formats of folders.
pub(crate) const GROUPS: [Packed; 5] = [
    affine(2, 32, Dtype::F32),
    affine(4, 64, Dtype::Bf16),
    affine(4, 128, Dtype::F16),
    affine(8, 64, Dtype::Bf16),
    Packed::float8(Dtype::Bf16),
];

pub(crate) const fn affine(bits: u32, group: u32, scales: Dtype) -> Packed {
    Packed::Affine {
        bits,
        group,
        scales,
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn byte(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }

    /// From -1 to 1.
    pub(crate) fn float(&mut self) -> f32 {
        f32::from(self.byte()) / 127.5 - 1.0
    }
}

/// The tensors of a random weight.
pub(crate) fn random(
    packed: Packed,
    [rows, columns]: [usize; 2],
    random: &mut Random,
) -> Vec<Vec<u8>> {
    let sizes = packed.sizes(rows, columns).expect("whole blocks");
    let bytes = |size: usize, random: &mut Random| (0..size).map(|_| random.byte()).collect();
    let mut tensors: Vec<Vec<u8>> = sizes.iter().map(|size| bytes(*size, random)).collect();
    let small = |random: &mut Random| random.float() * 0.004;
    if let Some((_, _, scales)) = BLOCKS.iter().find(|(other, ..)| *other == packed) {
        let (_, size) = packed.block();
        for block in tensors[0].chunks_mut(size) {
            for at in *scales {
                let scale = half::f16::from_f32(small(random)).to_le_bytes();
                block[*at..at + 2].copy_from_slice(&scale);
            }
            if scales.is_empty() {
                block[0] = 118 + block[0] % 5;
            }
        }
    }
    let floats = |bytes: &mut [u8], dtype: Dtype, random: &mut Random| {
        for bytes in bytes.chunks_mut(dtype.bytes() as usize) {
            let x = small(random);
            match dtype {
                Dtype::F32 => bytes.copy_from_slice(&x.to_le_bytes()),
                Dtype::F16 => bytes.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
                Dtype::Bf16 => bytes.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
            }
        }
    };
    match packed {
        Packed::Affine { scales, .. } => {
            for tensor in &mut tensors[1..] {
                floats(tensor, scales, random);
            }
        }
        Packed::Float8 { scales, .. } => {
            for byte in &mut tensors[0] {
                // Neither NaN nor far from 1.
                *byte &= 0xbf;
            }
            floats(&mut tensors[1], scales, random);
        }
        _ => {}
    }
    tensors
}

/// The elements of a weight, in f32.
pub(crate) fn unpacked(
    packed: Packed,
    [rows, columns]: [usize; 2],
    tensors: &[Vec<u8>],
) -> Vec<f32> {
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let weight = Rows::new(Storage::Packed(packed), [rows, columns], &tensors).expect("rows");
    let mut values = vec![0.0; rows * columns];
    for (row, out) in values.chunks_mut(columns).enumerate() {
        weight.unpack(row, out);
    }
    values
}
