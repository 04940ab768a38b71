//! Gates of feed-forward layers and of the output of attention.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;

use crate::inputs::{Inputs, Outputs, with_rows};

/// sqrt(2 / pi).
const ROOT: f32 = 0.797_884_6;

/// The activation of a feed-forward gate: rows `[gate | x]` […, 2 n] → activation(gate) * x […, n].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// gate / (1 + exp(-gate)) * x.
    Silu,
    /// GELU by its approximation with tanh (arXiv:1606.08415), times x.
    Gelu,
    /// gate / (1 + exp(-alpha * gate)) * (x + 1), with the gate at most `limit` and x within `limit` of 0 (gpt-oss).
    Clamped {
        /// Factor within the exponential.
        alpha: f32,
        /// Bound on both.
        limit: f32,
        /// Whether gate and x alternate in a row, instead of lying side by side.
        alternate: bool,
    },
}

/// The gate on the output of attention: o [B, T, Hq * D] → o * sigmoid(gate) (Gated Attention,
/// arXiv:2505.06708).
///
/// The second input is rows of projections [B, T, n], n at least 2 * Hq * D, which begin with
/// `[query | gate]` for each head, D elements each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateOutput {
    /// D, elements of a head.
    pub head_dim: usize,
}

impl Activation {
    pub(crate) fn outputs(self, inputs: &Inputs<'_>) -> Outputs {
        let row = inputs.row(0)?;
        if !row.is_multiple_of(2) {
            return Err(inputs.wrong(0, "an even last dimension".into()));
        }
        Ok(vec![(
            with_rows(inputs.shape(0), row / 2),
            inputs.float(0)?,
        )])
    }
}

impl GateOutput {
    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let ([batch, tokens, n], dtype) = (inputs.rank(0)?, inputs.float(0)?);
        let head_dim = self.head_dim;
        inputs.positive([("head_dim", head_dim)])?;
        if n == 0 || !n.is_multiple_of(head_dim) {
            return Err(inputs.wrong(0, format!("rows of a multiple of {head_dim} elements")));
        }
        let least = n.saturating_mul(2);
        let [_, _, row] = inputs.rank(1)?;
        if row < least {
            return Err(inputs.wrong(1, format!("rows of at least {least} elements")));
        }
        inputs.is(1, &[batch, tokens, row])?;
        inputs.has(1, dtype)?;
        Ok(vec![(inputs.inputs[0].0.clone(), dtype)])
    }
}
