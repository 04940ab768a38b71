//! The specification of an attention kernel: everything that is fixed when it is compiled.

use super::{Dtype, Role};
use crate::RowProgram;
use serde::{Deserialize, Serialize};

/// Where a kernel gets the bands of a row from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Computed in registers from the number of the row.
    ClosedForm(RowProgram),
    /// Read from a table that was made for one sequence length and stage (see
    /// [`BandTable`](crate::BandTable)).
    Table,
}

/// What a kernel does to logits besides scale and mask; the values come at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Score {
    /// Softcap: a scaled logit `x` becomes `c * tanh(x / c)`, which lies between `-c` and `c`.
    pub softcap: bool,
    /// Attention sinks: each q head has one more logit, which counts in the sum of weights but
    /// has no value.
    pub sinks: bool,
}

impl Score {
    /// Whether there is neither a softcap nor a sink.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// The run-time values of a [`Score`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreValues<'a> {
    /// The softcap c, positive and finite.
    pub softcap: Option<f32>,
    /// The sink's logit of each q head, `[Hq]`; neither scaled nor capped. It counts in the LSE.
    pub sinks: Option<&'a [f32]>,
}

impl ScoreValues<'_> {
    /// Whether `cap` is a valid softcap: positive and finite.
    pub fn is_softcap(cap: f32) -> bool {
        cap > 0.0 && cap.is_finite()
    }

    /// Whether `logit` is a valid logit of a sink: neither NaN nor infinity. Minus infinity is
    /// valid and has no effect.
    pub fn is_sink(logit: f32) -> bool {
        logit < f32::INFINITY
    }

    /// The [`Score`] for which a kernel that takes these values is compiled.
    pub fn kind(&self) -> Score {
        Score {
            softcap: self.softcap.is_some(),
            sinks: self.sinks.is_some(),
        }
    }
}

/// Everything by which an attention kernel is specialised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelSpec {
    /// Prefill or decode.
    #[serde(rename = "phase")]
    pub role: Role,
    /// D, the length of a q and k vector; on GPUs a multiple of 8, at most 576.
    pub head_dim: u32,
    /// Dv, the length of a v and o vector; on GPUs a multiple of 8, at most 576.
    pub v_head_dim: u32,
    /// q heads of a GQA group.
    pub group: u32,
    /// Element type of q, k, v and o.
    pub dtype: Dtype,
    /// Tokens in a block.
    pub block: u32,
    /// Which keys a row sees.
    pub rows: Rows,
    /// What is done to logits besides scale and mask.
    #[serde(default, skip_serializing_if = "Score::is_plain")]
    pub score: Score,
}

impl KernelSpec {
    /// Most columns of an output tile that fit the registers of one Hopper warpgroup.
    pub const WARPGROUP_COLUMNS: u32 = 256;

    /// Whether D or Dv is above [`WARPGROUP_COLUMNS`](Self::WARPGROUP_COLUMNS).
    pub fn is_wide(&self) -> bool {
        self.head_dim.max(self.v_head_dim) > Self::WARPGROUP_COLUMNS
    }
}
