//! What a backend is asked to do: plain data, checked against its inputs before it runs
//! (`shapes.rs`, `checked.rs`).

use crate::plan::KernelShape;
use crate::{Counts, Plan};
use burn::tensor::{DType, Shape};
use butterfly_ir::{Dtype, Phase, ScoreValues};

/// One operation of a backend; see each variant for its inputs and outputs.
#[derive(Clone, Debug)]
pub enum Operation {
    /// q [B, Hq, q_len, D], k [B, Hkv, room, D], v [B, Hkv, room, Dv]
    /// → o [B, Hq, q_len, Dv], lse [B, Hq, q_len] in f32.
    Attend(Attend),
    /// Rows of projections [B, T, …], k cache [B, Hkv, room, D], v cache, with norms the
    /// weights of q and k `[D]` in f32, with rotation cosines and sines [T, dims] in f32
    /// → q [B, Hq, T, D] and both caches, written in place where nobody else holds them.
    Append(Append),
    /// x […, K], weight [N, K] → x weight^T […, N].
    Project,
    /// The same, by the products among the artifacts of a plan where they hold one for the device.
    ProjectBy(Plan),
    /// x […, H] and weight `[H]`, both f32 → x / rms(x) * weight in `dtype`.
    Norm {
        /// Added to the mean square.
        epsilon: f32,
        /// Element type of the result.
        dtype: DType,
    },
    /// x […, H] in f32, y […, H] in any type, weight `[H]` in f32 → x + y in f32, and its norm as
    /// in [`Operation::Norm`] in y's type.
    AddNorm {
        /// Added to the mean square.
        epsilon: f32,
    },
    /// [gate | x] […, 2 n] → activation(gate) * x […, n].
    Gated(Activation),
    /// o [B, T, Hq * D], projection rows [B, T, …] with [query | gate] of D each for each
    /// head first → o * sigmoid(gate).
    GateOutput {
        /// D.
        head_dim: usize,
    },
    /// Gated delta rule over rows of projections; see [`Delta`].
    Delta(Delta),
}

/// The function of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + exp(-x)).
    Silu,
}

/// Attention of queries at `q_offset..` over the first `kv_len` keys.
#[derive(Clone, Debug)]
pub struct Attend {
    /// Pattern and kernels.
    pub plan: Plan,
    /// Picks the stage of the butterfly network.
    pub index: u32,
    /// Absolute position of the first query.
    pub q_offset: usize,
    /// Keys that there are; k and v may have room for more.
    pub kv_len: usize,
    /// Tokens that fix the number of blocks and with it the stages.
    pub capacity: usize,
    /// Factor on the logits.
    pub scale: f32,
    /// Bends logits into `-c..c`.
    pub softcap: Option<f32>,
    /// One more logit for each q head.
    pub sinks: Option<Vec<f32>>,
    /// Where launches are counted.
    pub counts: Counts,
}

/// Queries up to which a workgroup takes one of them, with all its keys.
const DECODE_QUERIES: usize = 4;

impl Attend {
    /// What the kernel has to be made for.
    pub(crate) fn shape(&self, inputs: &[(Shape, DType)]) -> KernelShape {
        let [q, k, v] = [0, 1, 2].map(|i| inputs[i].0.to_vec());
        // No kernel is made for so many.
        let counted = |n| u32::try_from(n).unwrap_or(u32::MAX);
        KernelShape {
            phase: match q[2] <= DECODE_QUERIES {
                true => Phase::Decode,
                false => Phase::Prefill,
            },
            head_dim: counted(q[3]),
            v_head_dim: counted(v[3]),
            group: counted(q[1] / k[1]),
            dtype: match inputs[0].1 {
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::Bf16,
                _ => Dtype::F32,
            },
            score: self.score().kind(),
        }
    }

    pub(crate) fn score(&self) -> ScoreValues<'_> {
        ScoreValues {
            softcap: self.softcap,
            sinks: self.sinks.as_deref(),
        }
    }
}

/// Heads out of projections: norm, rotation, and the keys and values into the cache.
///
/// Inputs q, k and v are rows [B, T, n]; they may be one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Hq.
    pub q_heads: usize,
    /// Hkv.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Elements from one head of q to the next: `head_dim`, or more where a gate lies between.
    pub q_step: usize,
    /// Where q, k and v begin in their rows.
    pub starts: [usize; 3],
    /// Absolute position of the first token.
    pub position: usize,
    /// Whether q and k are divided by their root mean square; what is added to its square.
    pub norm: Option<f32>,
    /// How many leading elements of a head are rotated, in halves.
    pub rotated: usize,
}

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
}

impl Operation {
    /// The name in errors and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attend(_) => "attend",
            Self::Append(_) => "append",
            Self::Project | Self::ProjectBy(_) => "project",
            Self::Norm { .. } => "norm",
            Self::AddNorm { .. } => "add_norm",
            Self::Gated(_) => "gated",
            Self::GateOutput { .. } => "gate_output",
            Self::Delta(_) => "delta",
        }
    }

    /// The attention, the one operation that has kernels made ahead.
    pub(crate) fn attend(&self) -> Option<&Attend> {
        match self {
            Self::Attend(attend) => Some(attend),
            _ => None,
        }
    }

    /// The element type that kernels of the operation differ by.
    pub(crate) fn element(&self, inputs: &[DType]) -> DType {
        match self {
            Self::Norm { dtype, .. } => *dtype,
            Self::AddNorm { .. } => inputs[1],
            _ => inputs[0],
        }
    }
}
