//! Layer graph → layer graph with fewer kernels and less traffic.
//!
//! In:  any graph that passes [`butterfly_ir::layer_graph::verify`]. Out: a graph that passes it
//! too, computes the same, and to which none of the rules below applies; fusing it again changes
//! nothing.
//!
//! 1. Steps without effect are removed: a factor of 1, a rotation of no elements, a split into one
//!    part.
//! 2. A factor on q moves into the attend node, whose kernel multiplies the logits by a factor
//!    anyway. So q is not rounded once more.
//! 3. Consecutive norm, rotation and append become one prologue: one kernel reads the new rows once
//!    and writes them straight into the cache.
//! 4. The prologue of q is joined with that of k and v if both do the same: one kernel then makes
//!    the heads of all three.
//! 5. In latent attention, the norm of the q latent is joined with the prologue of the kv latent, which
//!    needs nothing but projections either.
//! 6. Where q is absorbed, its rotation becomes part of that.
//!
//! Another norm whose result goes into a matrix product stays as it is. Each remaining node that is not
//! free is one kernel when a model runs (`models/src/layers/program.rs`).

mod latents;

use butterfly_ir::layer_graph::{LayerGraph, Node, Op, ValueId};

/// Fuses the steps around attention in `graph`.
pub fn lower(graph: &LayerGraph) -> LayerGraph {
    let mut graph = graph.clone();
    let mut nodes = std::mem::take(&mut graph.nodes);
    let rules: [fn(&mut Vec<Node>) -> bool; 3] = [drop_identity, fold_scale, merge_prologue];
    // This ends: each change removes a node, or turns one into a prologue, which it then stays.
    while rules.iter().any(|rule| rule(&mut nodes)) {}
    join_heads(&mut graph, &mut nodes);
    latents::join(&mut nodes);
    latents::rotate_in_absorb(&mut nodes);
    renumber(&graph, nodes)
}

/// Rule 1: removes a node without effect; readers of its result read its operand instead.
fn drop_identity(nodes: &mut Vec<Node>) -> bool {
    let identity = |node: &Node| match &node.op {
        Op::Scale { factor } => *factor == 1.0,
        Op::Rope(rotation) => rotation.rope.dims == 0,
        Op::Split(_) => node.outputs.len() == 1,
        Op::Prologue { norm, rope, append } => norm.is_none() && rope.is_none() && !append,
        Op::Projection
        | Op::Norm(_)
        | Op::Append
        | Op::Heads { .. }
        | Op::Latents { .. }
        | Op::Up
        | Op::Absorb { .. }
        | Op::Expand { .. }
        | Op::Attend(_)
        | Op::Gate
        | Op::Unabsorb
        | Op::Output => false,
    };
    let Some(at) = nodes.iter().position(identity) else {
        return false;
    };
    let node = nodes.remove(at);
    replace(nodes, node.outputs[0], node.inputs[0]);
    true
}

/// Rule 2: moves a factor on q into the attend node.
fn fold_scale(nodes: &mut Vec<Node>) -> bool {
    let found = nodes.iter().enumerate().find_map(|(at, node)| {
        let Op::Scale { factor } = node.op else {
            return None;
        };
        let reader = only_reader(nodes, node.outputs[0])?;
        // Only if it is read as q. `only_reader` has ruled out that the same value is read as k
        // too.
        let is_q =
            matches!(nodes[reader].op, Op::Attend(_)) && nodes[reader].inputs[0] == node.outputs[0];
        is_q.then_some((at, reader, factor))
    });
    let Some((at, reader, factor)) = found else {
        return false;
    };
    if let Op::Attend(attend) = &mut nodes[reader].op {
        attend.scale *= factor;
    }
    let node = nodes.remove(at);
    replace(nodes, node.outputs[0], node.inputs[0]);
    true
}

/// Rule 3: turns a step into a prologue, or joins two consecutive prologues.
fn merge_prologue(nodes: &mut Vec<Node>) -> bool {
    for at in 0..nodes.len() {
        let node = &nodes[at];
        let reader = node.outputs.first().and_then(|x| only_reader(nodes, *x));
        let into_product = reader.is_some_and(|reader| nodes[reader].op == Op::Up);
        let prologue = |norm, rope, append| Op::Prologue { norm, rope, append };
        let alone = match &node.op {
            Op::Norm(norm) if !into_product => prologue(Some(*norm), None, false),
            Op::Rope(rotation) => prologue(None, Some(rotation.clone()), false),
            Op::Append => prologue(None, None, true),
            Op::Norm(_)
            | Op::Projection
            | Op::Split(_)
            | Op::Scale { .. }
            | Op::Prologue { .. }
            | Op::Heads { .. }
            | Op::Latents { .. }
            | Op::Up
            | Op::Absorb { .. }
            | Op::Expand { .. }
            | Op::Attend(_)
            | Op::Gate
            | Op::Unabsorb
            | Op::Output => {
                if let Some(reader) = reader.filter(|reader| join(nodes, at, *reader)) {
                    // The later node stays: all inputs of both are made before it.
                    let first = nodes[at].inputs[0];
                    nodes[reader].inputs[0] = first;
                    nodes.remove(at);
                    return true;
                }
                continue;
            }
        };
        nodes[at].op = alone;
        return true;
    }
    false
}

/// Adds the steps of prologue `at` to those of `reader`, which follow them, if one prologue can
/// hold both. Returns whether it has done so.
fn join(nodes: &mut [Node], at: usize, reader: usize) -> bool {
    let Op::Prologue {
        norm: first_norm,
        rope: first_rope,
        append: false,
    } = nodes[at].op.clone()
    else {
        return false;
    };
    let result = nodes[at].outputs[0];
    let leads = nodes[reader].inputs.first() == Some(&result);
    let Op::Prologue { norm, rope, .. } = &mut nodes[reader].op else {
        return false;
    };
    // A prologue is at most one norm, then at most one rotation.
    let in_order = norm.is_none() && (first_rope.is_none() || rope.is_none());
    if leads && in_order {
        *norm = first_norm;
        *rope = first_rope.or(rope.take());
    }
    leads && in_order
}

/// Rule 4: joins the prologue of q with that of k and v.
fn join_heads(graph: &mut LayerGraph, nodes: &mut Vec<Node>) {
    let attends = |node: &Node| matches!(&node.op, Op::Attend(attend) if !attend.v_in_k);
    let Some(attend) = nodes.iter().position(attends) else {
        return;
    };
    let [q, k, v] = nodes[attend].inputs[..] else {
        return;
    };
    let made_by = |x: ValueId| nodes.iter().position(|node| node.outputs.contains(&x));
    let Some(append) = made_by(k).filter(|append| nodes[*append].outputs == [k, v]) else {
        return;
    };
    let Op::Prologue {
        norm,
        rope,
        append: true,
    } = nodes[append].op.clone()
    else {
        return;
    };
    // q comes from a prologue of its own or, without norm and rotation, straight from a projection.
    let same = Op::Prologue {
        norm,
        rope: rope.clone(),
        append: false,
    };
    let is_prologue = |at: usize| matches!(nodes[at].op, Op::Prologue { .. });
    let own = made_by(q).filter(|own| nodes[*own].op == same && only_reader(nodes, q).is_some());
    let (source, result) = match own {
        Some(own) => (nodes[own].inputs[0], q),
        None if norm.is_none() && rope.is_none() && !made_by(q).is_some_and(is_prologue) => {
            let projected = graph.value(q).clone();
            graph.values.push(projected);
            (q, ValueId(graph.values.len() as u32 - 1))
        }
        None => return,
    };
    let new = [&[source], &nodes[append].inputs[..]].concat();
    nodes[append] = Node {
        op: Op::Heads { norm, rope },
        inputs: new,
        outputs: vec![result, k, v],
    };
    nodes[attend].inputs[0] = result;
    if let Some(own) = own {
        nodes.remove(own);
    }
}

/// The only node that reads `value`, if it reads it only once.
fn only_reader(nodes: &[Node], value: ValueId) -> Option<usize> {
    let reads = |node: &Node| node.inputs.iter().filter(|x| **x == value).count();
    let mut readers = nodes.iter().enumerate().filter(|(_, node)| reads(node) > 0);
    let (reader, node) = readers.next()?;
    (reads(node) == 1 && readers.next().is_none()).then_some(reader)
}

fn replace(nodes: &mut [Node], from: ValueId, to: ValueId) {
    let inputs = nodes.iter_mut().flat_map(|node| &mut node.inputs);
    inputs.filter(|x| **x == from).for_each(|x| *x = to);
}

/// The graph of `nodes`, with values numbered in the order in which they are made.
fn renumber(graph: &LayerGraph, nodes: Vec<Node>) -> LayerGraph {
    let LayerGraph {
        family,
        layer,
        phase,
        dtype,
        ..
    } = *graph;
    let mut lowered = LayerGraph::new(family, layer, phase, dtype);
    let mut ids = vec![ValueId(0); graph.values.len()];
    for node in nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|x| ids[x.0 as usize]).collect();
        let values = node.outputs.iter().map(|x| graph.value(*x).clone());
        let outputs = lowered.push(node.op, &inputs, values.collect());
        for (old, new) in node.outputs.iter().zip(outputs) {
            ids[old.0 as usize] = new;
        }
    }
    lowered
}

#[cfg(test)]
mod meaning;
#[cfg(test)]
mod tests;
