//! The roles of kernels: which computation a kernel performs.

use crate::model::Phase;
use serde::{Deserialize, Serialize};

/// The computation that a kernel performs.
///
/// No `match` on a role has a default arm, so that the Rust compiler lists every place to edit for
/// a further role, such as a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Attention of many queries: one tile of queries of one head at a time.
    Prefill,
    /// Attention of few queries: one query of one GQA group at a time, with the work split over its
    /// keys.
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
    /// The role of the attention kernel that runs in a phase.
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Prefill => Self::Prefill,
            Phase::Decode => Self::Decode,
        }
    }
}
