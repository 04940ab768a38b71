//! Finds weights that are not finite, to explain logits that are not finite.

use crate::Checkpoint;
use crate::weights::numbers::numbers;
use butterfly::Dtype;
use half::{bf16, f16};
use std::fmt;

/// A weight tensor that holds NaN or infinity, or becomes infinite in the model's element type.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// The tensor's name.
    pub tensor: String,
    /// The number of its elements that are not finite.
    pub count: usize,
    /// The indices of the first of them.
    pub at: Vec<usize>,
    /// The value stored there.
    pub stored: f32,
    /// The element type whose range the stored value exceeds; `None` if the stored value itself is
    /// not finite.
    pub beyond: Option<Dtype>,
}

impl Checkpoint {
    /// The first tensor, in order of names, with an element that is not finite: as an element of
    /// type `dtype` in matrices and biases, as f32 in all other tensors.
    ///
    /// Reads every tensor up to that one.
    pub fn not_finite(&self, dtype: Dtype) -> Option<NotFinite> {
        let mut names: Vec<&String> = self.names().collect();
        names.sort_unstable();
        names.into_iter().find_map(|name| {
            let view = self.tensor(name)?;
            // The loader reads all but matrices and biases as f32.
            let dtype = match view.shape.len() == 2 || name.ends_with(".bias") {
                true => dtype,
                false => Dtype::F32,
            };
            let [mut count, mut place] = [0, 0];
            let mut first = None;
            for x in numbers(&view).flatten() {
                if !rounded(x, dtype).is_finite() {
                    count += 1;
                    first = first.or(Some((place, x)));
                }
                place += 1;
            }
            let (place, stored) = first?;
            Some(NotFinite {
                tensor: name.clone(),
                count,
                at: index(place, view.shape),
                stored,
                beyond: stored.is_finite().then_some(dtype),
            })
        })
    }
}

fn rounded(x: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// The indices of the element at offset `place` of a contiguous tensor.
fn index(mut place: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (at, size) in at.iter_mut().zip(shape).rev() {
        *at = place % size;
        place /= size;
    }
    at
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tensor,
            count,
            at,
            stored,
            ..
        } = self;
        match self.beyond {
            None => write!(
                f,
                "weights `{tensor}` hold {count} numbers that are not finite, the first ({stored}) at {at:?}"
            ),
            Some(dtype) => write!(
                f,
                "weights `{tensor}` hold {count} numbers that {} cannot hold, the first ({stored}) at {at:?}",
                dtype.name()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_become_indices() {
        assert_eq!(index(0, &[2, 3, 4]), [0, 0, 0]);
        assert_eq!(index(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(index(5, &[7]), [5]);
    }

    #[test]
    fn halves_reach_less_far() {
        assert!(rounded(70_000.0, Dtype::F16).is_infinite());
        assert!(rounded(70_000.0, Dtype::Bf16).is_finite());
        assert!(rounded(3.4e38, Dtype::Bf16).is_infinite());
    }
}
