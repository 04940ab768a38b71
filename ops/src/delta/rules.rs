//! The generated kernels of the gated delta rule, as plans hand them to operations.

#[cfg(feature = "cuda")]
use crate::OperationError;
#[cfg(feature = "cuda")]
use butterfly_ir::DeltaRule;
#[cfg(feature = "cuda")]
use butterfly_runtime::ReadyDeltaRule;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Generates the kernels for a rule, of which the stages are filled in; `None` if there are none for it.
#[cfg(feature = "cuda")]
pub type MakeDeltaRule = fn(DeltaRule) -> Result<Option<ReadyDeltaRule>, OperationError>;

/// Generated kernels for the gated delta rule on an NVIDIA device. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct DeltaRules {
    #[cfg(feature = "cuda")]
    ready: Arc<[ReadyDeltaRule]>,
    #[cfg(feature = "cuda")]
    make: Option<MakeDeltaRule>,
}

#[cfg(feature = "cuda")]
impl DeltaRules {
    /// The kernels in `ready`; `make` generates missing ones.
    pub fn new(ready: &[ReadyDeltaRule], make: Option<MakeDeltaRule>) -> Self {
        Self {
            ready: ready.into(),
            make,
        }
    }

    /// The kernels that compute as `wanted`.
    pub(super) fn find(&self, wanted: DeltaRule) -> Result<Option<ReadyDeltaRule>, OperationError> {
        let mut ready = self.ready.iter();
        match ready.find(|ready| ready.rule().computes_as(&wanted)) {
            Some(ready) => Ok(Some(ready.clone())),
            None => self.make.map_or(Ok(None), |make| make(wanted)),
        }
    }
}
