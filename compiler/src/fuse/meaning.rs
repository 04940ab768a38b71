//! An interpreter of layer graphs in f64. Tests with it check that fusing does not change the
//! result, and that expanded and absorbed latent attention agree.

use super::lower;
use super::tests::model;
use crate::graph;
use butterfly_ir::Phase;
use butterfly_ir::layer_graph::{Axis, LayerGraph, Norm, Op, Rotation, Shape};
use butterfly_ir::model::{AttentionShape, Form, ModelConfig};

const TOKENS: usize = 5;

/// [token][head][element]
type Tensor = Vec<Vec<Vec<f64>>>;

/// Element `i` of the weight or input `name`: pseudo-random in -1..1, the same in every run.
fn noise(name: &str, i: usize) -> f64 {
    let seed = name
        .bytes()
        .fold(17u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    let mixed = (seed.wrapping_add(i as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn fill(shape: Shape, mut f: impl FnMut(usize, usize, usize) -> f64) -> Tensor {
    let (heads, width) = (shape.heads as usize, shape.width as usize);
    let mut row = |t, h| (0..width).map(|d| f(t, h, d)).collect();
    let mut token = |t| (0..heads).map(|h| row(t, h)).collect();
    (0..TOKENS).map(&mut token).collect()
}

fn normalise(norm: &Norm, name: &str, x: &mut Tensor) {
    let span = norm.span.first as usize..(norm.span.first + norm.span.len) as usize;
    for part in x.iter_mut().flatten().map(|row| &mut row[span.clone()]) {
        let square: f64 = part.iter().map(|x| x * x).sum::<f64>() / part.len() as f64;
        let one = if norm.zero_centred { 1.0 } else { 0.0 };
        for (i, x) in part.iter_mut().enumerate() {
            *x *= (one + noise(name, i)) / (square + norm.eps).sqrt();
        }
    }
}

fn rotate(rotation: &Rotation, x: &mut Tensor) {
    let (first, dims) = (rotation.first as usize, rotation.rope.dims as usize);
    for (t, row) in x
        .iter_mut()
        .enumerate()
        .flat_map(|(t, rows)| rows.iter_mut().map(move |r| (t, r)))
    {
        for i in 0..dims / 2 {
            let angle = t as f64 * rotation.rope.theta.powf(-2.0 * i as f64 / dims as f64);
            let (a, b) = match rotation.rope.interleaved {
                true => (first + 2 * i, first + 2 * i + 1),
                false => (first + i, first + i + dims / 2),
            };
            let (sin, cos) = angle.sin_cos();
            (row[a], row[b]) = (row[a] * cos - row[b] * sin, row[b] * cos + row[a] * sin);
        }
    }
}

/// The value that the output node reads, if every token is new and attention is causal.
fn run(graph: &LayerGraph) -> Tensor {
    let mut values: Vec<Tensor> = Vec::new();
    let (mut projections, mut norms) = (0, 0);
    for node in &graph.nodes {
        let inputs: Vec<Tensor> = node
            .inputs
            .iter()
            .map(|x| values[x.0 as usize].clone())
            .collect();
        let shapes: Vec<Shape> = node.outputs.iter().map(|x| graph.value(*x).shape).collect();
        let mut outputs = inputs.clone();
        // Weights are named by the order of norms and projections, which fusing keeps.
        let mut norm_into = |norm: &Norm, x: &mut Tensor| {
            norms += 1;
            normalise(norm, &format!("norm {norms}"), x);
        };
        match &node.op {
            Op::Projection => {
                projections += 1;
                let name = format!("projection {projections}");
                outputs = vec![fill(shapes[0], |t, h, d| {
                    noise(&name, (t * 64 + h) * 64 + d)
                })];
            }
            Op::Split(axis) => {
                let mut first = 0;
                outputs = shapes
                    .iter()
                    .map(|shape| {
                        let at = first;
                        first += match axis {
                            Axis::Heads => shape.heads as usize,
                            Axis::Width => shape.width as usize,
                        };
                        fill(*shape, |t, h, d| match axis {
                            Axis::Heads => inputs[0][t][at + h][d],
                            Axis::Width => inputs[0][t][h][at + d],
                        })
                    })
                    .collect();
            }
            Op::Norm(norm) => norm_into(norm, &mut outputs[0]),
            Op::Rope(rotation) => rotate(rotation, &mut outputs[0]),
            Op::Scale { factor } => {
                outputs[0]
                    .iter_mut()
                    .flatten()
                    .flatten()
                    .for_each(|x| *x *= factor);
            }
            Op::Append => {}
            Op::Prologue { norm, rope, .. } => {
                norm.iter()
                    .for_each(|norm| norm_into(norm, &mut outputs[0]));
                rope.iter().for_each(|rope| rotate(rope, &mut outputs[0]));
            }
            Op::Heads { norm, rope } => {
                for x in &mut outputs[..2] {
                    norm.iter().for_each(|norm| norm_into(norm, x));
                    rope.iter().for_each(|rope| rotate(rope, x));
                }
            }
            Op::Latents { q, kv, rope } => {
                norm_into(q, &mut outputs[0]);
                norm_into(kv, &mut outputs[1]);
                rope.iter().for_each(|rope| rotate(rope, &mut outputs[1]));
            }
            Op::Up => {
                let x = &inputs[0];
                let weight = |h, d, i| noise("up", (h * 64 + d) * 64 + i) / 8.0;
                let dot = |t: usize, h, d| {
                    x[t][0]
                        .iter()
                        .enumerate()
                        .map(|(i, x)| x * weight(h, d, i))
                        .sum()
                };
                outputs = vec![fill(shapes[0], dot)];
            }
            Op::Absorb { nope, rope } => {
                rope.iter().for_each(|rope| rotate(rope, &mut outputs[0]));
                let (q, nope) = (outputs.remove(0), *nope as usize);
                let rank = shapes[0].width as usize - (q[0][0].len() - nope);
                outputs = vec![fill(shapes[0], |t, h, d| match d.checked_sub(rank) {
                    Some(rotated) => q[t][h][nope + rotated],
                    None => (0..nope).map(|n| q[t][h][n] * key_up(h, n, d)).sum(),
                })];
            }
            Op::Expand { nope } => {
                let (x, nope) = (&inputs[0], *nope as usize);
                let rank = x[0][0].len() - (shapes[0].width as usize - nope);
                let k = fill(shapes[0], |t, h, d| match d.checked_sub(nope) {
                    Some(rotated) => x[t][0][rank + rotated],
                    None => (0..rank).map(|r| x[t][0][r] * key_up(h, d, r)).sum(),
                });
                let v = |t: usize, h, d| (0..rank).map(|r| x[t][0][r] * value_up(h, r, d)).sum();
                outputs = vec![k, fill(shapes[1], v)];
            }
            Op::Unabsorb => {
                let o = &inputs[0];
                let rank = o[0][0].len();
                let v =
                    |t: usize, h: usize, d| (0..rank).map(|r| o[t][h][r] * value_up(h, r, d)).sum();
                outputs = vec![fill(shapes[0], v)];
            }
            Op::Attend(attend) => {
                let (q, k) = (&inputs[0], &inputs[1]);
                let v = if attend.v_in_k { k } else { &inputs[2] };
                let group = q[0].len() / k[0].len();
                let logit = |t: usize, h: usize, s: usize| {
                    let pairs = q[t][h].iter().zip(&k[s][h / group]);
                    attend.scale * pairs.map(|(q, k)| q * k).sum::<f64>()
                };
                outputs = vec![fill(shapes[0], |t, h, d| {
                    let weights: Vec<f64> = (0..=t).map(|s| logit(t, h, s).exp()).collect();
                    let sum: f64 = (0..=t).map(|s| weights[s] * v[s][h / group][d]).sum();
                    sum / weights.iter().sum::<f64>()
                })];
            }
            Op::Gate => outputs = vec![gated(&inputs[0], &inputs[1], shapes[0])],
            Op::Output => return inputs[0].clone(),
        }
        values.extend(outputs);
    }
    panic!("no output:\n{graph}");
}

fn gated(o: &Tensor, gate: &Tensor, shape: Shape) -> Tensor {
    fill(shape, |t, h, d| o[t][h][d] / (1.0 + (-gate[t][h][d]).exp()))
}

fn key_up(head: usize, key: usize, latent: usize) -> f64 {
    noise("key up", (head * 64 + key) * 64 + latent) / 4.0
}

fn value_up(head: usize, latent: usize, value: usize) -> f64 {
    noise("value up", (head * 64 + value) * 64 + latent) / 4.0
}

/// A model of the same kind, small enough to run.
fn small(name: &str) -> ModelConfig {
    let mut config = model(name);
    config.attention = match config.attention {
        AttentionShape::Gqa {
            q_heads, kv_heads, ..
        } => AttentionShape::Gqa {
            q_heads: 4,
            kv_heads: if q_heads == kv_heads { 4 } else { 2 },
            head_dim: 16,
        },
        AttentionShape::Mla { .. } => AttentionShape::Mla {
            q_heads: 3,
            q_lora_rank: Some(24),
            kv_lora_rank: 16,
            nope_dim: 8,
            rope_dim: 16,
            v_dim: 32,
        },
    };
    if let Some(rope) = &mut config.rope {
        // A partial rotation if the model has one: 64 of 256 elements.
        let partial = rope.dims == 64 && !rope.interleaved;
        rope.dims = if partial { 8 } else { 16 };
    }
    config
}

fn assert_near(a: &Tensor, b: &Tensor, what: &str) {
    let flat = |x: &Tensor| -> Vec<f64> { x.iter().flatten().flatten().copied().collect() };
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len(), "{what}");
    let worst = a
        .iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(worst < 1e-12, "{what}: {worst}");
    assert!(
        a.iter().any(|x| x.abs() > 1e-3),
        "{what}: nothing but zeros"
    );
}

const MODELS: [&str; 6] = [
    "gpt2",
    "llama-3.1-8b",
    "qwen3-8b",
    "qwen3.5-9b",
    "qwen3.5-35b-a3b",
    "glm-4.7-flash",
];

#[test]
fn fusing_keeps_the_meaning() {
    for name in MODELS {
        for form in [Form::Expanded, Form::Absorbed] {
            let graph = graph::build(&small(name), 3, Phase::Prefill, form).unwrap();
            assert_near(&run(&graph), &run(&lower(&graph)), name);
        }
    }
}

#[test]
fn expanded_and_absorbed_attention_agree() {
    let config = small("glm-4.7-flash");
    let [expanded, absorbed] = [Form::Expanded, Form::Absorbed]
        .map(|form| run(&graph::build(&config, 3, Phase::Prefill, form).unwrap()));
    assert_near(&expanded, &absorbed, "glm4_moe_lite");
}
