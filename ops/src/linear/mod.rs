//! Linear layers: rows times a weight.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;

#[cfg(feature = "cuda")]
use crate::OperationError;
use crate::inputs::{Inputs, Outputs, with_rows};
use burn::tensor::DType;
#[cfg(feature = "cuda")]
use butterfly_ir::Dtype;
#[cfg(feature = "cuda")]
use butterfly_runtime::ReadyProduct;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// A linear layer: x […, K], weight [N, K] → x weight^T […, N] in x's type.
#[derive(Clone, Debug)]
pub struct Project {
    /// How the weight is stored.
    pub storage: Storage,
    /// Kernels for products of 16-bit floats on Hopper.
    pub products: Products,
}

/// How a weight is stored; independent of the element type of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Contiguous elements in f32, f16 or bf16. If that is not the type of x, products are still
    /// summed in f32, and only the result is rounded to x's type.
    Dense(DType),
}

impl Project {
    /// A linear layer with a dense weight of elements of `dtype`, without generated kernels.
    pub fn of(dtype: DType) -> Self {
        Self {
            storage: Storage::Dense(dtype),
            products: Products::default(),
        }
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let (k, dtype) = (inputs.row(0)?, inputs.float(0)?);
        let [n, columns] = inputs.rank(1)?;
        if n == 0 || columns != k {
            return Err(inputs.wrong(1, format!("[N, {k}] with N at least 1")));
        }
        let Storage::Dense(stored) = self.storage;
        inputs.has(1, inputs.kernels_for(stored)?)?;
        Ok(vec![(with_rows(inputs.shape(0), n), dtype)])
    }
}

/// Generates the kernel for products of an element type; `None` if there is none for it.
#[cfg(feature = "cuda")]
pub type MakeProduct = fn(Dtype) -> Result<Option<ReadyProduct>, OperationError>;

/// Generated kernels for matrix products on an NVIDIA device, one for each element type. Clones
/// share them.
#[derive(Clone, Debug, Default)]
pub struct Products {
    #[cfg(feature = "cuda")]
    ready: Arc<[ReadyProduct]>,
    #[cfg(feature = "cuda")]
    make: Option<MakeProduct>,
}

#[cfg(feature = "cuda")]
impl Products {
    /// The kernels in `ready`; `make` generates missing ones.
    pub fn new(ready: &[ReadyProduct], make: Option<MakeProduct>) -> Self {
        Self {
            ready: ready.into(),
            make,
        }
    }

    /// The kernel for `dtype`.
    fn find(&self, dtype: Dtype) -> Result<Option<ReadyProduct>, OperationError> {
        match self.ready.iter().find(|product| product.dtype() == dtype) {
            Some(product) => Ok(Some(product.clone())),
            None => self.make.map_or(Ok(None), |make| make(dtype)),
        }
    }
}
