//! The operations that a backend executes: plain data, checked against the inputs before anything
//! runs (`shapes.rs`, `checked.rs`). The operations around attention are defined in the crate
//! `ops`.

use crate::plan::KernelShape;
use crate::{Counts, Plan};
use burn::tensor::{DType, Shape};
use butterfly_ir::pattern::Routing;
use butterfly_ir::{Dtype, LaunchScalars, Role, ScoreValues};
use butterfly_ops::Operation as LayerOperation;

/// One operation of a backend.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Attention: q [B, Hq, q_len, D], k [B, Hkv, room, D], v [B, Hkv, room, Dv] (both may have further sequences, which
    /// are not read) unless the values are part of k → o [B, Hq, q_len, Dv], lse [B, Hq, q_len] in f32. If the pattern chooses blocks by
    /// content, a further input: means of keys [B, Hkv, pools, D] in f32, as [`Pool`](butterfly_ops::Pool) makes
    /// them, of all whole blocks before that of the last query.
    Attend(Attend),
    /// An operation around attention; the type of each variant documents its inputs and outputs.
    Layer(LayerOperation),
}

impl From<LayerOperation> for Operation {
    fn from(operation: LayerOperation) -> Self {
        Self::Layer(operation)
    }
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
    /// Number of keys, in tokens; k and v may have room for more.
    pub kv_len: usize,
    /// How many tokens each sequence is behind the longest, to which `q_offset` and `kv_len` apply: its queries begin, and
    /// its keys end, so many tokens earlier. Empty if all are equally long; for at most [`DECODE_QUERIES`] queries.
    pub lags: Vec<usize>,
    /// Number of tokens from which the number of blocks, and with it the stages, are derived; at
    /// least `kv_len`.
    pub capacity: usize,
    /// If set, there is no input v: the value of a key is so many of its first elements, as in latent
    /// attention.
    pub v_in_k: Option<usize>,
    /// Number of tokens of the prompt, which `tail` reads.
    pub prompt: usize,
    /// Factor on the logits.
    pub scale: f32,
    /// Soft limit `c` on the logits: `c * tanh(logit / c)`, after the scale.
    pub softcap: Option<f32>,
    /// Attention sinks: for each q head one more logit, which takes part in the softmax without a
    /// value.
    pub sinks: Option<Vec<f32>>,
    /// Counts the launches, by kernel.
    pub counts: Counts,
}

/// Calls with up to this many queries run the decode kernel, which takes one query at a time;
/// others run the prefill kernel, which takes tiles of queries.
pub const DECODE_QUERIES: usize = 4;

/// Most sequences of different lengths in a call.
pub const MOST_LAGS: usize = LaunchScalars::MOST_LAGS;

impl Attend {
    /// The properties that select the kernel.
    pub(crate) fn shape(&self, inputs: &[(Shape, DType)]) -> KernelShape {
        let q = inputs[0].0.to_vec();
        let v_head_dim = self.v_in_k.unwrap_or_else(|| inputs[2].0[3]);
        // Saturating is enough: no kernel is made for sizes near u32::MAX, so they are refused.
        let counted = |n| u32::try_from(n).unwrap_or(u32::MAX);
        KernelShape {
            role: match q[2] <= DECODE_QUERIES {
                true => Role::Decode,
                false => Role::Prefill,
            },
            head_dim: counted(q[3]),
            v_head_dim: counted(v_head_dim),
            group: counted(q[1] / self.kv_heads(inputs)),
            dtype: match inputs[0].1 {
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::Bf16,
                _ => Dtype::F32,
            },
            score: self.score().kind(),
        }
    }

    /// The kv heads that have rows of their own: those of k or, where all q heads read the same keys but the
    /// pattern tells them apart, as many as q heads.
    pub(crate) fn kv_heads(&self, inputs: &[(Shape, DType)]) -> usize {
        match self.shares_keys() && inputs[1].0[1] == 1 {
            true => inputs[0].0[1],
            false => inputs[1].0[1],
        }
    }

    /// Whether the pattern tells apart heads that share one head of keys, as in latent attention.
    fn shares_keys(&self) -> bool {
        self.v_in_k.is_some() && self.plan.sparsity().pattern.is_by_head()
    }

    /// The place of the means among the inputs.
    pub(crate) fn means(&self) -> usize {
        match self.v_in_k {
            None => 3,
            Some(_) => 2,
        }
    }

    /// What rows choose by content, if the pattern says so.
    pub(crate) fn routing(&self) -> Option<Routing> {
        self.plan.routing()
    }

    pub(crate) fn score(&self) -> ScoreValues<'_> {
        ScoreValues {
            softcap: self.softcap,
            sinks: self.sinks.as_deref(),
        }
    }
}

impl Operation {
    /// The name in errors and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attend(_) => "attend",
            Self::Layer(operation) => operation.name(),
        }
    }
}
