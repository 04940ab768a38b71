//! Logits that are not finite: how many, where, and what they come from.

use crate::failure::Failure;
use butterfly_ir::Dtype;
use butterfly_models::Folder;

/// Looks at the logits of a run.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// How many were not finite.
    bad: u64,
    /// Text, position and value of the first.
    first: Option<(usize, usize, f32)>,
}

impl Watch {
    /// Looks at rows of logits, the first of which stands at `position` of a text. Whether all
    /// are finite.
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

    /// What to say where not all were finite, with what they come from: the weights of `folder`,
    /// if such are there, or what can be computed in `dtype`.
    pub(super) fn says(&self, folder: Option<&Folder>, dtype: Dtype) -> Option<String> {
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

/// Exit code 1 for what [`Watch::says`].
pub(super) fn check(not_finite: Option<String>) -> Result<(), Failure> {
    not_finite.map_or(Ok(()), |said| Err(Failure::Check(said)))
}
