//! The roles of kernels: what one of them computes.

use crate::model::Phase;
use serde::{Deserialize, Serialize};

/// What a kernel computes. Every `match` on it is without a default, so that the compiler lists what
/// a further role, such as a gradient, has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Attention of many queries: one tile of queries of one head at a time.
    Prefill,
    /// Attention of few queries: one query and one GQA group at a time, split over its keys.
    Decode,
}

impl Role {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl From<Phase> for Role {
    /// The attention kernel of a phase.
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Prefill => Self::Prefill,
            Phase::Decode => Self::Decode,
        }
    }
}
