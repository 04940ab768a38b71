//! Packed weights of random numbers, for measurements without a checkpoint.

use butterfly::Dtype;
use butterfly::ops::Packed;
use half::{bf16, f16};
use rayon::prelude::*;

/// The tensors of a weight of `rows` rows of `k` elements of about the deviation that random dense
/// weights have. Of blocks with scales among the codes, all bytes are random.
pub(crate) fn tensors(packed: Packed, sizes: &[usize]) -> Vec<Vec<u8>> {
    let factors = |bytes: usize, dtype, number: f32| -> Vec<u8> {
        let one = stored(dtype, number);
        one.iter().copied().cycle().take(bytes).collect()
    };
    match packed {
        Packed::Affine { bits, scales, .. } => {
            // Integers from 0 to `most` have a deviation of 0.29 * most.
            let most = f32::from((1u16 << bits) - 1);
            let scale = DEVIATION / (0.29 * most);
            vec![
                bytes(sizes[0], 0xff),
                factors(sizes[1], scales, scale),
                factors(sizes[2], scales, -scale * most / 2.0),
            ]
        }
        Packed::Float8 { scales, .. } => {
            // Without the highest bit of the exponent, floats are below 2 and none is NaN.
            let codes = bytes(sizes[0], 0xbf);
            vec![codes, factors(sizes[1], scales, 2.0 * DEVIATION)]
        }
        Packed::Microscaled => {
            // Numbers from 0 to 6 have a root mean square of 2.9; 2^(120 - 127) makes that 0.023.
            vec![bytes(sizes[0], 0xff), vec![120; sizes[1]]]
        }
        _ => sizes.iter().map(|count| bytes(*count, 0xff)).collect(),
    }
}

/// Standard deviation of weights.
pub(crate) const DEVIATION: f32 = 0.02;

/// Random bytes, of which only some bits are set: splitmix64, by all threads.
fn bytes(count: usize, mask: u8) -> Vec<u8> {
    // A whole number of words, small enough to be divided among threads.
    const SPAN: usize = 1 << 20;
    let mask = u64::from_ne_bytes([mask; 8]);
    let mut bytes = vec![0; count];
    let spans = bytes.par_chunks_mut(SPAN).enumerate();
    spans.for_each(|(i, span)| {
        let mut state = ((i * (SPAN / 8)) as u64).wrapping_mul(STEP);
        for word in span.chunks_mut(8) {
            state = state.wrapping_add(STEP);
            let random = (mixed(state) & mask).to_le_bytes();
            word.copy_from_slice(&random[..word.len()]);
        }
    });
    bytes
}

/// What splitmix64 adds to its state for each word.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mixed(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn stored(dtype: Dtype, number: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => number.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(number).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(number).to_le_bytes().to_vec(),
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use butterfly::ops::{Rows, Storage};

    #[test]
    fn numbers_are_spread_as_those_of_dense_weights() {
        let affine = |bits| Packed::Affine {
            bits,
            group: 64,
            scales: Dtype::Bf16,
        };
        let float8 = Packed::float8(Dtype::F32);
        for packed in [affine(2), affine(4), affine(8), float8, Packed::Microscaled] {
            let tensors = tensors(packed, &packed.sizes(130, 256).expect("sizes"));
            let slices: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
            let rows = Rows::new(Storage::Packed(packed), [130, 256], &slices).expect("rows");
            let (mut row, mut sum, mut squares) = (vec![0.0; 256], 0.0, 0.0);
            for i in 0..130 {
                rows.unpack(i, &mut row);
                sum += row.iter().sum::<f32>();
                squares += row.iter().map(|x| x * x).sum::<f32>();
            }
            let count = (130 * 256) as f32;
            let (mean, deviation) = (sum / count, (squares / count).sqrt());
            assert!(mean.abs() < 0.1 * DEVIATION, "{packed}: {mean}");
            let most = 0.5 * DEVIATION..2.0 * DEVIATION;
            assert!(most.contains(&deviation), "{packed}: {deviation}");
        }
    }
}
