//! The layer graph: the computation of an attention layer between the projections of the
//! hidden vector and the output projection.
//!
//! A [`LayerGraph`] is a list of nodes in an order in which they can run. Each node reads
//! values that earlier nodes made, and makes new ones. Shapes are symbolic in two lengths:
//! q_len, the tokens that are new in this call, and kv_len, all tokens up to the last new
//! one. There is no batch dimension: everything is for one sequence.
//!
//! The model computes the matrix products at both ends: projections of the hidden vector
//! are nodes without inputs ([`Op::Projection`]), and the output projection follows after
//! [`Op::Output`]. The graph does not say which pairs of tokens attend; the pattern does.
//!
//! [`verify`] checks the invariants, which `verify.rs` lists.

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
    /// Prefill or decode; their graphs differ at most in the form of latent attention.
    pub phase: Phase,
    /// Element type of every value and weight.
    pub dtype: Dtype,
    /// All values; a [`ValueId`] is an index into this list.
    pub values: Vec<Value>,
    /// All nodes, each after those it reads from.
    pub nodes: Vec<Node>,
}

/// Index of a value in [`LayerGraph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ValueId(pub u32);

/// Index of a node in [`LayerGraph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NodeId(pub u32);

/// A tensor that a node makes and others read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Value {
    /// Its name in listings; need not be unique.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
}

/// The shape of a dense tensor `[tokens, heads, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Shape {
    /// Which tokens it holds.
    pub tokens: Tokens,
    /// Vectors for each token.
    pub heads: u32,
    /// Elements of each vector.
    pub width: u32,
}

impl Shape {
    /// Elements for each token: heads times width.
    pub fn row(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.width)
    }
}

/// A symbolic number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// q_len: the tokens that are new in this call.
    New,
    /// kv_len: all tokens in the KV cache, of which the new ones are the last.
    Cached,
}

/// A step of the layer's computation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// The values that it reads, in the order that [`Op`] documents.
    pub inputs: Vec<ValueId>,
    /// The values that it makes.
    pub outputs: Vec<ValueId>,
}

/// The operation of a node, as inputs → outputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// () → x: a projection of the hidden vector, computed by the model.
    Projection,
    /// x → parts, which follow one another along an axis. A view: no memory is moved.
    Split(Axis),
    /// x → x: a norm over part of each vector.
    Norm(Norm),
    /// x → x: rotary embedding of part of each vector (arXiv:2104.09864).
    Rope(Rotation),
    /// x → x times a constant.
    Scale {
        /// The constant.
        factor: f64,
    },
    /// k, v → k cache, v cache; or latent → cache. Writes the vectors of the new tokens behind
    /// those already in the cache.
    Append,
    /// [`Op::Norm`], then [`Op::Rope`], then [`Op::Append`] in one kernel; each can be absent.
    /// With `append`, a second input is appended without norm and rotation.
    Prologue {
        /// The norm on the first input.
        norm: Option<Norm>,
        /// The rotation of the first input.
        rope: Option<Rotation>,
        /// Whether the results are appended to the cache.
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
    /// q latent, kv latent → q latent, cache: the [`Op::Norm`] of each, then [`Op::Rope`] and
    /// [`Op::Append`] of the second. One pass over the new tokens.
    Latents {
        /// The norm on the q latent.
        q: Norm,
        /// The norm on the kv latent.
        kv: Norm,
        /// The rotation of the kv latent.
        rope: Option<Rotation>,
    },
    /// latent → x: projects the latent vector up to all heads with one matrix.
    Up,
    /// q → q: multiplies the first `nope` elements of each head by the head's key
    /// up-projection, so that the logits can be taken against latent keys
    /// (arXiv:2405.04434). [`Op::Rope`] of the elements behind them is part of it.
    Absorb {
        /// Elements before the rotated ones.
        nope: u32,
        /// The rotation of elements from `nope` on.
        rope: Option<Rotation>,
    },
    /// cache → k, v: computes keys and values of all heads from cached vectors
    /// `[latent | rope]`.
    Expand {
        /// Elements of a key that come from the latent vector; the rotated ones follow.
        nope: u32,
    },
    /// q, k, v → o: softmax attention over the pattern. Also writes the log-sum-exp,
    /// which is not a value of the graph.
    Attend(Attend),
    /// o, gate → o · sigmoid(gate) (arXiv:2505.06708).
    Gate,
    /// o → o: multiplies an o over latent values by each head's value up-projection.
    Unabsorb,
    /// o → (): hands o to the output projection.
    Output,
}

/// The axis along which a value is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Each part has some of the heads.
    Heads,
    /// Each part has some of the elements of every head.
    Width,
}

/// Consecutive elements of each vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Span {
    /// First element.
    pub first: u32,
    /// Number of elements.
    pub len: u32,
}

/// RMS norm: x / sqrt(mean(x²) + eps) · w.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Norm {
    /// The elements that are normalised; the others stay unchanged.
    pub span: Span,
    /// Added to the mean square.
    pub eps: f64,
    /// Whether the factor is 1 + w instead of w.
    pub zero_centred: bool,
}

/// Rotary embedding of part of a vector.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rotation {
    /// First of the [`Rope::dims`] rotated elements.
    pub first: u32,
    /// Frequencies, and which elements form pairs.
    pub rope: Rope,
}

/// Parameters of an attend node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Attend {
    /// Factor on the logits.
    pub scale: f64,
    /// Whether the values are the leading elements of the keys; there is then no input v.
    pub v_in_k: bool,
}

impl Op {
    /// Whether the node needs no kernel: projections and the output belong to the model, and a
    /// split is a view.
    pub fn is_free(&self) -> bool {
        match self {
            Self::Projection | Self::Split(_) | Self::Output => true,
            Self::Norm(_)
            | Self::Rope(_)
            | Self::Scale { .. }
            | Self::Append
            | Self::Prologue { .. }
            | Self::Heads { .. }
            | Self::Latents { .. }
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

    /// Appends a node that makes `outputs`, and returns their ids.
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

    /// The value with this id.
    ///
    /// # Panics
    /// If the graph has no such value; [`verify`] checks that the ids in its nodes exist.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The node with this id.
    ///
    /// # Panics
    /// If the graph has no such node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Number of kernels: one for each node that is not free (see [`Op::is_free`]).
    pub fn kernels(&self) -> usize {
        let kernels = self.nodes.iter().filter(|node| !node.op.is_free());
        kernels.count()
    }

    /// Bytes that all nodes together read from and write to memory.
    pub fn traffic(&self) -> Traffic {
        let nodes = self.nodes.iter().map(|node| self.node_traffic(node));
        nodes.sum()
    }
}
