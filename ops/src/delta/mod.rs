//! The gated delta rule: linear attention with a state of fixed size in place of a KV cache.
//!
//! It has two forms. Token by token, as it is defined: the state S decays, then the token's key is given its value,
//! `S = exp(g) S + k (beta (v - exp(g) S^T k))^T`, and the query reads `S^T q`. This runs everywhere. On NVIDIA
//! devices a single token, as in decode, takes one kernel (`single.rs`); several take three (`cube.rs`, `walk.rs`), which
//! add in the same order, and so does one on other devices.
//!
//! In chunks of 64 tokens, after the WY form (Yang, Kautz, Hatamizadeh: Gated Delta Networks, arXiv:2412.06464, section
//! 3.3; Yang et al.: DeltaNet, arXiv:2406.06484), as products of matrices. With keys K, queries Q and values V of a
//! chunk, one token a row, and the sums G of the decays g within it:
//!
//! - `A = tril(beta_i exp(G_i - G_j) k_i . k_j, -1)` and `T = (I + A)^-1 diag(beta)` need no state;
//! - new values `N = T (V - exp(G) K S)`;
//! - the result `exp(G) Q S + tril(exp(G_i - G_j) q_i . k_j) N`;
//! - the next state `exp(G_last) S + K^T exp(G_last - G) N`.
//!
//! Generated kernels for Hopper compute it so for 16-bit floats, heads of 128 elements and more than one token
//! (`hopper.rs`). Convolved rows and what products take are 16-bit floats there, and the state and sums are f32.
//!
//! Results do not depend on where a prompt is cut if it is cut at multiples of 64 tokens and no part is a single token,
//! which takes the first form; those of the first form do not depend on it at all.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod hopper;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod layout;
mod rules;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod single;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod token;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod walk;

pub use rules::DeltaRules;
#[cfg(feature = "cuda")]
pub use rules::MakeDeltaRule;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::Limits;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::inputs::{Inputs, Outputs};
use burn::tensor::DType;

/// The linear attention of Qwen3.5: causal convolution, silu, normalised q and k, the gated
/// delta rule, gated norm (Yang, Kautz, Hatamizadeh: Gated Delta Networks, arXiv:2412.06464).
///
/// Inputs, in order:
/// - rows of projections [B, T, n], n at least [`Delta::width`]: q and k (`k_heads` heads of
///   `k_dim` each), v (`v_heads` of `v_dim`), the output gate z (as v), b and a (`v_heads` elements
///   each), one after the other;
/// - in f32: the convolution [taps, channels], the decay -exp(A_log) `[Hv]`, dt_bias `[Hv]`, the
///   norm weight `[Dv]`;
/// - the `taps - 1` rows of q, k and v before the first token, [B, taps - 1, channels], in the type
///   of the projections;
/// - the state [B, Hv, Dk, Dv] in f32.
///
/// Outputs: the result [B, T, Hv * Dv], and the last rows and the state after the last token, to be
/// given to the next call.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Heads of q and k; each serves `v_heads / k_heads` heads of v: neighbours, unless they are
    /// `tiled`.
    pub k_heads: usize,
    /// Heads of v.
    pub v_heads: usize,
    /// Dk, elements of a head of q or k.
    pub k_dim: usize,
    /// Dv, elements of a head of v.
    pub v_dim: usize,
    /// Taps of the convolution, at least 2.
    pub taps: usize,
    /// Whether head `h` of v belongs to head `h % k_heads` of k, and not to `h / (v_heads / k_heads)`.
    pub tiled: bool,
    /// Added to the mean square in the gated norm.
    pub epsilon: f32,
    /// Generated kernels for 16-bit floats on Hopper.
    pub rules: DeltaRules,
}

impl Delta {
    /// Added to the squared length of q and k when they are normalised to length 1.
    pub(crate) const LENGTH_EPSILON: f32 = 1e-6;

    /// Channels of the convolution: the elements of q, k and v.
    pub fn channels(&self) -> usize {
        let keys = self.k_heads.saturating_mul(self.k_dim);
        keys.saturating_mul(2).saturating_add(self.values())
    }

    /// Elements of a row of projections that the operation reads.
    pub fn width(&self) -> usize {
        let gates = self.v_heads.saturating_mul(2);
        let values = self.channels().saturating_add(self.values());
        values.saturating_add(gates)
    }

    /// Elements of all heads of v.
    fn values(&self) -> usize {
        self.v_heads.saturating_mul(self.v_dim)
    }

    /// The heads, if 32 bits count them.
    #[cfg(feature = "cuda")]
    fn shape(&self) -> Option<butterfly_ir::model::LinearShape> {
        let count = |n: usize| u32::try_from(n).ok();
        Some(butterfly_ir::model::LinearShape {
            k_heads: count(self.k_heads)?,
            v_heads: count(self.v_heads)?,
            k_dim: count(self.k_dim)?,
            v_dim: count(self.v_dim)?,
            taps: count(self.taps)?,
            tiled: self.tiled,
        })
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

    /// The head of q and k that serves head `h` of v.
    #[cfg(feature = "cpu")]
    pub(crate) fn k_head(&self, h: usize) -> usize {
        match self.tiled {
            true => h % self.k_heads,
            false => h / (self.v_heads / self.k_heads),
        }
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, tokens, row] = inputs.rank(0)?;
        let &Delta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            taps,
            tiled: _,
            epsilon,
            rules: _,
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
