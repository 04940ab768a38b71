//! Fused layer graph → the steps that an attention layer executes.
//!
//! In:  a graph of grouped attention that `fuse` has lowered; its projections are stacked into one
//! matrix, in the order of their nodes. Out: one [`Step`] for each of the graph's kernels, in
//! order. So a layer runs the kernels that `butterfly explain` prints.

use butterfly::Append;
use butterfly::ops::GateOutput;
use butterfly_compiler::{fuse, graph};
use butterfly_ir::Phase;
use butterfly_ir::layer_graph::{Axis, LayerGraph, Node, Op, ValueId};
use butterfly_ir::model::{Form, LayerKind, ModelConfig};
use std::collections::BTreeMap;

/// One kernel of an attention layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Splits the projections into heads, and appends k and v to the cache.
    Heads(Append),
    /// Attention of q over the cache.
    Attend {
        /// Factor on the logits.
        scale: f32,
    },
    /// Multiplies o by a gate from the projections.
    Gate(GateOutput),
}

/// The steps of an attention layer, and the shapes of its weights.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    /// Rows of each projection, in the order in which they are stacked.
    pub(crate) projections: Vec<usize>,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// If q and k are normalised, the number to add to the stored norm weights: 1 if these are
    /// stored as differences from 1, else 0.
    pub(crate) norm: Option<f32>,
}

/// The program of the attention layers of a model with grouped attention. It is made from the first
/// one: they are alike.
///
/// # Errors
/// A message that names the part of the layer that has no step yet.
pub(crate) fn of(config: &ModelConfig) -> Result<Program, String> {
    let softmax = |kind: &LayerKind| kind.is_softmax();
    let layer = config.layers.iter().position(softmax).unwrap_or_default();
    let graph = graph::build(config, layer as u32, Phase::Prefill, Form::Expanded);
    lower(&fuse::lower(&graph.map_err(|error| error.to_string())?))
}

/// The place of a value's heads in a row of projections, in elements.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    /// From the start of one head to the next.
    step: usize,
}

fn lower(graph: &LayerGraph) -> Result<Program, String> {
    let mut places: BTreeMap<ValueId, Place> = BTreeMap::new();
    let (mut steps, mut projections) = (Vec::new(), Vec::new());
    let mut heads = None;
    for node in &graph.nodes {
        let unknown = || format!("{} layer {}: {}", graph.family.name(), graph.layer, node.op);
        match &node.op {
            Op::Projection => {
                let shape = graph.value(node.outputs[0]).shape;
                let start = projections.iter().sum();
                let step = shape.width as usize;
                projections.push(shape.heads as usize * step);
                places.insert(node.outputs[0], Place { start, step });
            }
            Op::Split(axis) => split(graph, node, *axis, &mut places).ok_or_else(unknown)?,
            Op::Heads { norm, .. } => {
                let append = append(graph, node, &places).ok_or_else(unknown)?;
                heads = Some((append.clone(), *norm));
                steps.push(Step::Heads(append));
            }
            Op::Attend(attend) if !attend.v_in_k => steps.push(Step::Attend {
                scale: attend.scale as f32,
            }),
            Op::Gate => {
                let gate = places.get(&node.inputs[1]).ok_or_else(unknown)?;
                let head_dim = graph.value(node.inputs[1]).shape.width as usize;
                // `GateOutput` expects rows that begin with q and gate of each head in turn.
                if (gate.start, gate.step) != (head_dim, 2 * head_dim) {
                    return Err(unknown());
                }
                steps.push(Step::Gate(GateOutput { head_dim }));
            }
            Op::Output => {}
            Op::Norm(_)
            | Op::Rope(_)
            | Op::Scale { .. }
            | Op::Append
            | Op::Prologue { .. }
            | Op::Latents { .. }
            | Op::Up
            | Op::Absorb { .. }
            | Op::Expand { .. }
            | Op::Attend(_)
            | Op::Unabsorb => return Err(unknown()),
        }
    }
    let (append, norm) = heads.ok_or("no heads")?;
    Ok(Program {
        steps,
        projections,
        q_heads: append.q_heads,
        kv_heads: append.kv_heads,
        head_dim: append.head_dim,
        norm: norm.map(|norm| if norm.zero_centred { 1.0 } else { 0.0 }),
    })
}

fn split(
    graph: &LayerGraph,
    node: &Node,
    axis: Axis,
    places: &mut BTreeMap<ValueId, Place>,
) -> Option<()> {
    let mut place = *places.get(&node.inputs[0])?;
    for part in &node.outputs {
        places.insert(*part, place);
        let shape = graph.value(*part).shape;
        place.start += match axis {
            Axis::Heads => shape.heads as usize * place.step,
            Axis::Width => shape.width as usize,
        };
    }
    Some(())
}

fn append(graph: &LayerGraph, node: &Node, places: &BTreeMap<ValueId, Place>) -> Option<Append> {
    let Op::Heads { norm, rope } = &node.op else {
        return None;
    };
    let [q, k, v] = node.inputs[..] else {
        return None;
    };
    let [q_shape, k_shape, v_shape] = [q, k, v].map(|x| graph.value(x).shape);
    let head_dim = q_shape.width as usize;
    let [q, k, v] = [places.get(&q)?, places.get(&k)?, places.get(&v)?];
    // The kernel takes heads of one size, normalises whole heads, and rotates from the first
    // element on.
    let whole = norm.is_none_or(|norm| norm.span.first == 0 && norm.span.len == q_shape.width);
    let from_first = (rope.as_ref()).is_none_or(|rotation| rotation.first == 0);
    let alike = k_shape == v_shape && k_shape.width == q_shape.width;
    let dense = k.step == head_dim && v.step == head_dim;
    (whole && from_first && alike && dense).then_some(Append {
        q_heads: q_shape.heads as usize,
        kv_heads: k_shape.heads as usize,
        head_dim,
        q_step: q.step,
        starts: [q.start, k.start, v.start],
        position: 0,
        lagging: false,
        norm: norm.map(|norm| norm.eps as f32),
        rotated: rope
            .as_ref()
            .map_or(0, |rotation| rotation.rope.dims as usize),
        interleaved: (rope.as_ref()).is_some_and(|rotation| rotation.rope.interleaved),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_compiler::config;

    fn model(name: &str) -> ModelConfig {
        let root = env!("CARGO_MANIFEST_DIR");
        let file = format!("{root}/../tests/fixtures/configs/{name}.json");
        let json = std::fs::read_to_string(&file).expect("a config");
        config::read(&file, &json).expect("a config")
    }

    /// The steps are the kernels of the fused graph, in prefill and in decode.
    #[test]
    fn each_kernel_of_the_fused_graph_is_a_step() {
        for name in [
            "gpt2",
            "llama-3.1-8b",
            "mistral-7b-v0.1",
            "phi-3-mini-4k",
            "qwen2.5-7b",
            "qwen3-8b",
            "qwen3.5-9b",
        ] {
            let config = model(name);
            let program = of(&config).expect("a program");
            for phase in [Phase::Prefill, Phase::Decode] {
                let layer = config.layers.len() as u32 - 1;
                let fused = graph::build(&config, layer, phase, Form::Expanded).expect("a graph");
                let fused = fuse::lower(&fused);
                assert_eq!(program, lower(&fused).expect("the same"), "{name}");
                let kernels = fused.nodes.iter().filter(|node| !node.op.is_free());
                let kernels: Vec<&str> = kernels
                    .map(|node| match node.op {
                        Op::Heads { .. } => "heads",
                        Op::Attend(_) => "attend",
                        Op::Gate => "gate",
                        _ => "another",
                    })
                    .collect();
                let steps: Vec<&str> = (program.steps.iter())
                    .map(|step| match step {
                        Step::Heads(_) => "heads",
                        Step::Attend { .. } => "attend",
                        Step::Gate(_) => "gate",
                    })
                    .collect();
                assert_eq!(steps, kernels, "{name}");
            }
        }
    }

    #[test]
    fn q_and_gate_lie_head_by_head() {
        let program = of(&model("qwen3.5-9b")).expect("a program");
        assert_eq!(program.projections, [16 * 512, 4 * 256, 4 * 256]);
        let Step::Heads(append) = &program.steps[0] else {
            panic!("{program:?}");
        };
        assert_eq!((append.q_step, append.rotated), (512, 64));
        assert_eq!(append.starts, [0, 8192, 9216]);
        assert_eq!(program.norm, Some(1.0));
    }

    /// The error names the layer: latent attention has steps of its own.
    #[test]
    fn latent_attention_has_another_program() {
        let error = of(&model("glm-4.7-flash")).expect_err("no program");
        assert!(error.contains("glm4_moe_lite layer 0"), "{error}");
    }
}
