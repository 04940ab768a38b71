//! The rules of fusing that only latent attention has.

use super::{only_reader, replace};
use butterfly_ir::layer_graph::{Node, Op, ValueId};

/// Rule 5: joins the norm of the q latent with the prologue of the kv latent.
///
/// Both read what projections of the hidden vector make; these have no inputs, so the one of the kv
/// latent can stand before the joined node, which takes the place of the norm.
pub(super) fn join(nodes: &mut Vec<Node>) {
    let made_by = |nodes: &[Node], x: ValueId| -> Option<usize> {
        nodes.iter().position(|node| node.outputs.contains(&x))
    };
    let projected = |nodes: &[Node], node: &Node| {
        let source = node.inputs.first().and_then(|x| made_by(nodes, *x));
        source.filter(|at| nodes[*at].op == Op::Projection)
    };
    let of_q = |node: &Node| match node.op {
        Op::Norm(norm) => Some(norm),
        _ => None,
    };
    let of_kv = |node: &Node| match &node.op {
        Op::Prologue {
            norm: Some(norm),
            rope,
            append: true,
        } if node.inputs.len() == 1 => Some((*norm, rope.clone())),
        _ => None,
    };
    let found = nodes.iter().enumerate().find_map(|(at, node)| {
        let norm = of_q(node)?;
        projected(nodes, node)?;
        let (other, (kv, rope)) =
            (nodes.iter().enumerate()).find_map(|(other, node)| Some((other, of_kv(node)?)))?;
        let source = projected(nodes, &nodes[other])?;
        let joined = Op::Latents { q: norm, kv, rope };
        (at < other).then_some((at, other, source, joined))
    });
    let Some((at, other, source, op)) = found else {
        return;
    };
    let of_kv = nodes.remove(other);
    nodes[at].op = op;
    nodes[at].inputs.extend(of_kv.inputs);
    nodes[at].outputs.extend(of_kv.outputs);
    if source > at {
        let projection = nodes.remove(source);
        nodes.insert(at, projection);
    }
}

/// Rule 6: makes a prologue that only rotates q part of the absorption that reads its result.
pub(super) fn rotate_in_absorb(nodes: &mut Vec<Node>) {
    let found = nodes.iter().enumerate().find_map(|(at, node)| {
        let Op::Prologue {
            norm: None,
            rope: Some(rotation),
            append: false,
        } = &node.op
        else {
            return None;
        };
        let reader = only_reader(nodes, node.outputs[0])?;
        match &nodes[reader].op {
            Op::Absorb { nope, rope: None } if rotation.first >= *nope => {
                Some((at, reader, rotation.clone()))
            }
            _ => None,
        }
    });
    let Some((at, reader, rotation)) = found else {
        return;
    };
    if let Op::Absorb { rope, .. } = &mut nodes[reader].op {
        *rope = Some(rotation);
    }
    let node = nodes.remove(at);
    replace(nodes, node.outputs[0], node.inputs[0]);
}
