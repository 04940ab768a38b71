//! Norms of rows by their root mean square.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;

use crate::inputs::{Inputs, Outputs};
use burn::tensor::DType;

/// The RMS norm: x […, H] and weight `[H]`, both f32 → x / rms(x) * weight in `dtype`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub epsilon: f32,
    /// Element type of the result.
    pub dtype: DType,
}

/// A sum and its norm: x […, H] in f32, y […, H] in any float type, weight `[H]` in f32 → x + y in
/// f32, and its [`Norm`] in y's type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddNorm {
    /// Added to the mean square.
    pub epsilon: f32,
}

impl Norm {
    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        inputs.is(1, &[inputs.row(0)?])?;
        inputs.all_have([0, 1], DType::F32)?;
        inputs.epsilon(self.epsilon)?;
        Ok(vec![(
            inputs.inputs[0].0.clone(),
            inputs.kernels_for(self.dtype)?,
        )])
    }
}

impl AddNorm {
    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let (row, x) = (inputs.row(0)?, &inputs.inputs[0].0);
        inputs.is(1, x.as_slice())?;
        inputs.is(2, &[row])?;
        inputs.all_have([0, 2], DType::F32)?;
        inputs.epsilon(self.epsilon)?;
        Ok(vec![(x.clone(), DType::F32), (x.clone(), inputs.float(1)?)])
    }
}
