//! Model and call → the work of each part of the model, step by step.
//!
//! In:  a model's config, the attention that its layers run, how weights are stored, and the lengths of a call.
//! Out: [`Step`]s, one for each kernel or group of kernels that a call launches, with their FLOP and bytes; then
//! what a device takes for them, by part ([`predict`](predict::predict)).
//!
//! A step reads each operand and writes each result once. Attention layers have the kernels of their fused
//! graph, which is what a model runs; all else is the same for every pattern. FLOP are those of products and of
//! the delta rule as it is defined, two for a product and its sum: what is computed beside them takes no time of
//! its own. Of experts, those weights are read that tokens choose if they choose at random. The layer norms and
//! the GELU of GPT-2 are several operations of Burn, and counted as one kernel each.

mod feed;
mod layer;
pub mod predict;
#[cfg(test)]
mod tests;

pub(crate) use feed::FEW_PAIRS;
pub use predict::{Device, Entry};

use crate::cost::Cost;
use crate::family::{self, Layer};
use crate::graph::BuildError;
use crate::stretch::TooManyRows;
use butterfly_ir::model::{ModelConfig, ModelSizes, Part, Phase};
use butterfly_ir::{Dtype, Geometry, KernelSpec, Sparsity};
use std::collections::BTreeMap;

/// A model as it runs.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its attention layers.
    pub config: &'a ModelConfig,
    /// All other sizes.
    pub sizes: &'a ModelSizes,
    /// Element type of activations and caches.
    pub dtype: Dtype,
    /// Bytes of an element of the matrices of each part, scales included. The matrices of parts that are not
    /// there are of type `dtype`, and the output projection is as the embedding.
    pub stored: &'a BTreeMap<Part, f64>,
    /// Whether many rows become FP8 before they are multiplied with matrices in FP8.
    pub quantised: bool,
    /// The attention of each layer; `None` for layers without softmax attention.
    pub attention: &'a [Option<Attending>],
}

/// The attention that a layer runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Attending {
    /// Its pattern, that of this layer.
    pub sparsity: Sparsity,
    /// The index that picks the stage.
    pub index: u32,
}

/// The lengths of one call of a model, of which the last token of each sequence gets logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Sequences.
    pub batch: u32,
    /// New tokens of a sequence; at least 1.
    pub q_len: u32,
    /// Tokens of a sequence, the new ones included.
    pub kv_len: u32,
    /// Longest sequence in tokens, which fixes the stages.
    pub capacity: u32,
    /// Tokens of the prompt of a sequence.
    pub prompt: u32,
}

impl Kind {
    /// Whether both factors of products are in FP8.
    fn quantised(&self) -> bool {
        match self {
            Self::Product { quantised, .. } | Self::Experts { quantised, .. } => *quantised,
            Self::Rows | Self::OfHeads { .. } | Self::Attention(_) | Self::Other => false,
        }
    }
}

impl Call {
    /// Most new tokens of a sequence for which attention runs the kernels of decode.
    const DECODE_QUERIES: u32 = 4;

    /// The calls of a prompt of `tokens` tokens that is taken in chunks.
    pub fn of_prompt(
        batch: u32,
        [tokens, chunk, capacity]: [u32; 3],
    ) -> impl Iterator<Item = Self> {
        let chunk = chunk.clamp(1, tokens.max(1));
        (0..tokens).step_by(chunk as usize).map(move |start| {
            let q_len = chunk.min(tokens - start);
            Self {
                batch,
                q_len,
                kv_len: start + q_len,
                capacity,
                prompt: tokens,
            }
        })
    }

    /// The call for the first token after a prompt of `tokens` tokens.
    pub fn after_prompt(batch: u32, [tokens, capacity]: [u32; 2]) -> Self {
        Self {
            batch,
            q_len: 1,
            kv_len: tokens.saturating_add(1),
            capacity,
            prompt: tokens,
        }
    }

    /// New tokens of all sequences.
    fn rows(&self) -> f64 {
        f64::from(self.batch) * f64::from(self.q_len)
    }

    fn phase(&self) -> Phase {
        match self.q_len <= Self::DECODE_QUERIES {
            true => Phase::Decode,
            false => Phase::Prefill,
        }
    }
}

/// Work of one kind that a call launches.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The part of the model.
    pub part: Part,
    /// Number of kernels.
    pub kernels: u32,
    /// FLOP. Counts are floats, since sizes of configs have no bound; they are exact up to 2^53.
    pub flop: f64,
    /// Bytes that are read and written.
    pub bytes: f64,
    /// What it does, as far as rates depend on it.
    pub kind: Kind,
}

/// What a step does, as far as its rates depend on it.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Reads and writes rows, and computes little.
    Rows,
    /// A matrix product.
    Product {
        /// Rows of activations.
        rows: f64,
        /// Bytes of an element of the weight.
        stored: f64,
        /// Whether the weight is packed.
        packed: bool,
        /// Whether both factors are in FP8.
        quantised: bool,
    },
    /// Experts.
    Experts {
        /// Pairs of a row and its expert.
        pairs: f64,
        /// Elements of an inner vector.
        size: f64,
        /// Whether weights are packed.
        packed: bool,
        /// Whether both factors of products are in FP8.
        quantised: bool,
    },
    /// Products with the matrices of each head of latent attention.
    OfHeads {
        /// Whether these make keys and values of all tokens in the cache, instead of being absorbed.
        expanded: bool,
    },
    /// Attention: what its kernel computes.
    Attention(Box<Launched>),
    /// What has no rates of its own yet.
    Other,
}

/// The kernel of an attention layer, if it is known, and its work.
#[derive(Clone, Debug, PartialEq)]
pub struct Launched {
    /// The specification.
    pub spec: KernelSpec,
    /// How it is launched.
    pub geometry: Geometry,
    /// Its work in tiles.
    pub cost: Cost,
}

/// Says how the kernel of a specification is launched; `None` where there is no such kernel.
pub type Choose<'a> = &'a dyn Fn(&KernelSpec) -> Option<Geometry>;

/// Why the work of a model cannot be counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// A layer has no graph.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The rows of a pattern are too many to count.
    #[error(transparent)]
    Rows(#[from] TooManyRows),
}

/// The steps of one call.
///
/// # Errors
/// [`PartsError`] for the first layer whose work cannot be counted.
pub fn count(
    subject: &Subject<'_>,
    call: &Call,
    choose: Choose<'_>,
) -> Result<Vec<Step>, PartsError> {
    let counter = Counter {
        subject,
        call,
        choose,
        bytes: f64::from(subject.dtype.bytes()),
        hidden: f64::from(subject.sizes.hidden),
        rows: call.rows(),
    };
    let mut steps = vec![counter.embedding()];
    // Layers that run the same have the same steps.
    let mut known: Vec<(&Attending, Vec<Step>)> = Vec::new();
    for (layer, attention) in (0u32..).zip(subject.attention) {
        steps.extend(counter.norm_before(layer > 0, counter.few_packed()));
        match attention {
            None => steps.extend(counter.linear()),
            Some(attending) => {
                let same = known.iter().find(|(of, _)| *of == attending);
                let of_layer = match same {
                    Some((_, of_layer)) => of_layer.clone(),
                    None => {
                        let of_layer = counter.attention(layer, attending)?;
                        known.push((attending, of_layer.clone()));
                        of_layer
                    }
                };
                steps.extend(of_layer);
            }
        }
        let routed = counter.routed(layer).is_some();
        steps.extend(counter.norm_before(true, counter.few_packed() || routed && counter.few()));
        steps.extend(counter.feed_forward(layer));
        if family::of(subject.config.family).norms_after {
            steps.extend([counter.norm_of_output(), counter.norm_of_output()]);
        }
    }
    steps.push(counter.norm(true));
    steps.extend(counter.logits());
    Ok(steps)
}

/// Most rows of which norms are made on the way to a product.
const FEW_ROWS: f64 = 8.0;

/// Counts the steps of a call.
struct Counter<'a> {
    subject: &'a Subject<'a>,
    call: &'a Call,
    choose: Choose<'a>,
    /// Bytes of an element of the activations.
    bytes: f64,
    hidden: f64,
    /// New tokens of all sequences.
    rows: f64,
}

impl Counter<'_> {
    /// Bytes of an element of the matrices of a part.
    fn stored(&self, part: Part) -> f64 {
        let of = |part| self.subject.stored.get(&part).copied();
        match part {
            Part::OutputProjection => of(part).unwrap_or_else(|| self.stored(Part::Embedding)),
            _ => of(part).unwrap_or(self.bytes),
        }
    }

    /// Whether many rows become FP8 before they are multiplied with the matrices of a part.
    fn quantises(&self, part: Part) -> bool {
        // FP8 with its scales, and nothing else, has about as many bytes.
        self.subject.quantised && (1.0..1.01).contains(&self.stored(part))
    }

    /// A step that reads or writes `of_row` bytes of each of the new tokens.
    fn over_rows(&self, part: Part, of_row: f64) -> Step {
        Step {
            part,
            kernels: 1,
            flop: 0.0,
            bytes: self.rows * of_row,
            kind: Kind::Rows,
        }
    }

    /// The product of `rows` rows of `k` elements with a matrix [n, k].
    fn product_of(&self, part: Part, rows: f64, [n, k]: [f64; 2]) -> Step {
        let stored = self.stored(part);
        Step {
            part,
            kernels: 1,
            flop: 2.0 * rows * n * k,
            bytes: self.bytes * rows * (n + k) + stored * n * k,
            kind: Kind::Product {
                rows,
                stored,
                packed: stored < f64::from(Dtype::Bf16.bytes()),
                quantised: self.quantises(part) && rows > FEW_ROWS,
            },
        }
    }

    /// The product of all new tokens with a matrix [n, k], and the addition of a bias, if there is one.
    fn product(&self, shape: [f64; 2], biased: bool) -> Vec<Step> {
        let product = self.product_of(Part::Projections, self.rows, shape);
        let bias = self.over_rows(Part::Projections, 2.0 * self.bytes * shape[0]);
        [product]
            .into_iter()
            .chain(biased.then_some(bias))
            .collect()
    }

    fn embedding(&self) -> Step {
        let read = self.stored(Part::Embedding) + 4.0;
        self.over_rows(Part::Embedding, read * self.hidden)
    }

    /// A norm of the residual stream, which is f32, after the addition of what a layer gave.
    fn norm(&self, adds: bool) -> Step {
        let added = if adds { 4.0 + self.bytes } else { 0.0 };
        self.over_rows(Part::Norms, (4.0 + self.bytes + added) * self.hidden)
    }

    /// Whether there are so few rows that norms are made on the way to a product.
    fn few(&self) -> bool {
        self.rows <= FEW_ROWS
    }

    /// Whether that product is one with packed weights.
    fn few_packed(&self) -> bool {
        self.few() && self.stored(Part::Projections) < f64::from(Dtype::Bf16.bytes())
    }

    /// The norm before a product, unless it is made on the way to it. As on Hopper, and without the norms of GPT-2.
    fn norm_before(&self, adds: bool, on_the_way: bool) -> Option<Step> {
        (self.is_gpt2() || !on_the_way).then(|| self.norm(adds))
    }

    /// A norm of what attention or a feed-forward layer gives, which is made f32 for it.
    fn norm_of_output(&self) -> Step {
        Step {
            kernels: 2,
            ..self.over_rows(Part::Norms, 2.0 * (4.0 + self.bytes) * self.hidden)
        }
    }

    fn logits(&self) -> Vec<Step> {
        let sizes = self.subject.sizes;
        let (rows, n) = (f64::from(self.call.batch), f64::from(sizes.vocabulary));
        let product = self.product_of(Part::OutputProjection, rows, [n, self.hidden]);
        let limit = sizes.logit_softcap.map(|_| Step {
            part: Part::OutputProjection,
            kernels: 3,
            flop: 0.0,
            bytes: 6.0 * self.bytes * rows * n,
            kind: Kind::Rows,
        });
        [product].into_iter().chain(limit).collect()
    }

    fn is_gpt2(&self) -> bool {
        match family::of(self.subject.config.family).layer {
            Layer::Gpt2 => true,
            Layer::Gated => false,
        }
    }
}
