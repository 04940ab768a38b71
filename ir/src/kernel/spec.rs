//! What a kernel is compiled for.

use super::Dtype;
use crate::RowProgram;
use serde::{Deserialize, Serialize};

/// Which of the attention kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Many queries: one tile of queries of one head at a time.
    Prefill,
    /// Few queries: one query and one GQA group at a time, split over its keys.
    Decode,
}

impl Phase {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Where a kernel gets the bands of a row from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Computed in registers.
    ClosedForm(RowProgram),
    /// Read from a table made for one sequence length and stage (see [`BandTable`](crate::BandTable)).
    Table,
}

/// What a kernel does to logits beside scale and mask; the values come at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Score {
    /// A logit `x` becomes `c tanh(x / c)`, which keeps it within `-c..c`.
    pub softcap: bool,
    /// Each q head has one more logit, which takes weight and has no value.
    pub sinks: bool,
}

impl Score {
    /// Whether there is nothing to do.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// The values for a [`Score`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreValues<'a> {
    /// c, positive.
    pub softcap: Option<f32>,
    /// The logit of each q head, `[Hq]`; it counts in lse.
    pub sinks: Option<&'a [f32]>,
}

impl ScoreValues<'_> {
    /// Whether `cap` can be a softcap.
    pub fn is_softcap(cap: f32) -> bool {
        cap > 0.0 && cap.is_finite()
    }

    /// Whether `logit` can be that of a sink; minus infinity is none.
    pub fn is_sink(logit: f32) -> bool {
        logit < f32::INFINITY
    }

    /// What a kernel has to be able to do.
    pub fn kind(&self) -> Score {
        Score {
            softcap: self.softcap.is_some(),
            sinks: self.sinks.is_some(),
        }
    }
}

/// Everything a kernel is specialised by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelSpec {
    /// Prefill or decode.
    pub phase: Phase,
    /// D, the length of a q and k vector: a multiple of 8, at most 576.
    pub head_dim: u32,
    /// Dv, the length of a v and o vector: a multiple of 8, at most 576.
    pub v_head_dim: u32,
    /// q heads for each kv head.
    pub group: u32,
    /// Element type of q, k, v and o.
    pub dtype: Dtype,
    /// Tokens in a block.
    pub block: u32,
    /// Which keys a row sees.
    pub rows: Rows,
    /// What is done to logits beside scale and mask.
    #[serde(default, skip_serializing_if = "Score::is_plain")]
    pub score: Score,
}

impl KernelSpec {
    /// Most columns of an output that the registers of a warpgroup of Hopper hold.
    pub const WARPGROUP_COLUMNS: u32 = 256;

    /// Whether q and k, or v and o, have more columns than that.
    pub fn is_wide(&self) -> bool {
        self.head_dim.max(self.v_head_dim) > Self::WARPGROUP_COLUMNS
    }
}
