//! The parts of a language model's config that attention depends on: layers, head shapes and
//! rotary embedding.
//!
//! Invariants, to be upheld by the code that builds a [`ModelConfig`]: counts are not zero, the
//! number of q heads is a multiple of the number of kv heads, [`Rope::dims`] is even and no larger
//! than the part of the head that is rotated.

mod attention;
mod experts;
mod part;
mod rotation;

pub use attention::{AttentionShape, Form, KernelShape};
pub use experts::{ExpertGroups, ExpertsShape, Router, Scores, SharedExpert};
pub use part::Part;
pub use rotation::{Rope, RopeScaling};

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
