use super::{Attend, LayerGraph, Node, Op, Shape, Span, Tokens, Traffic, Value, ValueId, verify};
use super::{Axis, Norm};
use crate::model::Family;
use crate::{Dtype, Phase};

fn value(tokens: Tokens, heads: u32, width: u32) -> Value {
    Value {
        name: "x".into(),
        shape: Shape {
            tokens,
            heads,
            width,
        },
    }
}

const ATTEND: Attend = Attend {
    scale: 0.25,
    v_in_k: false,
};

/// q of 4 heads, k and v of 2, all 16 wide.
fn layer() -> LayerGraph {
    let mut graph = LayerGraph::new(Family::Llama, 0, Phase::Prefill, Dtype::F16);
    let new = |heads| vec![value(Tokens::New, heads, 16)];
    let q = graph.push(Op::Projection, &[], new(4))[0];
    let k = graph.push(Op::Projection, &[], new(2))[0];
    let v = graph.push(Op::Projection, &[], new(2))[0];
    let caches = vec![value(Tokens::Cached, 2, 16); 2];
    let caches = graph.push(Op::Append, &[k, v], caches);
    let o = graph.push(Op::Attend(ATTEND), &[q, caches[0], caches[1]], new(4));
    graph.push(Op::Output, &o, vec![]);
    graph
}

#[test]
fn each_broken_invariant_is_named() {
    type Break = fn(&mut LayerGraph);
    let cases: &[(Break, &str)] = &[
        (
            |graph| graph.nodes[3].inputs[1] = ValueId(9),
            "node 3 names %9, but there are 6 values",
        ),
        (
            |graph| graph.nodes[3].inputs[0] = ValueId(5),
            "node 3 reads %5, which no earlier node makes",
        ),
        (
            |graph| graph.nodes.swap(2, 3),
            "node 2 reads %2, which no earlier node makes",
        ),
        (
            |graph| graph.nodes[1].outputs[0] = ValueId(0),
            "node 1 makes %0, which an earlier node makes",
        ),
        (
            |graph| drop(graph.push(Op::Projection, &[], vec![value(Tokens::New, 1, 8)])),
            "%6 is read by no node",
        ),
        (
            |graph| graph.values.push(value(Tokens::New, 1, 8)),
            "%6 is made by no node",
        ),
        (|graph| drop(graph.nodes.pop()), "%5 is read by no node"),
        (
            |graph| {
                let output = graph.nodes[5].clone();
                graph.nodes.push(output);
            },
            "there are 2 nodes `output`; there must be one",
        ),
        (
            |graph| {
                graph.nodes.truncate(1);
                graph.values.truncate(1);
                graph.push(Op::Output, &[ValueId(0)], vec![]);
            },
            "there are 0 nodes `attend`; there must be one",
        ),
        (
            |graph| graph.nodes[4].inputs.truncate(2),
            "node 4 `attend{scale 0.250000}` reads 2 and makes 1 values",
        ),
        (
            |graph| graph.values[0].shape.heads = 3,
            "node 4 `attend{scale 0.250000}` makes [q_len, 4, 16] of [q_len, 3, 16], \
             [kv_len, 2, 16], [kv_len, 2, 16]",
        ),
        (
            |graph| graph.values[3].shape.width = 8,
            "node 3 `append` makes [kv_len, 2, 8], [kv_len, 2, 16] of [q_len, 2, 16], \
             [q_len, 2, 16]",
        ),
        (
            |graph| {
                let norm = Norm {
                    span: Span { first: 8, len: 16 },
                    eps: 1e-6,
                    zero_centred: false,
                };
                graph.nodes[3] = Node {
                    op: Op::Prologue {
                        norm: Some(norm),
                        rope: None,
                        append: true,
                    },
                    ..graph.nodes[3].clone()
                };
            },
            "node 3 `prologue{norm 8..24 eps 1e-6; append}` makes [kv_len, 2, 16], \
             [kv_len, 2, 16] of [q_len, 2, 16], [q_len, 2, 16]",
        ),
        (
            |graph| graph.nodes[3].op = Op::Split(Axis::Heads),
            "node 3 `split heads` reads 2 and makes 2 values",
        ),
    ];
    assert_eq!(verify(&layer()), Ok(()));
    for (breaks, message) in cases {
        let mut graph = layer();
        breaks(&mut graph);
        assert_eq!(
            verify(&graph).map_err(|error| error.to_string()),
            Err((*message).into())
        );
    }
}

#[test]
fn traffic_counts_operands_results_and_the_log_sum_exp() {
    let graph = layer();
    let rows = 2 * 16 * 2;
    let append = graph.node_traffic(&graph.nodes[3]);
    // k and v are read and written, both only for the new tokens.
    assert_eq!(append.to_string(), format!("{} q_len", 4 * rows));
    let attend = graph.node_traffic(&graph.nodes[4]);
    assert_eq!(
        (attend.per_query, attend.per_key),
        (4 * rows + 4 * 4, 2 * rows)
    );
    assert_eq!(graph.kernels(), 2);
    assert_eq!(
        graph.traffic().at(3, 10),
        3 * (8 * rows + 16) + 10 * 2 * rows
    );
}

#[test]
fn traffic_saturates() {
    let all = Traffic {
        per_query: u64::MAX,
        per_key: 1,
        fixed: 7,
    };
    assert_eq!(all.at(2, 2), u64::MAX);
    assert_eq!(Traffic::default().to_string(), "0");
}
