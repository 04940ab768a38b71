//! Logits → host memory: all of them, or only which are the largest.

use crate::ModelError;
use crate::layers::largest;
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::AttentionBackend;
use half::{bf16, f16};
use rayon::prelude::*;

/// Copies logits [B, T, V] to host memory, as f32.
///
/// # Errors
/// [`ModelError::Device`] if the device fails.
pub fn floats<B: Backend>(logits: Tensor<B, 3>) -> Result<Vec<f32>, ModelError> {
    let failed = |error| ModelError::Device(format!("{error:?}"));
    let data = logits.try_into_data();
    let data = data.map_err(|error| ModelError::Device(format!("{error:?}")))?;
    // Burn's own conversion takes one thread, longer than the device for the logits of large
    // vocabularies.
    match data.dtype {
        DType::BF16 => {
            let numbers = data.as_slice::<bf16>().map_err(failed)?;
            Ok(numbers.par_iter().map(|x| x.to_f32()).collect())
        }
        DType::F16 => {
            let numbers = data.as_slice::<f16>().map_err(failed)?;
            Ok(numbers.par_iter().map(|x| x.to_f32()).collect())
        }
        _ => data.convert::<f32>().into_vec().map_err(failed),
    }
}

/// The token that each row of logits [B, T, V] makes most likely, of equal ones the first; `None` if a logit is not
/// finite. The logits stay on the device.
///
/// # Errors
/// [`ModelError::Operation`] if the search cannot run, [`ModelError::Device`] if the device fails.
pub fn greedy<B: AttentionBackend>(logits: Tensor<B, 3>) -> Result<Option<Vec<u32>>, ModelError> {
    let failed = ModelError::Device;
    let found = largest(logits, PART)?;
    let parts = found.dims()[2];
    let found = found.try_into_data();
    let found = found.map_err(|error| failed(format!("{error:?}")))?;
    let numbers = found.as_slice::<i32>();
    let numbers = numbers.map_err(|error| failed(format!("{error:?}")))?;
    let (found, _) = numbers.as_chunks::<3>();
    if found.iter().any(|[.., bad]| *bad > 0) {
        return Ok(None);
    }
    let value = |part: &[i32; 3]| f32::from_bits(part[1].cast_unsigned());
    let best = |parts: &[[i32; 3]]| {
        let best = parts
            .iter()
            .reduce(|best, part| match value(part) > value(best) {
                true => part,
                false => best,
            });
        best.map_or(0, |[index, ..]| index.cast_unsigned())
    };
    Ok(Some(found.chunks(parts).map(best).collect()))
}

/// Logits of a row that a workgroup looks at.
const PART: usize = 2048;

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use crate::{Sampler, Sampling};
    use burn_flex::Flex;

    /// Rows of several parts, whose largest logits are equal.
    #[test]
    fn greedy_on_the_device_takes_what_a_sampler_takes() {
        let vocabulary = 3 * PART + 5;
        let mut logits: Vec<f32> = (0..2 * vocabulary).map(|i| (i * 37 % 101) as f32).collect();
        let drawn = |logits: &[f32]| {
            let data = TensorData::new(logits.to_vec(), [2, 1, vocabulary]);
            greedy::<Flex>(Tensor::from_data(data, &Default::default())).expect("a search")
        };
        let mut sampler = Sampler::new(Sampling::default());
        let want: Vec<u32> = logits
            .chunks(vocabulary)
            .map(|row| sampler.next(row))
            .collect();
        assert_eq!(drawn(&logits), Some(want));
        logits[vocabulary + 7] = f32::INFINITY;
        assert_eq!(drawn(&logits), None);
    }
}
