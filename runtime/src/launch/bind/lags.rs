//! Sequences of different lengths in a launch.

use super::super::{Call, LaunchError, Ready};
use butterfly_ir::{LaunchScalars, Role};

/// Checks that sequences of different lengths are those of a decode kernel, and that each has its queries.
pub(super) fn check(kernel: &Ready, call: &Call<'_>) -> Result<(), LaunchError> {
    let (lags, spec) = (call.lags, kernel.spec());
    let wrong = |what: String| Err(LaunchError::Lags(what));
    if lags.is_empty() {
        return Ok(());
    }
    if lags.len() as u64 != u64::from(call.batch) {
        return wrong(format!(
            "there are {} of them for {} sequences",
            lags.len(),
            call.batch
        ));
    }
    if spec.role != Role::Decode {
        return wrong("only decode kernels take sequences of different lengths".into());
    }
    let by_value = kernel.geometry().boxes.is_some();
    if by_value && lags.len() > LaunchScalars::MOST_LAGS {
        return wrong(format!(
            "the kernel takes at most {} sequences of different lengths",
            LaunchScalars::MOST_LAGS
        ));
    }
    let most = call.scalars.q_offset;
    match lags.iter().find(|lag| **lag > most) {
        None => Ok(()),
        Some(lag) => wrong(format!(
            "a sequence is {lag} tokens behind, but the longest has only {most} before its queries"
        )),
    }
}
