//! The plan: all decisions of the compiler for one model and one pattern, before any kernel is
//! emitted.

use crate::model::OwnAttention;
use crate::{KernelSpec, Pattern, Rows, Sparsity, Target};
use serde::{Deserialize, Serialize};

/// Everything that is needed to make the artifacts of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The pattern.
    pub sparsity: Sparsity,
    /// The swapped layers, first to last, each with the index that picks its stage.
    pub layers: Vec<SwappedLayer>,
    /// The longest sequence, in tokens, for which the pattern was checked.
    pub capacity: u32,
    /// Facts proved about the swapped layers at that length.
    pub proof: Proof,
    /// The patterns of the swapped layers, each once: more than one if they differ by layer.
    pub variants: Vec<Variant>,
    /// The layers' own attention, if kernels are made for layers that keep it; each once, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
    /// The kernels to emit, sorted by target, then key.
    pub kernels: Vec<PlannedKernel>,
}

/// A layer whose attention is replaced by the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwappedLayer {
    /// Index of the layer in the model, from 0.
    pub layer: u32,
    /// Picks the stage: the stage is this number modulo the number of stages.
    pub index: u32,
}

/// The pattern of some swapped layers, and how its kernels get their rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The pattern, without `per_layer`.
    pub pattern: Pattern,
    /// Rows of its kernels.
    pub rows: Rows,
}

/// Attention that layers keep, and how its kernels get their rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The attention.
    pub own: OwnAttention,
    /// Rows of its pattern's kernels.
    pub rows: Rows,
}

/// One kernel to emit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedKernel {
    /// Content key (see [`key::of`](crate::key::of)).
    pub key: String,
    /// Where it runs.
    pub target: Target,
    /// What it computes.
    pub spec: KernelSpec,
}

/// Facts proved about a stack of layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Length of the sequence for which it was proved, in tokens.
    #[serde(default)]
    pub tokens: u32,
    /// After 1, 2, … layers: the share of all pairs of blocks (b, c) with c <= b for which
    /// information can have flowed from c to b.
    pub coverage: Vec<f64>,
    /// Number of layers after which that share is 1; `None` if it never is.
    pub full_at: Option<usize>,
    /// The same as `coverage` if rows choose the best blocks for it. What rows choose depends on content,
    /// so `coverage`, `full_at` and `empty_queries` hold for any choice, and the degrees are the largest
    /// possible; `None` where no row chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage_at_most: Option<Vec<f64>>,
    /// Largest number of blocks that one row reads in one layer.
    pub max_degree: u32,
    /// Largest number of rows that read one block in one layer.
    pub max_in_degree: u32,
    /// Whether no query sees a later key in any layer.
    pub causal: bool,
    /// Number of queries that see no key, summed over all layers.
    pub empty_queries: u64,
}

impl Proof {
    /// Whether every layer is causal and every query sees a key.
    pub fn holds(&self) -> bool {
        self.causal && self.empty_queries == 0
    }
}
