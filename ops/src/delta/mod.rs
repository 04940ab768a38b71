//! The gated delta rule: linear attention with a state in place of a cache.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod walk;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::Limits;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::inputs::{Inputs, Outputs};
use burn::tensor::DType;

/// The linear attention of Qwen3.5: causal convolution, silu, normalised q and k, the gated
/// delta rule, gated norm (Yang, Kautz, Hatamizadeh: Gated Delta Networks, arXiv:2412.06464).
///
/// Inputs: rows [B, T, ≥ width] with q, k (`k_heads` of `k_dim`), v (`v_heads` of `v_dim`),
/// the output gate z (as v), b and a (`v_heads` each) one after the other; convolution
/// [taps, channels], decay -exp(A_log) `[Hv]`, dt_bias `[Hv]`, norm weight `[Dv]`, all f32; the
/// last `taps - 1` rows of q, k, v [B, taps - 1, channels] and the state [B, Hv, Dk, Dv], f32.
/// Outputs: [B, T, Hv * Dv], the rows and the state after the last token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta {
    /// Heads of q and k; each serves `v_heads / k_heads` heads of v.
    pub k_heads: usize,
    /// Heads of v.
    pub v_heads: usize,
    /// Dk.
    pub k_dim: usize,
    /// Dv.
    pub v_dim: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// Added to the mean square in the gated norm.
    pub epsilon: f32,
}

impl Delta {
    /// Added to the square of the length of q and k, before they are brought to length one.
    pub(crate) const LENGTH_EPSILON: f32 = 1e-6;

    /// Channels of the convolution.
    pub fn channels(&self) -> usize {
        let keys = self.k_heads.saturating_mul(self.k_dim);
        keys.saturating_mul(2).saturating_add(self.values())
    }

    /// Elements of a row of projections.
    pub fn width(&self) -> usize {
        let gates = self.v_heads.saturating_mul(2);
        let values = self.channels().saturating_add(self.values());
        values.saturating_add(gates)
    }

    /// Elements of all heads of v.
    fn values(&self) -> usize {
        self.v_heads.saturating_mul(self.v_dim)
    }

    /// Names of the inputs.
    pub(crate) const NAMES: [&str; 7] = [
        "projections",
        "convolution",
        "decay",
        "dt_bias",
        "norm",
        "last rows",
        "state",
    ];

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, tokens, row] = inputs.rank(0)?;
        let &Delta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            taps,
            epsilon,
        } = self;
        inputs.positive([
            ("k_heads", k_heads),
            ("v_heads", v_heads),
            ("k_dim", k_dim),
            ("v_dim", v_dim),
        ])?;
        if !v_heads.is_multiple_of(k_heads) || taps < 2 {
            return Err(inputs.argument(format!(
                "{v_heads} heads of v on {k_heads} of k, {taps} taps"
            )));
        }
        inputs.epsilon(epsilon)?;
        if row < self.width() {
            let expected = format!("rows of at least {} elements", self.width());
            return Err(inputs.wrong(0, expected));
        }
        let channels = self.channels();
        inputs.is(1, &[taps, channels])?;
        inputs.is(2, &[v_heads])?;
        inputs.is(3, &[v_heads])?;
        inputs.is(4, &[v_dim])?;
        inputs.is(5, &[batch, taps - 1, channels])?;
        inputs.is(6, &[batch, v_heads, k_dim, v_dim])?;
        inputs.all_have(1..5, DType::F32)?;
        inputs.has(5, dtype)?;
        inputs.has(6, DType::F32)?;
        Ok(vec![
            ([batch, tokens, v_heads * v_dim].into(), dtype),
            ([batch, taps - 1, channels].into(), dtype),
            ([batch, v_heads, k_dim, v_dim].into(), DType::F32),
        ])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted(0..limits.inputs.inputs.len())?;
        limits.grid(2 * self.k_heads + self.v_heads)?;
        cube::takes(self, &limits.device.hardware).map_err(|what| limits.inputs.argument(what))
    }
}
