//! The generated kernels of the gated delta rule that plans hand to operations.

use butterfly_ops::DeltaRules;

/// The delta rules of a plan: those of its artifacts; others are generated when they are needed.
#[cfg(feature = "cuda")]
pub(crate) fn of(ready: &[butterfly_runtime::ReadyDeltaRule]) -> DeltaRules {
    #[cfg(feature = "jit")]
    return DeltaRules::new(ready, Some(made));
    #[cfg(not(feature = "jit"))]
    DeltaRules::new(ready, None)
}

/// Without CUDA there are none.
#[cfg(not(feature = "cuda"))]
pub(crate) fn of(_: &[()]) -> DeltaRules {
    DeltaRules::default()
}

/// The kernels for a rule, of which the stages are filled in; `None` if there are none for its shape. Generated once
/// per process.
#[cfg(all(feature = "jit", feature = "cuda"))]
fn made(
    rule: butterfly_ir::DeltaRule,
) -> Result<Option<butterfly_runtime::ReadyDeltaRule>, crate::OperationError> {
    use butterfly_ir::DeltaRule;
    use butterfly_runtime::ReadyDeltaRule;
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    static MADE: LazyLock<Mutex<HashMap<DeltaRule, Option<ReadyDeltaRule>>>> =
        LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ready) = made.get(&rule) {
        return Ok(ready.clone());
    }
    let ready = match butterfly_codegen::delta_rule(rule.clone()) {
        Err(_) => None,
        Ok((launched, text)) => {
            crate::compiled::add(format!(
                "cuda:sm_90a delta rule {} {}/{}",
                launched.dtype.name(),
                launched.k_heads,
                launched.v_heads
            ));
            Some(ReadyDeltaRule::new(launched, text.as_bytes())?)
        }
    };
    made.insert(rule, ready.clone());
    Ok(ready)
}
