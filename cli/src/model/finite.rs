//! Logits that are not finite: how many, where, and their cause.

use crate::failure::Failure;
use butterfly_ir::Dtype;
use butterfly_models::Checkpoint;

/// Counts the NaNs and infinities among the logits of a run.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// How many were not finite.
    bad: u64,
    /// Number of the text, position and value of the first.
    first: Option<(usize, usize, f32)>,
}

impl Watch {
    /// Looks at rows of logits, the first of which is at `position` of the text numbered `text`.
    /// Returns whether all are finite.
    pub(super) fn see(
        &mut self,
        logits: &[f32],
        vocabulary: usize,
        [text, position]: [usize; 2],
    ) -> bool {
        let bad = logits.iter().filter(|x| !x.is_finite()).count();
        if bad == 0 {
            return true;
        }
        self.bad += bad as u64;
        if self.first.is_none()
            && let Some(at) = logits.iter().position(|x| !x.is_finite())
        {
            self.first = Some((text, position + at / vocabulary, logits[at]));
        }
        false
    }

    /// A message, if not all logits were finite, with the cause: weights of `folder` that are not
    /// finite, or else the range of `dtype`.
    pub(super) fn says(&self, folder: Option<&Checkpoint>, dtype: Dtype) -> Option<String> {
        let (text, position, value) = self.first?;
        let bad = self.bad;
        let cause = match folder.and_then(|folder| folder.not_finite(dtype)) {
            Some(found) => format!("{found}; download the weights again"),
            None => match dtype {
                Dtype::F16 => "the weights are finite, so numbers between the layers leave the range of f16; give --dtype bf16 or f32".into(),
                Dtype::Bf16 | Dtype::F32 => format!(
                    "the weights are finite, so numbers between the layers leave the range of {}; give the config.json that belongs to these weights",
                    dtype.name()
                ),
            },
        };
        Some(format!(
            "{bad} logits are not finite, the first ({value}) at position {position} of text {text}: {cause}"
        ))
    }
}

/// A failure with exit code 1, if there is a message of [`Watch::says`].
pub(super) fn check(not_finite: Option<String>) -> Result<(), Failure> {
    not_finite.map_or(Ok(()), |said| Err(Failure::Check(said)))
}
