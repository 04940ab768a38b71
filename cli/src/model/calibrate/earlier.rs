//! The damages of an earlier policy, to choose by again.
//!
//! In:  a policy file. Out: the damage of each part, and where it is from. A policy of another model, or
//! of other parts, or without figures, is refused.

use super::subject::Subject;
use crate::failure::Failure;
use crate::source;
use butterfly_models::Ranking;
use butterfly_models::calibrate::{Site, Unit};
use std::path::Path;

pub(super) struct Earlier {
    /// In the order of the parts that were asked for.
    pub(super) damages: Vec<(Site, f64)>,
    /// Where they were measured.
    pub(super) ranking: Ranking,
    /// BLAKE3 of the policy file, in hexadecimal.
    pub(super) digest: String,
}

/// The damages of `sites` by the policy at `path`.
pub(super) fn read(
    path: &Path,
    subject: &Subject,
    (unit, sites): (Unit, &[Site]),
) -> Result<Earlier, Failure> {
    let refused = |what: String| Err(Failure::file(path, what));
    let (policy, _) = source::read_policy(path)?;
    let checked = policy.check(path, &subject.config, &subject.sizes);
    checked.map_err(Failure::bad)?;
    if policy.damage.iter().all(Vec::is_empty) {
        return refused("has no damages to choose by; leave --from out".into());
    }
    let by = policy.chosen.by;
    if by != unit {
        let name = by.name();
        return refused(format!(
            "has the damage of each {name}, not of each {}; give --by {name}, or leave --from out",
            unit.name()
        ));
    }
    match (policy.chosen.random_weights, subject.seed()) {
        (Some(_), None) => {
            return refused(
                "has damages of random weights, which say nothing about this model; leave --from out".into(),
            );
        }
        (None, Some(_)) => {
            return refused(
                "has damages of a trained model, not of random weights; leave --from or --random-weights out".into(),
            );
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    let damages = match policy.damages(sites) {
        Ok(damages) => damages,
        Err(Site { layer, .. }) => {
            return refused(format!(
                "has no damage of layer {layer}; name other layers in --swap, or leave --from out"
            ));
        }
    };
    let bytes = std::fs::read(path);
    let bytes = bytes.map_err(|error| Failure::file(path, format!("cannot read: {error}")))?;
    let digest = blake3::hash(&bytes).to_hex().to_string();
    // A policy that was itself chosen so names the one whose damages were measured.
    let ranking = policy.ranking.unwrap_or_else(|| Ranking {
        policy: path.display().to_string(),
        digest: digest.clone(),
        text_digest: policy.chosen.text_digest,
    });
    Ok(Earlier {
        damages,
        ranking,
        digest,
    })
}
