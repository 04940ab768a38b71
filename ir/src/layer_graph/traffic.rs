//! Memory traffic of nodes in bytes, as functions of q_len and kv_len.

use super::{LayerGraph, Node, Op, Tokens, Value, ValueId};
use serde::Serialize;
use std::{fmt, iter};

/// Memory traffic of a kernel in bytes, for one sequence, if it reads each operand once and
/// writes each result once: `per_query · q_len + per_key · kv_len + fixed`.
///
/// For attention this is a lower bound if every key is seen by some query. How often keys are
/// read again depends on the pattern, and is not counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes for each new token.
    pub per_query: u64,
    /// Bytes for each token in the cache, new ones included.
    pub per_key: u64,
    /// Bytes that do not depend on the lengths: weights.
    pub fixed: u64,
}

impl Traffic {
    /// Bytes for these lengths in tokens, saturated.
    pub fn at(&self, q_len: u32, kv_len: u32) -> u64 {
        let new = self.per_query.saturating_mul(q_len.into());
        let cached = self.per_key.saturating_mul(kv_len.into());
        new.saturating_add(cached).saturating_add(self.fixed)
    }

    fn add(self, other: Self) -> Self {
        Self {
            per_query: self.per_query.saturating_add(other.per_query),
            per_key: self.per_key.saturating_add(other.per_key),
            fixed: self.fixed.saturating_add(other.fixed),
        }
    }
}

impl iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(traffic: I) -> Self {
        traffic.fold(Self::default(), Self::add)
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = [
            (self.per_query, " q_len"),
            (self.per_key, " kv_len"),
            (self.fixed, ""),
        ];
        let terms = terms.iter().filter(|(bytes, _)| *bytes > 0);
        let terms: Vec<String> = terms.map(|(n, length)| format!("{n}{length}")).collect();
        match terms.is_empty() {
            true => f.write_str("0"),
            false => f.write_str(&terms.join(" + ")),
        }
    }
}

impl LayerGraph {
    /// Bytes that one node reads from and writes to memory.
    pub fn node_traffic(&self, node: &Node) -> Traffic {
        let bytes = u64::from(self.dtype.bytes());
        let value = |id: &ValueId| self.value(*id);
        let rows = |value: &Value| of(value.shape.tokens, bytes * value.shape.row());
        let inputs = || node.inputs.iter().map(value).map(rows);
        let outputs = || node.outputs.iter().map(value).map(rows);
        // Only the new tokens are written to the cache.
        let appended = |id: &ValueId| of(Tokens::New, bytes * value(id).shape.row());
        let fixed = |elements: u64| Traffic {
            fixed: bytes.saturating_mul(elements),
            ..Traffic::default()
        };
        let moved = || inputs().chain(outputs());
        let weights = fixed(self.weights(node));
        match &node.op {
            Op::Projection | Op::Split(_) | Op::Output => Traffic::default(),
            Op::Append | Op::Prologue { append: true, .. } => {
                let appended = node.outputs.iter().map(appended);
                inputs().chain(appended).chain([weights]).sum()
            }
            Op::Heads { .. } | Op::Latents { .. } => {
                let (q, caches) = node.outputs.split_at(node.outputs.len().min(1));
                let q = q.iter().map(value).map(rows);
                let written = q.chain(caches.iter().map(appended));
                inputs().chain(written).chain([weights]).sum()
            }
            Op::Attend(_) => {
                let heads = node
                    .outputs
                    .first()
                    .map(|o| u64::from(value(o).shape.heads));
                let lse = of(Tokens::New, 4 * heads.unwrap_or_default());
                moved().chain([lse]).sum()
            }
            Op::Norm(_)
            | Op::Rope(_)
            | Op::Scale { .. }
            | Op::Prologue { append: false, .. }
            | Op::Up
            | Op::Absorb { .. }
            | Op::Expand { .. }
            | Op::Gate
            | Op::Unabsorb => moved().chain([weights]).sum(),
        }
    }

    /// Elements of the weights that a node reads.
    fn weights(&self, node: &Node) -> u64 {
        let shape = |ids: &[ValueId]| ids.first().map(|id| self.value(*id).shape);
        let (Some(x), Some(y)) = (shape(&node.inputs), shape(&node.outputs)) else {
            return 0;
        };
        let matrices = |heads: u32, rows: u32, columns: u32| {
            let matrix = u64::from(rows).saturating_mul(columns.into());
            matrix.saturating_mul(heads.into())
        };
        match &node.op {
            Op::Norm(norm)
            | Op::Prologue {
                norm: Some(norm), ..
            } => norm.span.len.into(),
            Op::Heads {
                norm: Some(norm), ..
            } => 2 * u64::from(norm.span.len),
            Op::Latents { q, kv, .. } => u64::from(q.span.len) + u64::from(kv.span.len),
            Op::Up => x.row().saturating_mul(y.row()),
            Op::Absorb { nope, .. } => {
                let rank = y.width.saturating_sub(x.width.saturating_sub(*nope));
                matrices(x.heads, *nope, rank)
            }
            Op::Unabsorb => matrices(x.heads, x.width, y.width),
            Op::Expand { nope } => {
                let v = node
                    .outputs
                    .last()
                    .map_or(0, |v| self.value(*v).shape.width);
                let rank = x.width.saturating_sub(y.width.saturating_sub(*nope));
                matrices(y.heads, rank, nope + v)
            }
            Op::Projection
            | Op::Split(_)
            | Op::Rope(_)
            | Op::Scale { .. }
            | Op::Append
            | Op::Prologue { norm: None, .. }
            | Op::Heads { norm: None, .. }
            | Op::Attend(_)
            | Op::Gate
            | Op::Output => 0,
        }
    }
}

fn of(tokens: Tokens, bytes: u64) -> Traffic {
    match tokens {
        Tokens::New => Traffic {
            per_query: bytes,
            ..Traffic::default()
        },
        Tokens::Cached => Traffic {
            per_key: bytes,
            ..Traffic::default()
        },
    }
}
