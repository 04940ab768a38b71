//! The choice of experts by the logits of a norm.

use super::Route;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::inputs::{Inputs, Names, Outputs};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::limits::Limits;
use crate::normed::Normed;
use burn::tensor::{DType, Shape};

/// A [`Route`] by the products of a [`Normed`], whose results are f32 and which keeps its norm: the inputs of that one, then
/// the bias of a biased router → its outputs but the product, then ids and weights.
#[derive(Clone, Debug)]
pub struct Choose {
    /// What makes the logits.
    pub normed: Normed,
    /// The choice.
    pub route: Route,
}

impl Choose {
    pub(crate) fn names(&self) -> Names {
        let normed = self.normed.names();
        let bias = self.route.names().iter().skip(1);
        normed.iter().chain(bias).copied().collect()
    }

    /// How many inputs make the logits.
    pub(crate) fn of_normed(&self, inputs: usize) -> usize {
        inputs - usize::from(self.route.router.biased)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let (given, bias) = inputs.inputs.split_at(self.of_normed(inputs.inputs.len()));
        let mut outputs = self.normed.outputs(&Inputs {
            operation: inputs.operation,
            names: self.normed.names(),
            inputs: given,
        })?;
        let logits = outputs.pop().into_iter();
        let given: Vec<_> = logits.chain(bias.iter().cloned()).collect();
        outputs.extend(
            self.route
                .outputs(&self.of_route(inputs.operation, &given))?,
        );
        Ok(outputs)
    }

    fn of_route<'a>(&self, operation: &'static str, given: &'a [(Shape, DType)]) -> Inputs<'a> {
        Inputs {
            operation,
            names: self.route.names().into(),
            inputs: given,
        }
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        let Limits { inputs, device } = limits;
        let (given, bias) = inputs.inputs.split_at(self.of_normed(inputs.inputs.len()));
        let operation = inputs.operation;
        let normed = Inputs {
            operation,
            names: self.normed.names(),
            inputs: given,
        };
        let outputs = self.normed.outputs(&normed)?;
        self.normed.limits(&Limits {
            inputs: normed,
            device,
        })?;
        let logits = outputs.last().cloned().into_iter();
        let given: Vec<_> = logits.chain(bias.iter().cloned()).collect();
        self.route.limits(&Limits {
            inputs: self.of_route(operation, &given),
            device,
        })
    }
}
