//! The parts of a language model's config that attention depends on: layers, head shapes and
//! rotary embedding.
//!
//! Invariants, to be upheld by the code that builds a [`ModelConfig`]: counts are not zero, the
//! number of q heads is a multiple of the number of kv heads, [`Rope::dims`] is even and no larger
//! than the part of the head that is rotated.

use crate::{Dtype, Sparsity, build};
use serde::{Deserialize, Serialize};

/// The two phases of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The prompt, or a chunk of it: many queries.
    Prefill,
    /// One new token, or a few.
    Decode,
}

impl Phase {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// The two ways to compute latent attention (arXiv:2405.04434, section 2.1), which give the same result.
/// Attention of other kinds has only one, whichever is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Every head gets keys and values of its own, made from the latents of all tokens that are read.
    Expanded,
    /// The projections that would make them are applied to q and o instead: all heads read the latents.
    Absorbed,
    /// As [`Absorbed`](Self::Absorbed), but heads read the latents apart, since each has rows of its own.
    AbsorbedByHead,
}

impl Form {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expanded => "expanded",
            Self::Absorbed => "absorbed",
            Self::AbsorbedByHead => "absorbed, by head",
        }
    }
}

/// The attention layers of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Which architecture.
    pub family: Family,
    /// Element type of weights and activations.
    pub dtype: Dtype,
    /// The kind of each layer, first to last.
    pub layers: Vec<LayerKind>,
    /// Heads of the full-attention layers.
    pub attention: AttentionShape,
    /// Rotary position embedding; `None` where positions are learned.
    pub rope: Option<Rope>,
    /// That of layers with a window, where it is another.
    pub window_rope: Option<Rope>,
    /// Factor on the logits; `None` stands for the inverse root of the head size.
    pub logit_scale: Option<f64>,
    /// Soft limit `c` on the logits, `c * tanh(logit / c)`; `None` if there is none.
    pub softcap: Option<f64>,
    /// Whether each q head has a learned logit that takes part in the softmax without a value.
    pub sinks: bool,
    /// Whether q and k are normalised per head before the rotation.
    pub qk_norm: bool,
    /// The epsilon of norms, added to the mean square or variance.
    pub norm_eps: f64,
    /// Whether the attention output is multiplied by a sigmoid gate.
    pub output_gate: bool,
    /// Which attention projections have biases.
    pub biases: Biases,
    /// Longest sequence that the model was made for, in tokens.
    pub max_positions: u32,
}

impl ModelConfig {
    /// The head shapes of the kernels of a form, with the model's factor on the logits.
    pub fn kernel_shape(&self, form: Form) -> KernelShape {
        let shape = self.attention.kernel_shape(form);
        KernelShape {
            scale: self.logit_scale.unwrap_or(shape.scale),
            ..shape
        }
    }

    /// The rotation of a layer of this kind.
    pub fn rope_of(&self, kind: LayerKind) -> Option<&Rope> {
        match (kind, &self.window_rope) {
            (LayerKind::WindowAttention { .. }, Some(rope)) => Some(rope),
            _ => self.rope.as_ref(),
        }
    }
}

/// The model architectures that the compiler knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// GPT-2.
    Gpt2,
    /// Llama 1 to 3.
    Llama,
    /// Mistral, dense.
    Mistral,
    /// Qwen2 and Qwen2.5, dense.
    Qwen2,
    /// Phi-3, Phi-3.5 and Phi-4, dense.
    Phi3,
    /// Qwen3, dense.
    Qwen3,
    /// Qwen3, mixture of experts.
    Qwen3Moe,
    /// Gemma 3, the text model.
    Gemma3,
    /// gpt-oss, mixture of experts.
    GptOss,
    /// Qwen3.5, dense.
    Qwen35,
    /// Qwen3.5, mixture of experts.
    Qwen35Moe,
    /// GLM-4.7-Flash.
    Glm4MoeLite,
}

/// The sizes of a model outside its attention layers, which running it needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSizes {
    /// Length of the hidden vector of a token.
    pub hidden: u32,
    /// Length of the vector between the two projections of a feed-forward layer.
    pub intermediate: u32,
    /// Number of tokens in the vocabulary.
    pub vocabulary: u32,
    /// Whether the embedding matrix is also the output projection.
    pub tied: bool,
    /// Heads of the linear-attention layers; `None` if the model has no such layers.
    pub linear: Option<LinearShape>,
    /// The gate of feed-forward layers.
    pub gate: FeedForwardGate,
    /// Soft limit on the model's output logits; `None` if there is none.
    pub logit_softcap: Option<f64>,
    /// The feed-forward layers of experts; `None` if the model has none.
    pub experts: Option<ExpertsShape>,
    /// Ids of the tokens that end a text.
    pub ends: Vec<u32>,
}

/// What is between the projections of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForwardGate {
    /// silu(gate) * x.
    Silu,
    /// gelu(gate) * x, by the approximation with tanh.
    Gelu,
    /// gate * sigmoid(alpha * gate) * (x + 1), with the gate at most `limit` and x within `limit` of 0.
    Clamped {
        /// Factor within the sigmoid.
        alpha: f64,
        /// Bound on both.
        limit: f64,
    },
}

/// The feed-forward layers of experts, of which a router chooses some for each token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertsShape {
    /// Number of experts of a layer.
    pub count: u32,
    /// Number of experts that compute for a token.
    pub chosen: u32,
    /// Length of the vector between the two projections of an expert.
    pub intermediate: u32,
    /// The expert that computes for every token, if there is one.
    pub shared: Option<SharedExpert>,
    /// How experts are chosen.
    pub router: Router,
    /// The layers that have a dense feed-forward layer instead, in order.
    pub dense: Vec<u32>,
}

/// An expert that computes for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SharedExpert {
    /// Length of the vector between its two projections.
    pub intermediate: u32,
    /// Whether its result is multiplied by a sigmoid of the token.
    pub gated: bool,
}

/// How the logits of a router become a choice of experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Router {
    /// How logits become scores.
    pub scores: Scores,
    /// Whether a learned number is added to the score of each expert for the choice alone.
    pub biased: bool,
    /// Groups of consecutive experts of which only some take part in the choice; `None` if all do.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights of a token are divided by their sum.
    pub normalised: bool,
    /// Factor on the weights.
    pub scale: f64,
}

/// How the logits of a router become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// Softmax over all experts.
    Softmax,
    /// The sigmoid of each (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
    Sigmoid,
}

/// Groups of experts: those whose two best experts have the highest sums of scores take part in the choice
/// (arXiv:2412.19437, section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertGroups {
    /// Number of groups.
    pub count: u32,
    /// Number of groups that take part.
    pub chosen: u32,
}

/// Heads of a linear-attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LinearShape {
    /// Heads of q and k.
    pub k_heads: u32,
    /// Heads of v, a multiple of `k_heads`.
    pub v_heads: u32,
    /// Length of a q and k vector.
    pub k_dim: u32,
    /// Length of a v vector.
    pub v_dim: u32,
    /// Taps of the convolution along the tokens that q, k and v go through first.
    pub taps: u32,
    /// Whether the v heads of a k head lie `k_heads` apart, as in GGUF files, and not side by side.
    pub tiled: bool,
}

/// How a layer mixes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Softmax attention over the token itself and all earlier ones; can be swapped for a pattern.
    FullAttention,
    /// Softmax attention over the last tokens; can be swapped for a pattern.
    WindowAttention {
        /// Number of tokens that are seen, the token itself included; at least 1.
        window: u32,
    },
    /// Linear attention with a recurrent state of fixed size; is never swapped.
    LinearAttention,
}

impl LayerKind {
    /// Whether the layer has softmax attention, which can be swapped for a pattern.
    pub fn is_softmax(self) -> bool {
        self.own().is_some()
    }

    /// The layer's own softmax attention, which it keeps where no pattern replaces it; `None` for
    /// linear attention.
    pub fn own(self) -> Option<OwnAttention> {
        match self {
            Self::FullAttention => Some(OwnAttention { window: None }),
            Self::WindowAttention { window } => Some(OwnAttention {
                window: Some(window),
            }),
            Self::LinearAttention => None,
        }
    }
}

/// The softmax attention of a layer that no pattern replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnAttention {
    /// Number of tokens that are seen, the token itself included; `None` for all up to the token.
    pub window: Option<u32>,
}

impl OwnAttention {
    /// The same as a pattern: `causal`, or `causal & window(n)`.
    pub fn sparsity(self) -> Sparsity {
        let causal = build::causal();
        Sparsity::from(match self.window {
            None => causal,
            Some(tokens) => causal & build::window(tokens),
        })
    }
}

/// Which of the attention projections q, k, v and o have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Biases {
    /// None of them.
    None,
    /// q, k and v.
    Inputs,
    /// All of them.
    All,
}

impl Biases {
    /// Whether q, k and v have biases.
    pub fn inputs(self) -> bool {
        match self {
            Self::Inputs | Self::All => true,
            Self::None => false,
        }
    }

    /// Whether o has a bias.
    pub fn output(self) -> bool {
        match self {
            Self::All => true,
            Self::None | Self::Inputs => false,
        }
    }
}

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionShape {
    /// Each kv head serves `q_heads / kv_heads` q heads.
    Gqa {
        /// Query heads.
        q_heads: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// Length of a q, k and v vector.
        head_dim: u32,
    },
    /// Multi-head latent attention (MLA): k and v are projected up from one latent vector.
    Mla {
        /// Query heads.
        q_heads: u32,
        /// Length of the latent q vector; `None` where q is projected directly.
        q_lora_rank: Option<u32>,
        /// Length of the latent k and v vector.
        kv_lora_rank: u32,
        /// Elements of a q and k vector that are not rotated.
        nope_dim: u32,
        /// Elements of a q and k vector that are rotated; in k, all heads share them.
        rope_dim: u32,
        /// Length of a v vector.
        v_dim: u32,
    },
}

/// Head shapes as an attention kernel sees them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KernelShape {
    /// Query heads.
    pub q_heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// D, the length of a q and k vector.
    pub head_dim: u32,
    /// Dv, the length of a v and o vector.
    pub v_head_dim: u32,
    /// q heads of a GQA group: `q_heads / kv_heads`.
    pub group: u32,
    /// Factor on the logits.
    pub scale: f64,
}

impl AttentionShape {
    /// The kv heads that patterns tell apart. Those of latent attention are the heads for which it can
    /// be expanded.
    pub fn kv_heads(&self) -> u32 {
        self.kernel_shape(Form::Expanded).kv_heads
    }

    /// Elements of a token in the KV cache of a layer: key and value of every kv head or, of latent
    /// attention, the latent vector and the rotated part of k that all heads share.
    pub fn cached(&self) -> u64 {
        match *self {
            Self::Gqa {
                kv_heads, head_dim, ..
            } => 2 * u64::from(kv_heads) * u64::from(head_dim),
            Self::Mla {
                kv_lora_rank,
                rope_dim,
                ..
            } => u64::from(kv_lora_rank) + u64::from(rope_dim),
        }
    }

    /// The shape of the kernels of a form.
    ///
    /// Where latent attention is absorbed, all heads share one kv head, whose key is the latent
    /// vector followed by the rotated part of k, and whose value is the latent vector; by head, as many kv
    /// heads share these.
    pub fn kernel_shape(&self, form: Form) -> KernelShape {
        match *self {
            Self::Gqa {
                q_heads,
                kv_heads,
                head_dim,
            } => KernelShape {
                q_heads,
                kv_heads,
                head_dim,
                v_head_dim: head_dim,
                group: q_heads / kv_heads,
                scale: inverse_root(head_dim),
            },
            Self::Mla {
                q_heads,
                q_lora_rank: _,
                kv_lora_rank,
                nope_dim,
                rope_dim,
                v_dim,
            } => {
                let (kv_heads, head_dim, v_head_dim) = match form {
                    Form::Expanded => (q_heads, nope_dim + rope_dim, v_dim),
                    Form::Absorbed => (1, kv_lora_rank + rope_dim, kv_lora_rank),
                    Form::AbsorbedByHead => (q_heads, kv_lora_rank + rope_dim, kv_lora_rank),
                };
                KernelShape {
                    q_heads,
                    kv_heads,
                    head_dim,
                    v_head_dim,
                    group: q_heads / kv_heads,
                    scale: inverse_root(nope_dim + rope_dim),
                }
            }
        }
    }
}

fn inverse_root(dim: u32) -> f64 {
    1.0 / f64::from(dim).sqrt()
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Number of elements that are rotated: the first ones of a head (in latent attention,
    /// of the part that [`AttentionShape::Mla`] calls `rope_dim`).
    pub dims: u32,
    /// Whether neighbours such as (0, 1) are rotated together; if not, element `i` is rotated
    /// together with `i + dims / 2`.
    pub interleaved: bool,
    /// How the frequencies are changed for longer sequences.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer sequences.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by `factor`.
    Linear {
        /// Divides every frequency.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// A frequency counts as low if its wavelength is above `original_max / low` tokens.
        low: f64,
        /// A frequency counts as high if its wavelength is below `original_max / high` tokens.
        high: f64,
        /// Longest sequence before the extension, in tokens.
        original_max: u32,
    },
    /// High frequencies kept, low ones divided by `factor`, those between blended (YaRN, arXiv:2309.00071).
    Yarn {
        /// Divides low frequencies.
        factor: f64,
        /// The number of a pair up to which frequencies are kept, and that from which they are divided.
        range: [f64; 2],
        /// Multiplies cosines and sines.
        amplitude: f64,
    },
    /// Each frequency divided by a factor of its own, one of `short` for sequences of up to
    /// `original_max` tokens, one of `long` for longer ones.
    LongRope {
        /// One factor for each pair of rotated elements.
        short: Vec<f64>,
        /// One factor for each pair of rotated elements.
        long: Vec<f64>,
        /// Longest sequence before the extension, in tokens.
        original_max: u32,
        /// Multiplies cosines and sines, for sequences of any length.
        amplitude: f64,
    },
}

impl Family {
    /// The `model_type` of the text model in a Hugging Face config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Phi3 => "phi3",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Gemma3 => "gemma3_text",
            Self::GptOss => "gpt_oss",
            Self::Qwen35 => "qwen3_5",
            Self::Qwen35Moe => "qwen3_5_moe",
            Self::Glm4MoeLite => "glm4_moe_lite",
        }
    }
}
