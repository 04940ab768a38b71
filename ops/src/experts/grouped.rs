//! The generated kernels for products with packed weights and with experts, as plans hand them to operations.

#[cfg(feature = "cuda")]
use crate::OperationError;
#[cfg(feature = "cuda")]
use butterfly_ir::Grouped;
#[cfg(feature = "cuda")]
use butterfly_runtime::ReadyGrouped;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Generates the kernels for a format, of which both stages are filled in; `None` if there are none for it.
#[cfg(feature = "cuda")]
pub type MakeGrouped = fn(Grouped) -> Result<Option<ReadyGrouped>, OperationError>;

/// Generated kernels for products with packed weights, and with experts, on an NVIDIA device. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct GroupedProducts {
    #[cfg(feature = "cuda")]
    ready: Arc<[ReadyGrouped]>,
    #[cfg(feature = "cuda")]
    make: Option<MakeGrouped>,
}

#[cfg(feature = "cuda")]
impl GroupedProducts {
    /// The kernels in `ready`; `make` generates missing ones.
    pub fn new(ready: &[ReadyGrouped], make: Option<MakeGrouped>) -> Self {
        Self {
            ready: ready.into(),
            make,
        }
    }

    /// The kernels that compute as `wanted`.
    pub(crate) fn find(&self, wanted: Grouped) -> Result<Option<ReadyGrouped>, OperationError> {
        let mut ready = self.ready.iter();
        match ready.find(|ready| ready.grouped().computes_as(&wanted)) {
            Some(ready) => Ok(Some(ready.clone())),
            None => self.make.map_or(Ok(None), |make| make(wanted)),
        }
    }
}
