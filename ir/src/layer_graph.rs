//! The attention layer as a graph: what happens between the projections of the hidden
//! vector and the output projection.
//!
//! A [`LayerGraph`] is a list of nodes in an order in which they can run; each makes one
//! or more values, and reads values made before it. Shapes are symbolic in two lengths:
//! q_len, the tokens that are new in this call, and kv_len, all tokens up to the last of
//! them. There is no batch dimension: everything is per sequence.
//!
//! Projections of the hidden vector are sources and the output projection lies behind
//! [`Op::Output`]: those matrix products stay with the model. The graph says what a layer
//! computes; which pairs of tokens attend is the pattern's business.
//!
//! [`verify`] lists the invariants and checks them.

mod print;
#[cfg(test)]
mod tests;
mod traffic;
mod verify;

pub use traffic::Traffic;
pub use verify::{GraphError, verify};

use crate::model::{Family, Rope};
use crate::{Dtype, Phase};
use serde::Serialize;

/// One attention layer in one phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerGraph {
    /// The architecture.
    pub family: Family,
    /// Index of the layer in the model.
    pub layer: u32,
    /// Prefill or decode; they differ where attention is latent.
    pub phase: Phase,
    /// Element type of every value and weight.
    pub dtype: Dtype,
    /// All values; [`ValueId`] is a position here.
    pub values: Vec<Value>,
    /// All nodes, each after those it reads from.
    pub nodes: Vec<Node>,
}

/// Position of a value in [`LayerGraph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ValueId(pub u32);

/// Position of a node in [`LayerGraph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NodeId(pub u32);

/// What flows along an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Value {
    /// What it is called in listings; need not be unique.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
}

/// A dense [tokens, heads, width] tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Shape {
    /// Which tokens it has a row for.
    pub tokens: Tokens,
    /// Vectors of a token.
    pub heads: u32,
    /// Elements of a vector.
    pub width: u32,
}

impl Shape {
    /// Elements of one token.
    pub fn row(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.width)
    }
}

/// A symbolic number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// q_len: the new ones.
    New,
    /// kv_len: all in the cache, the new ones last.
    Cached,
}

/// A step of the layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// What it reads, in the order that [`Op`] says.
    pub inputs: Vec<ValueId>,
    /// What it makes.
    pub outputs: Vec<ValueId>,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// () → x: a projection of the hidden vector, computed by the model.
    Projection,
    /// x → parts: one after the other along an axis. A view: moves nothing.
    Split(Axis),
    /// x → x: a norm over part of each vector.
    Norm(Norm),
    /// x → x: rotary positions in part of each vector (arXiv:2104.09864).
    Rope(Rotation),
    /// x → x times a constant.
    Scale {
        /// The constant.
        factor: f64,
    },
    /// k, v → k cache, v cache, or latent → cache: the new rows go behind those there.
    Append,
    /// As [`Op::Norm`], then [`Op::Rope`], then [`Op::Append`], whichever are there, in
    /// one pass over the new tokens. With `append` further inputs are appended as they are.
    Prologue {
        /// The norm on the first input.
        norm: Option<Norm>,
        /// The rotation of the first input.
        rope: Option<Rotation>,
        /// Whether the results go to the cache.
        append: bool,
    },
    /// q, k, v → q, k cache, v cache: [`Op::Norm`] and [`Op::Rope`], whichever are there, on q and on
    /// k, each with its own weight; then [`Op::Append`] of k and v. One pass over the new tokens.
    Heads {
        /// The norm on q and k.
        norm: Option<Norm>,
        /// The rotation of q and k.
        rope: Option<Rotation>,
    },
    /// latent → x: all heads from the latent vector by one matrix.
    Up,
    /// q → q: the leading `nope` elements of each head, multiplied by the key
    /// up-projection of the head, so that they meet latent keys (arXiv:2405.04434).
    Absorb {
        /// Elements before the rotated ones.
        nope: u32,
    },
    /// cache → k, v: keys and values of all heads from `[latent | rope]` rows.
    Expand {
        /// Elements of a key that come from the latent; the rotated ones follow.
        nope: u32,
    },
    /// q, k, v → o: softmax attention over the pattern. Writes the log-sum-exp
    /// besides.
    Attend(Attend),
    /// o, gate → o · sigmoid(gate) (arXiv:2505.06708).
    Gate,
    /// o → o: the value up-projection of each head on an o over latent values.
    Unabsorb,
    /// o →: what the output projection reads.
    Output,
}

/// Along what a value is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// The first part has the first heads.
    Heads,
    /// The first part has the first elements of every head.
    Width,
}

/// Consecutive elements of each vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Span {
    /// First element.
    pub first: u32,
    /// How many.
    pub len: u32,
}

/// Division by the root mean square: x / sqrt(mean(x²) + eps) · w.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Norm {
    /// Which elements; the others stay as they are.
    pub span: Span,
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the factor is 1 + w in place of w.
    pub zero_centred: bool,
}

/// Rotary positions in part of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rotation {
    /// First rotated element; [`Rope::dims`] follow.
    pub first: u32,
    /// Frequencies and pairs.
    pub rope: Rope,
}

/// What an attend node is specialised by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Attend {
    /// Factor on the logits.
    pub scale: f64,
    /// Whether v is the leading elements of each k; there is no v input then.
    pub v_in_k: bool,
}

impl Op {
    /// Whether the node only gives names to what is there.
    pub fn is_free(&self) -> bool {
        match self {
            Self::Projection | Self::Split(_) | Self::Output => true,
            Self::Norm(_)
            | Self::Rope(_)
            | Self::Scale { .. }
            | Self::Append
            | Self::Prologue { .. }
            | Self::Heads { .. }
            | Self::Up
            | Self::Absorb { .. }
            | Self::Expand { .. }
            | Self::Attend(_)
            | Self::Gate
            | Self::Unabsorb => false,
        }
    }
}

impl LayerGraph {
    /// A graph without nodes.
    pub fn new(family: Family, layer: u32, phase: Phase, dtype: Dtype) -> Self {
        Self {
            family,
            layer,
            phase,
            dtype,
            values: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// Appends a node that makes `outputs`; gives their ids.
    pub fn push(&mut self, op: Op, inputs: &[ValueId], outputs: Vec<Value>) -> Vec<ValueId> {
        let first = self.values.len() as u32;
        self.values.extend(outputs);
        let outputs: Vec<ValueId> = (first..self.values.len() as u32).map(ValueId).collect();
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
        });
        outputs
    }

    /// The value of an id. Panics on an id of another graph, which [`verify`] excludes.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The node of an id. Panics on an id of another graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// How many kernels run, if each node that is not free is one.
    pub fn kernels(&self) -> usize {
        let kernels = self.nodes.iter().filter(|node| !node.op.is_free());
        kernels.count()
    }

    /// Bytes that all nodes move together.
    pub fn traffic(&self) -> Traffic {
        let nodes = self.nodes.iter().map(|node| self.node_traffic(node));
        nodes.sum()
    }
}
