//! What a backend is asked to do: plain data, checked against its inputs before it runs
//! (`shapes.rs`, `checked.rs`). What surrounds attention is defined in the crate `ops`.

use crate::plan::KernelShape;
use crate::{Counts, Plan};
use burn::tensor::{DType, Shape};
use butterfly_ir::{Dtype, Role, ScoreValues};
use butterfly_ops::Operation as LayerOperation;

/// One operation of a backend.
#[derive(Clone, Debug)]
pub enum Operation {
    /// q [B, Hq, q_len, D], k [B, Hkv, room, D], v [B, Hkv, room, Dv]
    /// → o [B, Hq, q_len, Dv], lse [B, Hq, q_len] in f32.
    Attend(Attend),
    /// What is computed around it; the type of each variant says what its inputs and outputs are.
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
            role: match q[2] <= DECODE_QUERIES {
                true => Role::Decode,
                false => Role::Prefill,
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

impl Operation {
    /// The name in errors and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attend(_) => "attend",
            Self::Layer(operation) => operation.name(),
        }
    }
}
