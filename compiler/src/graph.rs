//! Model config → the graph of one attention layer, with one node for each step of the model's
//! definition.
//!
//! In:  a [`ModelConfig`] that upholds its invariants. Out: a [`LayerGraph`] that passes
//! [`butterfly_ir::layer_graph::verify`]. Nothing is fused, and steps without effect are not yet
//! removed.

use crate::family::{self, Layer};
use butterfly_ir::Phase;
use butterfly_ir::layer_graph::{
    Attend, Axis, LayerGraph, Norm, Op, Rotation, Shape, Span, Tokens, Value, ValueId,
};
use butterfly_ir::model::{AttentionShape, Form, KernelShape, LayerKind, ModelConfig};

/// Added to the mean square in the norms of latents. The model's definition fixes it, whatever
/// epsilon the config gives.
const LATENT_EPS: f64 = 1e-6;

/// Why a layer has no attention graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The model has no such layer.
    #[error("there is no layer {layer}: the model has {layers}, counted from 0")]
    NoSuchLayer {
        /// What was asked for.
        layer: u32,
        /// Layers of the model.
        layers: usize,
    },
    /// The layer has linear attention.
    #[error("layer {layer} has linear attention, which is not swapped and has no graph")]
    LinearLayer {
        /// What was asked for.
        layer: u32,
    },
}

/// The graph of attention layer `layer` in `phase`, of whichever form [`form`](crate::form) chooses.
///
/// Latent attention (arXiv:2405.04434) keeps `[latent | rotated key]` rows in its cache in
/// both forms. The expanded one makes keys and values of all heads from them; the other absorbs the
/// up-projections into q and o instead, and reads each row once for all heads. Elsewhere
/// forms and phases have the same graph.
///
/// # Errors
/// [`BuildError`] when there is no such layer, or it has no softmax attention.
pub fn build(
    config: &ModelConfig,
    layer: u32,
    phase: Phase,
    form: Form,
) -> Result<LayerGraph, BuildError> {
    match config.layers.get(layer as usize) {
        Some(LayerKind::FullAttention | LayerKind::WindowAttention { .. }) => {}
        Some(LayerKind::LinearAttention) => return Err(BuildError::LinearLayer { layer }),
        None => {
            let layers = config.layers.len();
            return Err(BuildError::NoSuchLayer { layer, layers });
        }
    }
    let mut builder = Builder {
        config,
        shape: config.kernel_shape(form),
        graph: LayerGraph::new(config.family, layer, phase, config.dtype),
    };
    match config.attention {
        AttentionShape::Gqa { .. } => builder.grouped(),
        AttentionShape::Mla {
            q_heads,
            q_lora_rank,
            kv_lora_rank,
            nope_dim,
            rope_dim,
            v_dim,
        } => builder.latent(&Latent {
            heads: q_heads,
            q_rank: q_lora_rank,
            kv_rank: kv_lora_rank,
            nope: nope_dim,
            rope: rope_dim,
            v_dim,
            form,
        }),
    }
    Ok(builder.graph)
}

struct Builder<'a> {
    config: &'a ModelConfig,
    shape: KernelShape,
    graph: LayerGraph,
}

struct Latent {
    heads: u32,
    q_rank: Option<u32>,
    kv_rank: u32,
    nope: u32,
    rope: u32,
    v_dim: u32,
    form: Form,
}

impl Builder<'_> {
    /// Grouped-query attention (arXiv:2305.13245), with the output gate, norms and rotation that
    /// the config asks for.
    fn grouped(&mut self) {
        let KernelShape {
            q_heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let [q, k, v] = match family::of(self.config.family).layer {
            Layer::Gpt2 => {
                let all = self.project("qkv", 3 * q_heads, head_dim);
                let part = |name| new(name, q_heads, head_dim);
                let parts = ["q", "k", "v"].map(part).to_vec();
                let parts = self.graph.push(Op::Split(Axis::Heads), &[all], parts);
                [parts[0], parts[1], parts[2]]
            }
            Layer::Gated => [
                match self.config.output_gate {
                    true => self.project("q|gate", q_heads, 2 * head_dim),
                    false => self.project("q", q_heads, head_dim),
                },
                self.project("k", kv_heads, head_dim),
                self.project("v", kv_heads, head_dim),
            ],
        };
        let (q, gate) = match self.config.output_gate {
            true => {
                let parts = ["q", "gate"].map(|name| new(name, q_heads, head_dim));
                let parts = self
                    .graph
                    .push(Op::Split(Axis::Width), &[q], parts.to_vec());
                (parts[0], Some(parts[1]))
            }
            false => (q, None),
        };
        let [q, k] = match self.config.qk_norm {
            true => [q, k].map(|x| self.norm(x, head_dim, self.config.norm_eps)),
            false => [q, k],
        };
        let [q, k] = [q, k].map(|x| self.rope(x, 0));
        let q = self.scale(q);
        let caches = [
            cached("k", kv_heads, head_dim),
            cached("v", kv_heads, head_dim),
        ];
        let caches = self.graph.push(Op::Append, &[k, v], caches.to_vec());
        let o = self.attend(&[q, caches[0], caches[1]], false);
        let o = match gate {
            Some(gate) => self.step(Op::Gate, &[o, gate], new("o", q_heads, head_dim)),
            None => o,
        };
        self.graph.push(Op::Output, &[o], Vec::new());
    }

    /// Latent attention in either form.
    fn latent(&mut self, latent: &Latent) {
        let &Latent {
            heads,
            q_rank,
            kv_rank,
            nope,
            rope,
            v_dim,
            form,
        } = latent;
        let q = match q_rank {
            Some(rank) => {
                let down = self.project("q latent", 1, rank);
                let down = self.norm(down, rank, LATENT_EPS);
                self.step(Op::Up, &[down], new("q", heads, nope + rope))
            }
            None => self.project("q", heads, nope + rope),
        };
        let q = self.rope(q, nope);
        let kv = self.project("kv latent", 1, kv_rank + rope);
        let kv = self.norm(kv, kv_rank, LATENT_EPS);
        let kv = self.rope(kv, kv_rank);
        let cache = cached("kv latent", 1, kv_rank + rope);
        let cache = self.step(Op::Append, &[kv], cache);
        let o = match form {
            Form::Expanded => {
                let q = self.scale(q);
                let all = [cached("k", heads, nope + rope), cached("v", heads, v_dim)];
                let all = self.graph.push(Op::Expand { nope }, &[cache], all.to_vec());
                self.attend(&[q, all[0], all[1]], false)
            }
            Form::Absorbed | Form::AbsorbedByHead => {
                let absorbed = new("q", heads, kv_rank + rope);
                let q = self.step(Op::Absorb { nope, rope: None }, &[q], absorbed);
                let q = self.scale(q);
                let o = self.attend(&[q, cache], true);
                self.step(Op::Unabsorb, &[o], new("o", heads, v_dim))
            }
        };
        self.graph.push(Op::Output, &[o], Vec::new());
    }

    /// A node with one result.
    fn step(&mut self, op: Op, inputs: &[ValueId], output: Value) -> ValueId {
        self.graph.push(op, inputs, vec![output])[0]
    }

    fn project(&mut self, name: &str, heads: u32, width: u32) -> ValueId {
        self.step(Op::Projection, &[], new(name, heads, width))
    }

    /// A node whose result has the name and shape of its operand.
    fn keep(&mut self, op: Op, x: ValueId) -> ValueId {
        let value = self.graph.value(x).clone();
        self.step(op, &[x], value)
    }

    fn norm(&mut self, x: ValueId, len: u32, eps: f64) -> ValueId {
        let zero_centred = family::of(self.config.family).zero_centred;
        let norm = Norm {
            span: Span { first: 0, len },
            eps,
            zero_centred,
        };
        self.keep(Op::Norm(norm), x)
    }

    /// Rotary embedding from element `first` of each head on, if the model has one.
    fn rope(&mut self, x: ValueId, first: u32) -> ValueId {
        let kind = self.config.layers[self.graph.layer as usize];
        match self.config.rope_of(kind).cloned() {
            Some(rope) => self.keep(Op::Rope(Rotation { first, rope }), x),
            None => x,
        }
    }

    fn scale(&mut self, q: ValueId) -> ValueId {
        let factor = self.shape.scale;
        self.keep(Op::Scale { factor }, q)
    }

    fn attend(&mut self, inputs: &[ValueId], v_in_k: bool) -> ValueId {
        let attend = Attend { scale: 1.0, v_in_k };
        let o = new("o", self.shape.q_heads, self.shape.v_head_dim);
        self.step(Op::Attend(attend), inputs, o)
    }
}

fn new(name: &str, heads: u32, width: u32) -> Value {
    value(name, Tokens::New, heads, width)
}

fn cached(name: &str, heads: u32, width: u32) -> Value {
    value(&format!("{name} cache"), Tokens::Cached, heads, width)
}

fn value(name: &str, tokens: Tokens, heads: u32, width: u32) -> Value {
    Value {
        name: name.into(),
        shape: Shape {
            tokens,
            heads,
            width,
        },
    }
}
