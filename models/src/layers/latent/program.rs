//! Fused layer graph → the steps that a layer with latent attention executes.
//!
//! In:  a graph of latent attention that `fuse` has lowered; its projections are stacked into one
//! matrix, in the order of their nodes. Out: one [`Step`] for each of the graph's kernels, in order. So a
//! layer runs the kernels that `butterfly explain` prints.

use butterfly::ops::{Absorb, Expand, Latent, Latents, Products, Rotate, Unabsorb, Up};
use butterfly_compiler::{fuse, graph};
use butterfly_ir::Phase;
use butterfly_ir::layer_graph::{LayerGraph, Norm, Op, Rotation, ValueId};
use butterfly_ir::model::{AttentionShape, Form, LayerKind, ModelConfig};
use std::collections::BTreeMap;

/// One kernel of a layer with latent attention. The kernels of products, and how many tokens there are, come with the
/// call.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Normalises the latents in the rows of the projections, and appends that of k and v to the cache.
    Latents(Latents),
    /// Projects the latent of q up to all heads.
    Up,
    /// Multiplies q by the matrices that make keys of latents.
    Absorb(Absorb),
    /// Splits q into heads, and rotates them.
    Rotate(Rotate),
    /// Makes keys and values of all heads from the latents in the cache.
    Expand(Expand),
    /// Attention of q over these or, without them, over the cache.
    Attend {
        /// Factor on the logits.
        scale: f32,
    },
    /// Multiplies o by the matrices that make values of latents.
    Unabsorb(Unabsorb),
}

impl Step {
    /// Whether q is in heads after it.
    fn makes_heads(&self) -> bool {
        match self {
            Self::Absorb(_) | Self::Rotate(_) => true,
            Self::Latents(_) | Self::Up | Self::Expand(_) | Self::Attend { .. } => false,
            Self::Unabsorb(_) => false,
        }
    }
}

/// The steps of a layer with latent attention, and the shapes of its weights.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    /// Rows of each projection of the hidden vector, in the order in which they are stacked.
    pub(crate) projections: Vec<usize>,
}

/// The sizes of latent attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    /// Length of the latent of q, if it has one.
    pub(crate) q_rank: Option<usize>,
    /// The weight that makes keys and values of latents.
    pub(crate) up: Up,
    /// Elements of a key that all heads share.
    pub(crate) rope: usize,
}

impl Sizes {
    /// Those of a model; `None` if it has another kind of attention.
    pub(crate) fn of(config: &ModelConfig) -> Option<Self> {
        match config.attention {
            AttentionShape::Gqa { .. } => None,
            AttentionShape::Mla {
                q_heads,
                q_lora_rank,
                kv_lora_rank,
                nope_dim,
                rope_dim,
                v_dim,
            } => Some(Self {
                q_rank: q_lora_rank.map(|rank| rank as usize),
                up: Up {
                    heads: q_heads as usize,
                    nope: nope_dim as usize,
                    v: v_dim as usize,
                    rank: kv_lora_rank as usize,
                },
                rope: rope_dim as usize,
            }),
        }
    }

    /// Elements of q.
    pub(crate) fn q_width(&self) -> usize {
        self.up.heads * (self.up.nope + self.rope)
    }

    /// Elements of a token in the cache.
    pub(crate) fn cached(&self) -> usize {
        self.up.rank + self.rope
    }
}

/// The program of the attention layers of a model in one form. It is made from the first one: they are
/// alike.
///
/// # Errors
/// A message that names the part of the layer that has no step.
pub(crate) fn of(config: &ModelConfig, sizes: &Sizes, form: Form) -> Result<Program, String> {
    let softmax = |kind: &LayerKind| kind.is_softmax();
    let layer = config.layers.iter().position(softmax).unwrap_or_default();
    let graph = graph::build(config, layer as u32, Phase::Prefill, form);
    lower(
        &fuse::lower(&graph.map_err(|error| error.to_string())?),
        sizes,
    )
}

fn lower(graph: &LayerGraph, sizes: &Sizes) -> Result<Program, String> {
    // The first element of each projection within their rows.
    let mut places: BTreeMap<ValueId, usize> = BTreeMap::new();
    let (mut steps, mut projections) = (Vec::new(), Vec::new());
    for node in &graph.nodes {
        let unknown = || format!("{} layer {}: {}", graph.family.name(), graph.layer, node.op);
        let place = |i: usize| node.inputs.get(i).and_then(|x| places.get(x)).copied();
        match &node.op {
            Op::Projection => {
                let shape = graph.value(node.outputs[0]).shape;
                places.insert(node.outputs[0], projections.iter().sum());
                projections.push((shape.heads * shape.width) as usize);
            }
            Op::Latents { q, kv, rope } => {
                let (of_q, of_kv) = place(0).zip(place(1)).ok_or_else(unknown)?;
                let rank = sizes.q_rank.ok_or_else(unknown)?;
                let q = latent(q, of_q, rank).ok_or_else(unknown)?;
                let latents = latents(sizes, Some(q), (kv, of_kv), rope.as_ref());
                steps.push(Step::Latents(latents.ok_or_else(unknown)?));
            }
            // Without a latent of q.
            Op::Prologue {
                norm: Some(norm),
                rope,
                append: true,
            } => {
                let place = place(0).ok_or_else(unknown)?;
                let latents = latents(sizes, None, (norm, place), rope.as_ref());
                steps.push(Step::Latents(latents.ok_or_else(unknown)?));
            }
            Op::Up => steps.push(Step::Up),
            Op::Absorb { nope, rope } if *nope as usize == sizes.up.nope => {
                let rotated = rotated(rope.as_ref(), sizes.up.nope).ok_or_else(unknown)?;
                steps.push(Step::Absorb(Absorb {
                    up: sizes.up,
                    // What the projection up has made is nothing but q.
                    start: place(0).unwrap_or_default(),
                    rest: sizes.rope,
                    rotated: rotated.0,
                    interleaved: rotated.1,
                    products: Products::default(),
                }));
            }
            Op::Prologue {
                norm: None,
                rope: Some(rotation),
                append: false,
            } => {
                let rotated = rotated(Some(rotation), sizes.up.nope).ok_or_else(unknown)?;
                steps.push(Step::Rotate(Rotate {
                    heads: sizes.up.heads,
                    start: place(0).unwrap_or_default(),
                    nope: sizes.up.nope,
                    rest: sizes.rope,
                    rotated: rotated.0,
                    interleaved: rotated.1,
                }));
            }
            Op::Expand { nope } if *nope as usize == sizes.up.nope => {
                steps.push(Step::Expand(Expand {
                    up: sizes.up,
                    rest: sizes.rope,
                    tokens: 0,
                    products: Products::default(),
                }));
            }
            // Its q is in heads.
            Op::Attend(attend) if steps.iter().any(Step::makes_heads) => {
                steps.push(Step::Attend {
                    scale: attend.scale as f32,
                });
            }
            Op::Unabsorb => steps.push(Step::Unabsorb(Unabsorb {
                up: sizes.up,
                products: Products::default(),
            })),
            Op::Output => {}
            Op::Split(_)
            | Op::Norm(_)
            | Op::Rope(_)
            | Op::Scale { .. }
            | Op::Append
            | Op::Prologue { .. }
            | Op::Heads { .. }
            | Op::Absorb { .. }
            | Op::Expand { .. }
            | Op::Attend(_)
            | Op::Gate => return Err(unknown()),
        }
    }
    Ok(Program { steps, projections })
}

/// A latent of this length at `start`, if the norm is over all of it, and its weight is stored as it is.
fn latent(norm: &Norm, start: usize, rank: usize) -> Option<Latent> {
    let whole = norm.span.first == 0 && norm.span.len as usize == rank;
    (whole && !norm.zero_centred).then_some(Latent {
        start,
        rank,
        epsilon: norm.eps as f32,
    })
}

fn latents(
    sizes: &Sizes,
    q: Option<Latent>,
    (norm, start): (&Norm, usize),
    rope: Option<&Rotation>,
) -> Option<Latents> {
    let (rotated, interleaved) = rotated(rope, sizes.up.rank)?;
    Some(Latents {
        q,
        kv: latent(norm, start, sizes.up.rank)?,
        rest: sizes.rope,
        rotated,
        interleaved,
        position: 0,
    })
}

/// How many elements are rotated, and whether neighbours are together, if the first of them is `first`.
fn rotated(rope: Option<&Rotation>, first: usize) -> Option<(usize, bool)> {
    match rope {
        None => Some((0, false)),
        Some(rotation) if rotation.first as usize == first => {
            Some((rotation.rope.dims as usize, rotation.rope.interleaved))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_compiler::config;

    fn model(changes: &[(&str, serde_json::Value)]) -> ModelConfig {
        let root = env!("CARGO_MANIFEST_DIR");
        let file = format!("{root}/../tests/fixtures/configs/glm-4.7-flash.json");
        let json = std::fs::read_to_string(&file).expect("a config");
        let mut value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        for (name, given) in changes {
            value[*name] = given.clone();
        }
        config::read(&file, &value.to_string()).expect("a config")
    }

    /// The steps are the kernels of the fused graph.
    #[test]
    fn each_kernel_of_the_fused_graph_is_a_step() {
        let without = vec![("q_lora_rank", serde_json::Value::Null)];
        let forms = [Form::Expanded, Form::Absorbed];
        for (changes, form) in [vec![], without]
            .into_iter()
            .flat_map(|changes| forms.map(|form| (changes.clone(), form)))
        {
            let config = model(&changes);
            let sizes = Sizes::of(&config).expect("latent attention");
            let graph = graph::build(&config, 46, Phase::Decode, form);
            let fused = fuse::lower(&graph.expect("a graph"));
            let program = lower(&fused, &sizes).expect("a program");
            let same = of(&config, &sizes, form).expect("a program");
            assert_eq!(format!("{program:?}"), format!("{same:?}"));
            let kernels = fused.nodes.iter().filter(|node| !node.op.is_free());
            let kernels: Vec<&str> = kernels
                .map(|node| match node.op {
                    Op::Latents { .. } | Op::Prologue { append: true, .. } => "latents",
                    Op::Up => "up",
                    Op::Absorb { .. } => "absorb",
                    Op::Prologue { .. } => "rotate",
                    Op::Expand { .. } => "expand",
                    Op::Attend(_) => "attend",
                    Op::Unabsorb => "unabsorb",
                    _ => "another",
                })
                .collect();
            let steps = program.steps.iter().map(|step| match step {
                Step::Latents(_) => "latents",
                Step::Up => "up",
                Step::Absorb(_) => "absorb",
                Step::Rotate(_) => "rotate",
                Step::Expand(_) => "expand",
                Step::Attend { .. } => "attend",
                Step::Unabsorb(_) => "unabsorb",
            });
            assert_eq!(steps.collect::<Vec<_>>(), kernels);
        }
    }

    #[test]
    fn projections_lie_side_by_side() {
        let of = |changes: &[(&str, serde_json::Value)]| {
            let config = model(changes);
            let sizes = Sizes::of(&config).expect("latent attention");
            of(&config, &sizes, Form::Absorbed).expect("a program")
        };
        let with_latent = of(&[]);
        assert_eq!(with_latent.projections, [768, 576]);
        let Step::Latents(latents) = &with_latent.steps[0] else {
            panic!("{with_latent:?}");
        };
        assert_eq!((latents.kv.start, latents.rotated), (768, 64));
        assert!(latents.interleaved);
        let without = of(&[("q_lora_rank", serde_json::Value::Null)]);
        assert_eq!(without.projections, [20 * 256, 576]);
        let absorb = without.steps.iter().find_map(|step| match step {
            Step::Absorb(absorb) => Some(absorb),
            _ => None,
        });
        let absorb = absorb.expect("a step");
        assert_eq!((absorb.start, absorb.rest, absorb.rotated), (0, 64, 64));
    }
}
