//! What the compiler decided for one model and one pattern, before any kernel is emitted.

use crate::{KernelSpec, Rows, Sparsity, Target};
use serde::{Deserialize, Serialize};

/// Everything that the artifacts of a model are made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The pattern.
    pub sparsity: Sparsity,
    /// Which layers are replaced, and the index that picks each one's stage.
    pub layers: Vec<SwappedLayer>,
    /// The longest sequence, in tokens, for which the pattern was checked.
    pub capacity: u32,
    /// What the replaced layers reach at that length.
    pub proof: Proof,
    /// Rows of causal attention, where some layers keep it and kernels are made for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<Rows>,
    /// The kernels to emit, sorted by target, then key.
    pub kernels: Vec<PlannedKernel>,
}

/// A layer whose attention is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwappedLayer {
    /// Index in the model.
    pub layer: u32,
    /// Picks the stage, modulo the number of stages.
    pub index: u32,
}

/// One kernel to emit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedKernel {
    /// Content key: equal keys mean interchangeable kernels.
    pub key: String,
    /// Where it runs.
    pub target: Target,
    /// What it is specialised by.
    pub spec: KernelSpec,
}

/// What was proved about a stack of layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Number of tokens at which it was proved.
    #[serde(default)]
    pub tokens: u32,
    /// Share of the pairs (b, c), c <= b, with a path from c to b, after 1, 2, … layers.
    pub coverage: Vec<f64>,
    /// Number of layers after which every pair has a path.
    pub full_at: Option<usize>,
    /// Most blocks that any row reads.
    pub max_degree: u32,
    /// Most rows that read one block in one layer.
    pub max_in_degree: u32,
    /// No query sees a later key.
    pub causal: bool,
    /// Queries that see nothing, over all layers.
    pub empty_queries: u64,
}

impl Proof {
    /// Every layer is causal and no query is empty.
    pub fn holds(&self) -> bool {
        self.causal && self.empty_queries == 0
    }
}
