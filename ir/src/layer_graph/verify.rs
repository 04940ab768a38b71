//! The invariants of layer graphs. A violation is a bug of the pass that made the graph.
//!
//! - Each value is made by exactly one node, and read only by later ones: the order of the
//!   nodes is a topological order, so there is no cycle.
//! - Each value is read by at least one node.
//! - There is exactly one attend node and exactly one output node.
//! - The shapes of a node's inputs and outputs fit its [`Op`].

use super::{Attend, Axis, LayerGraph, Node, NodeId, Norm, Op, Rotation, Shape, Tokens, ValueId};

/// A violated invariant of a layer graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A node names a value that does not exist.
    #[error("node {} names %{}, but there are {values} values", node.0, value.0)]
    NoSuchValue {
        /// The node.
        node: NodeId,
        /// The id.
        value: ValueId,
        /// Number of values.
        values: usize,
    },
    /// A value is read before it is made: there is a cycle, or the order is wrong.
    #[error("node {} reads %{}, which no earlier node makes", node.0, value.0)]
    NotYetMade {
        /// The node.
        node: NodeId,
        /// The value that it reads.
        value: ValueId,
    },
    /// A value is made by two nodes.
    #[error("node {} makes %{}, which an earlier node makes", node.0, value.0)]
    MadeTwice {
        /// The second node.
        node: NodeId,
        /// The value that it makes.
        value: ValueId,
    },
    /// A value is made by no node, or read by none.
    #[error("%{} is {what}", value.0)]
    Loose {
        /// The value.
        value: ValueId,
        /// Which of the two.
        what: &'static str,
    },
    /// A kind of node does not occur exactly once.
    #[error("there are {count} nodes `{what}`; there must be one")]
    Count {
        /// The kind of node.
        what: &'static str,
        /// Number of such nodes.
        count: usize,
    },
    /// A node has the wrong number of inputs or outputs.
    #[error("node {} `{op}` reads {inputs} and makes {outputs} values", node.0)]
    Arity {
        /// The node.
        node: NodeId,
        /// Its operation.
        op: String,
        /// Number of inputs.
        inputs: usize,
        /// Number of outputs.
        outputs: usize,
    },
    /// The shapes of a node do not fit its operation.
    #[error("node {} `{op}` makes {} of {}", node.0, list(outputs), list(inputs))]
    Shapes {
        /// The node.
        node: NodeId,
        /// Its operation.
        op: String,
        /// Shapes of the inputs.
        inputs: Vec<Shape>,
        /// Shapes of the outputs.
        outputs: Vec<Shape>,
    },
}

/// Checks every invariant of `graph`.
///
/// # Errors
/// [`GraphError`] for the first violation.
pub fn verify(graph: &LayerGraph) -> Result<(), GraphError> {
    let count = graph.values.len();
    let (mut made, mut read) = (vec![false; count], vec![false; count]);
    for (node, id) in graph.nodes.iter().zip((0..).map(NodeId)) {
        let mut all = node.inputs.iter().chain(&node.outputs).copied();
        if let Some(value) = all.find(|value| value.0 as usize >= count) {
            return Err(GraphError::NoSuchValue {
                node: id,
                value,
                values: count,
            });
        }
        for &value in &node.inputs {
            if !made[value.0 as usize] {
                return Err(GraphError::NotYetMade { node: id, value });
            }
            read[value.0 as usize] = true;
        }
        for &value in &node.outputs {
            if std::mem::replace(&mut made[value.0 as usize], true) {
                return Err(GraphError::MadeTwice { node: id, value });
            }
        }
        check_node(graph, id, node)?;
    }
    for (flags, what) in [(&made, "made by no node"), (&read, "read by no node")] {
        if let Some(value) = flags.iter().position(|flag| !flag) {
            let value = ValueId(value as u32);
            return Err(GraphError::Loose { value, what });
        }
    }
    one(graph, "attend", |op| matches!(op, Op::Attend(_)))?;
    one(graph, "output", |op| matches!(op, Op::Output))
}

fn one(graph: &LayerGraph, what: &'static str, is: fn(&Op) -> bool) -> Result<(), GraphError> {
    match graph.nodes.iter().filter(|node| is(&node.op)).count() {
        1 => Ok(()),
        count => Err(GraphError::Count { what, count }),
    }
}

fn check_node(graph: &LayerGraph, id: NodeId, node: &Node) -> Result<(), GraphError> {
    let shapes = |ids: &[ValueId]| -> Vec<Shape> {
        let values = ids.iter().map(|id| graph.value(*id));
        values.map(|value| value.shape).collect()
    };
    let (inputs, outputs) = (shapes(&node.inputs), shapes(&node.outputs));
    match fits(&node.op, &inputs, &outputs) {
        Some(true) => Ok(()),
        Some(false) => Err(GraphError::Shapes {
            node: id,
            op: node.op.to_string(),
            inputs,
            outputs,
        }),
        None => Err(GraphError::Arity {
            node: id,
            op: node.op.to_string(),
            inputs: inputs.len(),
            outputs: outputs.len(),
        }),
    }
}

/// Whether the shapes fit the operation; `None` if the number of inputs or outputs is wrong.
fn fits(op: &Op, inputs: &[Shape], outputs: &[Shape]) -> Option<bool> {
    let new = |shapes: &[Shape]| shapes.iter().all(|shape| shape.tokens == Tokens::New);
    Some(match (op, inputs, outputs) {
        (Op::Projection, [], [x]) => x.tokens == Tokens::New,
        (Op::Split(axis), [x], [_, ..]) => splits(*axis, x, outputs),
        (Op::Norm(norm), [x], [y]) => x == y && normalises(norm, x),
        (Op::Rope(rotation), [x], [y]) => x == y && rotates(rotation, x),
        (Op::Scale { factor }, [x], [y]) => x == y && factor.is_finite(),
        (Op::Append, [_] | [_, _], _) if inputs.len() == outputs.len() => appends(inputs, outputs),
        (Op::Prologue { norm, rope, append }, [x, ..], _) if inputs.len() == outputs.len() => {
            let parts = norm.is_none_or(|norm| normalises(&norm, x))
                && rope.as_ref().is_none_or(|rope| rotates(rope, x));
            match (append, inputs.len()) {
                (true, 1 | 2) => parts && appends(inputs, outputs),
                (false, 1) => parts && inputs == outputs,
                _ => return None,
            }
        }
        (Op::Heads { norm, rope }, [q, k, v], [y, caches @ ..]) if caches.len() == 2 => {
            let parts = [q, k].iter().all(|x| {
                norm.is_none_or(|norm| normalises(&norm, x))
                    && rope.as_ref().is_none_or(|rope| rotates(rope, x))
            });
            parts && q == y && new(&[*q]) && appends(&[*k, *v], caches)
        }
        (Op::Latents { q, kv, rope }, [a, b], [y, cache]) => {
            let parts = normalises(q, a)
                && normalises(kv, b)
                && rope.as_ref().is_none_or(|rope| rotates(rope, b));
            parts && a == y && new(&[*a]) && appends(&[*b], &[*cache])
        }
        (Op::Up, [x], [y]) => x.tokens == y.tokens,
        (Op::Absorb { nope, rope }, [x], [y]) => {
            let behind = |rope: &Rotation| rope.first >= *nope && rotates(rope, x);
            new(&[*x, *y])
                && x.heads == y.heads
                && *nope < x.width
                && x.width - nope < y.width
                && rope.as_ref().is_none_or(behind)
        }
        (Op::Expand { nope }, [x], [k, v]) => {
            let cached = [x, k, v].iter().all(|shape| shape.tokens == Tokens::Cached);
            let rope = k.width.checked_sub(*nope);
            let latent = rope.is_some_and(|rope| rope < x.width);
            cached && latent && x.heads == 1 && k.heads == v.heads
        }
        (Op::Attend(attend), [q, k, rest @ ..], [o]) => {
            let v = match (attend.v_in_k, rest) {
                (true, []) => None,
                (false, [v]) => Some(v),
                _ => return None,
            };
            attends(attend, [q, k, o], v)
        }
        (Op::Gate, [o, gate], [y]) => o == gate && o == y && new(inputs),
        (Op::Unabsorb, [x], [y]) => x.heads == y.heads && new(&[*x, *y]),
        (Op::Output, [o], []) => o.tokens == Tokens::New,
        _ => return None,
    })
}

fn splits(axis: Axis, x: &Shape, parts: &[Shape]) -> bool {
    let size = |shape: &Shape| match axis {
        Axis::Heads => shape.heads,
        Axis::Width => shape.width,
    };
    let like = |part: &Shape| match axis {
        Axis::Heads => part.width == x.width,
        Axis::Width => part.heads == x.heads,
    };
    let total: u64 = parts.iter().map(|part| u64::from(size(part))).sum();
    let alike = parts
        .iter()
        .all(|part| part.tokens == x.tokens && like(part));
    alike && total == u64::from(size(x))
}

fn normalises(norm: &Norm, x: &Shape) -> bool {
    let end = u64::from(norm.span.first) + u64::from(norm.span.len);
    norm.span.len > 0 && end <= x.width.into()
}

fn rotates(rotation: &Rotation, x: &Shape) -> bool {
    let end = u64::from(rotation.first) + u64::from(rotation.rope.dims);
    rotation.rope.dims.is_multiple_of(2) && end <= x.width.into()
}

fn appends(new: &[Shape], caches: &[Shape]) -> bool {
    let cached = |shape: &Shape| Shape {
        tokens: Tokens::Cached,
        ..*shape
    };
    let all_new = new.iter().all(|shape| shape.tokens == Tokens::New);
    all_new && new.iter().map(cached).eq(caches.iter().copied())
}

fn attends(attend: &Attend, [q, k, o]: [&Shape; 3], v: Option<&Shape>) -> bool {
    let tokens = [q, k, o].map(|shape| shape.tokens) == [Tokens::New, Tokens::Cached, Tokens::New];
    let groups = k.heads > 0 && q.heads.is_multiple_of(k.heads) && q.heads == o.heads;
    let values = match v {
        Some(v) => v.tokens == Tokens::Cached && v.heads == k.heads && v.width == o.width,
        None => o.width <= k.width,
    };
    attend.scale.is_finite() && tokens && groups && values && q.width == k.width
}

fn list(shapes: &[Shape]) -> String {
    let shapes: Vec<String> = shapes.iter().map(Shape::to_string).collect();
    shapes.join(", ")
}
