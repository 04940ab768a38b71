use super::lower;
use crate::{config, graph};
use butterfly_ir::layer_graph::{
    Attend, Axis, LayerGraph, Op, Rotation, Shape, Tokens, Value, verify,
};
use butterfly_ir::model::{Family, Form, ModelConfig, Rope, RopeScaling};
use butterfly_ir::{Dtype, Phase};

/// Config, layer and phase of each graph to list, and its listings before and after fusing.
const LISTINGS: [(&str, u32, Phase, &str); 7] = [
    ("gpt2", 0, Phase::Prefill, include_str!("listings/gpt2.txt")),
    (
        "llama-3.1-8b",
        31,
        Phase::Prefill,
        include_str!("listings/llama.txt"),
    ),
    (
        "qwen3-8b",
        5,
        Phase::Decode,
        include_str!("listings/qwen3.txt"),
    ),
    (
        "qwen3.5-9b",
        3,
        Phase::Prefill,
        include_str!("listings/qwen3_5.txt"),
    ),
    (
        "qwen3.5-35b-a3b",
        39,
        Phase::Decode,
        include_str!("listings/qwen3_5_moe.txt"),
    ),
    (
        "glm-4.7-flash",
        0,
        Phase::Prefill,
        include_str!("listings/glm4_expanded.txt"),
    ),
    (
        "glm-4.7-flash",
        46,
        Phase::Decode,
        include_str!("listings/glm4_absorbed.txt"),
    ),
];

pub(super) fn model(name: &str) -> ModelConfig {
    let file = format!(
        "{}/../tests/fixtures/configs/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let json = std::fs::read_to_string(&file).unwrap();
    config::read(&file, &json).unwrap()
}

/// Expanded for prefill, absorbed for decode.
fn built(name: &str, layer: u32, phase: Phase) -> LayerGraph {
    let form = match phase {
        Phase::Prefill => Form::Expanded,
        Phase::Decode => Form::Absorbed,
    };
    graph::build(&model(name), layer, phase, form).unwrap()
}

#[test]
fn listings_before_and_after() {
    for (name, layer, phase, expected) in LISTINGS {
        let before = built(name, layer, phase);
        let listing = format!("{before}\n{}", lower(&before));
        assert_eq!(listing, expected, "{name}:\n{listing}");
    }
}

#[test]
fn every_graph_is_verified_and_fusing_never_costs() {
    for (name, layer, _, _) in LISTINGS {
        for phase in [Phase::Prefill, Phase::Decode] {
            let before = built(name, layer, phase);
            let after = lower(&before);
            assert_eq!(verify(&before), Ok(()), "{before}");
            assert_eq!(verify(&after), Ok(()), "{after}");
            assert_eq!(lower(&after), after);
            assert!(after.kernels() < before.kernels(), "{name}");
            for (q_len, kv_len) in [(1, 1), (1, 1 << 20), (8192, 8192)] {
                let bytes = |graph: &LayerGraph| graph.traffic().at(q_len, kv_len);
                assert!(bytes(&after) <= bytes(&before), "{name}");
            }
        }
    }
}

#[test]
fn bytes_of_a_gated_layer() {
    // Qwen3.5-9B: rows of q, o and gate are 16 x 256, of k and v 4 x 256, bf16.
    let (q, k) = (16 * 256 * 2, 4 * 256 * 2);
    let after = lower(&built("qwen3.5-9b", 3, Phase::Prefill)).traffic();
    // q in and out, k and v in and out, then q, o and the log-sum-exp, then o, gate and o.
    assert_eq!(after.per_query, 2 * q + 4 * k + 2 * q + 16 * 4 + 3 * q);
    assert_eq!(after.per_key, 2 * k);
    assert_eq!(after.fixed, 2 * 256 * 2);
    let before = built("qwen3.5-9b", 3, Phase::Prefill).traffic();
    // Norm and rotation of q and k, the factor on q, the append, attend, and the gate.
    assert_eq!(
        before.per_query,
        4 * q + 4 * k + 2 * q + 4 * k + 2 * q + 64 + 3 * q
    );
    assert_eq!((before.per_key, before.fixed), (after.per_key, after.fixed));
}

#[test]
fn absorbed_decode_reads_the_latent_cache_once() {
    let after = lower(&built("glm-4.7-flash", 1, Phase::Decode)).traffic();
    assert_eq!(after.per_key, (512 + 64) * 2);
    let expanded = lower(&built("glm-4.7-flash", 1, Phase::Prefill)).traffic();
    // The cache, and keys and values of 20 heads written and read.
    assert_eq!(expanded.per_key, (512 + 64) * 2 + 2 * 20 * (256 + 256) * 2);
}

#[test]
fn steps_without_effect_go() {
    let x = |tokens| Value {
        name: "x".into(),
        shape: Shape {
            tokens,
            heads: 2,
            width: 8,
        },
    };
    let rope = Rope {
        theta: 10_000.0,
        dims: 0,
        interleaved: false,
        scaling: RopeScaling::Default,
    };
    let mut graph = LayerGraph::new(Family::Llama, 0, Phase::Prefill, Dtype::F32);
    let q = graph.push(Op::Projection, &[], vec![x(Tokens::New)]);
    let q = graph.push(Op::Split(Axis::Heads), &q, vec![x(Tokens::New)]);
    let q = graph.push(
        Op::Rope(Rotation { first: 0, rope }),
        &q,
        vec![x(Tokens::New)],
    );
    let q = graph.push(Op::Scale { factor: 1.0 }, &q, vec![x(Tokens::New)]);
    let k = graph.push(Op::Projection, &[], vec![x(Tokens::New)]);
    let k = graph.push(Op::Append, &k, vec![x(Tokens::Cached)]);
    let attend = Attend {
        scale: 0.5,
        v_in_k: true,
    };
    let o = graph.push(Op::Attend(attend), &[q[0], k[0]], vec![x(Tokens::New)]);
    graph.push(Op::Output, &o, vec![]);
    assert_eq!(verify(&graph), Ok(()));

    let after = lower(&graph);
    assert_eq!(verify(&after), Ok(()));
    let ops: Vec<String> = after.nodes.iter().map(|node| node.op.to_string()).collect();
    let expected = [
        "projection",
        "projection",
        "prologue{append}",
        "attend{scale 0.500000; v in k}",
        "output",
    ];
    assert_eq!(ops, expected);
}

#[test]
fn what_is_read_twice_is_not_fused() {
    // A rotated k that a second node reads too must stay a value of the graph.
    let mut graph = built("llama-3.1-8b", 0, Phase::Prefill);
    let rotated = graph
        .nodes
        .iter()
        .rposition(|node| matches!(node.op, Op::Rope(_)));
    let rotated = graph.nodes[rotated.unwrap()].outputs[0];
    let append = graph
        .nodes
        .iter()
        .position(|node| node.op == Op::Append)
        .unwrap();
    graph.nodes[append].inputs[1] = rotated;
    let after = lower(&graph);
    let prologues = after.nodes.iter().map(|node| node.op.to_string());
    let prologues: Vec<String> = prologues.filter(|op| op.starts_with("prologue")).collect();
    assert_eq!(prologues.len(), 3, "{after}");
    assert_eq!(prologues[2], "prologue{append}");
}

#[test]
fn only_attention_layers_have_graphs() {
    let config = model("qwen3.5-9b");
    let error = |layer| {
        graph::build(&config, layer, Phase::Prefill, Form::Expanded)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(32),
        "there is no layer 32: the model has 32, counted from 0"
    );
    assert_eq!(
        error(4),
        "layer 4 has linear attention, which is not swapped and has no graph"
    );
}
