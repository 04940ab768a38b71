//! Products of norms: what is added to rows, the norm of the sum, and its product with a weight.
//!
//! For a few rows, kernels compute all of it in one launch where they can; else it is one operation after another.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod row;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::Project;
use crate::inputs::{Inputs, Names, Outputs, with_rows};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::limits::Limits;
use burn::tensor::{DType, Shape};

/// The product of a norm with a weight: x `[.., H]` in f32, what is `added`, the weight of the norm `[H]` in f32, and the
/// tensors of the weight → the sum in f32 if anything is added, the norm in `dtype` if it is kept, and the product.
#[derive(Clone, Debug)]
pub struct Normed {
    /// What is added to x.
    pub added: Added,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Element type of the norm.
    pub dtype: DType,
    /// Whether the norm is an output.
    pub keep: bool,
    /// The product.
    pub project: Project,
}

/// What is added to rows x `[.., H]` before their norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// Nothing.
    None,
    /// Rows `[.., H]` in the norm's type.
    Rows,
    /// Rows `[.., k, H]` in the norm's type, each multiplied with a factor; these are one more input, `[.., k]` in f32.
    Weighted,
}

impl Added {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Rows => &["added"],
            Self::Weighted => &["added", "factors"],
        }
    }
}

impl Normed {
    /// Most rows of which kernels compute all of it at once.
    pub const FEW: usize = Project::FEW;

    /// Inputs before the tensors of the weight.
    fn own(&self) -> usize {
        self.added.names().len() + 2
    }

    pub(crate) fn names(&self) -> Names {
        let weight = self.project.names();
        let own = ["x"].iter().chain(self.added.names()).chain(&["norm"]);
        own.chain(weight.iter().skip(1)).copied().collect()
    }

    /// The inputs of the product, of which the first is the norm.
    fn of_product(&self, inputs: &Inputs<'_>) -> Vec<(Shape, DType)> {
        let norm = (inputs.inputs[0].0.clone(), self.dtype);
        let weight = inputs.inputs.iter().skip(self.own()).cloned();
        [norm].into_iter().chain(weight).collect()
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let (row, x) = (inputs.row(0)?, inputs.inputs[0].0.clone());
        let dtype = inputs.kernels_for(self.dtype)?;
        inputs.has(0, DType::F32)?;
        match self.added {
            Added::None => {}
            Added::Rows => {
                inputs.is(1, x.as_slice())?;
                inputs.has(1, dtype)?;
            }
            Added::Weighted => {
                let terms = inputs.row(2)?;
                let factors = with_rows(x.as_slice(), terms);
                inputs.is(2, factors.as_slice())?;
                inputs.has(2, DType::F32)?;
                inputs.is(1, &[factors.as_slice(), &[row]].concat())?;
                inputs.has(1, dtype)?;
            }
        }
        let norm = self.own() - 1;
        inputs.is(norm, &[row])?;
        inputs.has(norm, DType::F32)?;
        inputs.epsilon(self.epsilon)?;
        let given = self.of_product(inputs);
        let product = self.project.outputs(&Inputs {
            operation: inputs.operation,
            names: self.project.names(),
            inputs: &given,
        })?;
        let sum = (self.added != Added::None).then(|| (x.clone(), DType::F32));
        let norm = self.keep.then(|| (x.clone(), dtype));
        Ok(sum.into_iter().chain(norm).chain(product).collect())
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        let own = Inputs {
            inputs: &limits.inputs.inputs[..self.own()],
            ..limits.inputs.clone()
        };
        let device = limits.device;
        Limits {
            inputs: own,
            device,
        }
        .rows()?;
        let given = self.of_product(&limits.inputs);
        self.project.limits(&Limits {
            inputs: Inputs {
                operation: limits.inputs.operation,
                names: self.project.names(),
                inputs: &given,
            },
            device,
        })
    }
}
