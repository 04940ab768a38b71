//! The generated kernels for products with packed weights and with experts that plans hand to operations.

use butterfly_ops::GroupedProducts;

/// Those of a plan: the ones of its artifacts; others are generated when they are needed.
#[cfg(feature = "cuda")]
pub(crate) fn of(ready: &[butterfly_runtime::ReadyGrouped]) -> GroupedProducts {
    #[cfg(feature = "jit")]
    return GroupedProducts::new(ready, Some(made));
    #[cfg(not(feature = "jit"))]
    GroupedProducts::new(ready, None)
}

/// Without CUDA there are none.
#[cfg(not(feature = "cuda"))]
pub(crate) fn of(_: &[()]) -> GroupedProducts {
    GroupedProducts::default()
}

/// The kernels for a format, of which both stages are filled in; `None` if there are none for it. Generated once per
/// process.
#[cfg(all(feature = "jit", feature = "cuda"))]
fn made(
    grouped: butterfly_ir::Grouped,
) -> Result<Option<butterfly_runtime::ReadyGrouped>, crate::OperationError> {
    use butterfly_ir::Grouped;
    use butterfly_runtime::ReadyGrouped;
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    static MADE: LazyLock<Mutex<HashMap<Grouped, Option<ReadyGrouped>>>> =
        LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ready) = made.get(&grouped) {
        return Ok(ready.clone());
    }
    let ready = match butterfly_codegen::grouped(grouped.clone()) {
        Err(_) => None,
        Ok((launched, text)) => {
            crate::compiled::add(format!(
                "cuda:sm_90a products with packed weights {} {} {}",
                launched.dtype.name(),
                launched.format,
                launched.columns
            ));
            Some(ReadyGrouped::new(launched, text.as_bytes())?)
        }
    };
    made.insert(grouped, ready.clone());
    Ok(ready)
}
