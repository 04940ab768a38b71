//! Generated kernels that score blocks by content on Hopper.

use crate::OperationError;
use butterfly_ir::Scorer;
use butterfly_runtime::ReadyScorer;

/// The kernel for a scorer, of which entry point, threads and shared memory are filled in; `None` if it does not
/// take the shape. Generated once per process.
#[cfg(all(feature = "jit", feature = "cuda"))]
pub(crate) fn made(scorer: Scorer) -> Result<Option<ReadyScorer>, OperationError> {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    static MADE: LazyLock<Mutex<HashMap<Scorer, Option<ReadyScorer>>>> =
        LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ready) = made.get(&scorer) {
        return Ok(ready.clone());
    }
    let ready = match butterfly_codegen::scorer(scorer.clone()) {
        Err(_) => None,
        Ok((launched, text)) => {
            crate::compiled::add(format!("cuda:sm_90a {}", launched.entry));
            Some(ReadyScorer::new(launched, text.as_bytes())?)
        }
    };
    made.insert(scorer, ready.clone());
    Ok(ready)
}

/// Without generators there are none.
#[cfg(not(all(feature = "jit", feature = "cuda")))]
pub(crate) fn made(_: Scorer) -> Result<Option<ReadyScorer>, OperationError> {
    Ok(None)
}
