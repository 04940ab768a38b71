//! Linear layers: rows times a weight.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod few;
#[cfg(feature = "cpu")]
pub(crate) mod flex;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod hopper;
pub(crate) mod packed;
pub(crate) mod quantised;
#[cfg(feature = "cpu")]
pub(crate) mod rows;
pub(crate) mod storage;

pub use packed::{Activations, Packed};
#[cfg(feature = "cpu")]
pub use rows::Rows;
pub use storage::{Part, Parts, Storage};

use crate::Activation;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::experts::GroupedProducts;
use crate::inputs::{Inputs, Names, Outputs, with_rows};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::limits::{Limits, MOST, product};
use burn::tensor::DType;
#[cfg(feature = "cuda")]
use butterfly_ir::Dtype;
#[cfg(feature = "cuda")]
use butterfly_runtime::ReadyProduct;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Rows of a packed embedding: ids [B, T], of integers below the number of rows, then the tensors of
/// the table [N, K] → [B, T, K].
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    /// How the table is stored.
    pub table: Packed,
    /// N, the number of rows.
    pub rows: usize,
    /// K, the elements of a row.
    pub columns: usize,
    /// Element type of the result.
    pub dtype: DType,
}

/// A linear layer: x […, K], then the tensors of each part of its weight → x weight^T […, N] in x's
/// type or in f32, where N is the number of rows of all parts together; with a gate […, N / 2].
#[derive(Clone, Debug)]
pub struct Project {
    /// How the weight is stored.
    pub parts: Parts,
    /// Whether the result is f32 whatever x is, that is, the sums as they are.
    pub wide: bool,
    /// The activation by which the first half of the results gates the second.
    pub gate: Option<Activation>,
    /// Kernels for products of 16-bit floats on Hopper.
    pub products: Products,
    /// Kernels for a few rows times packed weights on Hopper.
    pub grouped: GroupedProducts,
}

/// Whether 32 bits can index `rows` rows of `row` elements.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
fn counts(rows: usize, row: usize) -> bool {
    rows.checked_mul(row)
        .is_some_and(|n| u32::try_from(n).is_ok())
}

impl Embed {
    fn part(&self) -> Part {
        Part {
            storage: Storage::Packed(self.table),
            rows: self.rows,
        }
    }

    pub(crate) fn names(&self) -> Names {
        storage::names("ids", &[self.part()])
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let [batch, tokens] = inputs.rank(0)?;
        if ![DType::I32, DType::I64].contains(&inputs.inputs[0].1) {
            return Err(inputs.argument("`ids` are not integers of 32 or 64 bits".into()));
        }
        inputs.positive([("N", self.rows), ("K", self.columns)])?;
        self.part().check(inputs, 1, self.columns)?;
        let dtype = inputs.kernels_for(self.dtype)?;
        Ok(vec![([batch, tokens, self.columns].into(), dtype)])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted(0..limits.inputs.inputs.len())?;
        let [batch, tokens] = [limits.dims(0)[0], limits.dims(0)[1]];
        let elements = product(&[batch, tokens, self.columns]);
        limits.at_most("ids", "elements of their rows", elements, MOST)
    }
}

impl Project {
    /// Most rows of which products take as long as the weight is read: these are never quantised.
    pub const FEW: usize = 8;

    /// A linear layer with a dense weight of `rows` rows of `dtype`, without generated kernels.
    pub fn dense(rows: usize, dtype: DType) -> Self {
        let storage = Storage::Dense(dtype);
        Self {
            parts: [Part { storage, rows }].into(),
            wide: false,
            gate: None,
            products: Products::default(),
            grouped: GroupedProducts::default(),
        }
    }

    pub(crate) fn names(&self) -> Names {
        storage::names("x", &self.parts)
    }

    /// N, the rows of all parts.
    pub(crate) fn rows(&self) -> usize {
        let rows = self.parts.iter().map(|part| part.rows);
        rows.fold(0, usize::saturating_add)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let (k, dtype) = (inputs.row(0)?, inputs.float(0)?);
        let mut at = 1;
        for part in self.parts.iter() {
            inputs.positive([("N", part.rows)])?;
            part.check(inputs, at, k)?;
            at += part.names().len();
        }
        inputs.positive([("N", self.rows())])?;
        let (rows, dtype) = match (self.wide, self.gate) {
            (false, None) => (self.rows(), dtype),
            (true, None) => (self.rows(), DType::F32),
            (false, Some(_)) if self.rows().is_multiple_of(2) => (self.rows() / 2, dtype),
            (false, Some(_)) => {
                let what = format!("{} rows, of which half are gates", self.rows());
                return Err(inputs.argument(what));
            }
            (true, Some(_)) => {
                return Err(inputs.argument("a gate in f32, which has x's type".into()));
            }
        };
        Ok(vec![(with_rows(inputs.shape(0), rows), dtype)])
    }

    /// Kernels count the words of packed weights, and what several parts write, with 32 bits; for
    /// dense weights, kernels are chosen that can index the product.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        let mut at = 1;
        for part in self.parts.iter() {
            let tensors = at..at + part.names().len();
            at = tensors.end;
            match part.storage {
                Storage::Dense(_) => {}
                Storage::Packed(_) => limits.counted(tensors)?,
            }
        }
        match self.parts.as_ref() {
            [
                Part {
                    storage: Storage::Dense(_),
                    ..
                },
            ] => Ok(()),
            _ => {
                let x = limits.dims(0);
                let elements = product(&x[..x.len() - 1]).saturating_mul(self.rows() as u64);
                limits.at_most("x", "elements of results", elements, MOST)?;
                limits.counted([0])
            }
        }
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
