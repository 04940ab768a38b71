//! Model families, one file each, described as data.
//!
//! Config reading, layer graphs and `butterfly-models` use these descriptions instead of testing
//! for a family by name.

mod gemma3;
mod glm4_moe_lite;
mod gpt2;
mod gpt_oss;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;

use butterfly_ir::model::{Biases, Family, Scores};

/// The description of a model family. Defaults are those of its config class in transformers; they
/// apply to absent fields.
#[derive(Debug)]
pub struct Description {
    /// The family.
    pub family: Family,
    /// Values of `model_type`: of the text model by itself, and of one inside a larger model.
    pub model_types: &'static [&'static str],
    /// How a layer is built.
    pub layer: Layer,
    /// Possible prefixes of tensor names, which all tensors but the output projection share. The
    /// first one that any name starts with applies, else the last.
    pub prefixes: &'static [&'static str],
    /// Name of the tensor of token embeddings, after the prefix.
    pub embedding: &'static str,
    /// The family's attention.
    pub attention: Attention,
    /// Default of the epsilon that norms add to the variance.
    pub norm_eps: f64,
    /// Whether checkpoints store the weights of norms minus one.
    pub zero_centred: bool,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
    /// Defaults of sizes that configs of the family leave out. Those of other families have to give them.
    pub defaults: &'static [(&'static str, u32)],
    /// Whether what attention and feed-forward layers give is normalised too.
    pub norms_after: bool,
    /// Whether embeddings are multiplied by the root of their length.
    pub scaled_embedding: bool,
    /// Whether some layers are linear attention.
    pub hybrid: bool,
    /// Names of the stored projections, where a layer is [`Layer::Gated`].
    pub projections: Projections,
    /// The config field with the inner size of dense feed-forward layers.
    pub intermediate: &'static str,
    /// The family's layers of experts.
    pub experts: Option<OfExperts>,
}

/// The layers of experts of a family: how configs and checkpoints name what they have.
#[derive(Clone, Copy, Debug)]
pub struct OfExperts {
    /// The config fields that may hold the number of experts, and its default.
    pub count: (&'static [&'static str], u32),
    /// Default of `num_experts_per_tok`.
    pub chosen: u32,
    /// The config field with the inner size of an expert, and its default.
    pub intermediate: (&'static str, u32),
    /// The shared expert.
    pub shared: OfShared,
    /// How the gate of experts is computed.
    pub gate: OfGate,
    /// How logits become scores.
    pub scores: Scores,
    /// Whether a learned number is added to scores for the choice alone.
    pub biased: bool,
    /// Default of `norm_topk_prob`; `None` where weights are divided by their sum whatever the config says.
    pub normalised: Option<bool>,
    /// Default of `routed_scaling_factor`; `None` where the family has no such field.
    pub scale: Option<f64>,
    /// Whether the config has `n_group` and `topk_group`.
    pub grouped: bool,
    /// Which layers are dense.
    pub dense: OfDense,
}

/// The gate of the experts of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OfGate {
    /// As `hidden_act` says, silu.
    Silu,
    /// Clamped; `swiglu_alpha` and `swiglu_limit` have these defaults.
    Clamped {
        /// Factor within the sigmoid.
        alpha: f64,
        /// Bound.
        limit: f64,
    },
}

/// The shared expert of a family, which computes for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfShared {
    /// None.
    Nothing,
    /// One, whose size is a field with this default; its result is multiplied by a gate.
    Gated {
        /// Default of `shared_expert_intermediate_size`.
        intermediate: u32,
    },
    /// One of as many times the size of an expert as `n_shared_experts` says, 1 by default.
    Multiple,
}

/// Which layers of a family with experts have a dense feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfDense {
    /// None.
    Nowhere,
    /// Those that `mlp_only_layers` lists, and those between every `decoder_sparse_step`-th.
    Listed,
    /// Those that `mlp_layer_types` calls `dense` or, without it, the first `first_k_dense_replace`.
    First {
        /// Default of `first_k_dense_replace`.
        count: u32,
    },
}

/// How a layer is built, and how configs name its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Learned positions, LayerNorm, one projection for q, k and v, GELU.
    Gpt2,
    /// Rotary positions, RMSNorm, a gated feed-forward layer.
    Gated,
}

/// The attention of a family.
#[derive(Debug)]
pub struct Attention {
    /// Whether keys and values come from a latent vector (MLA).
    pub latent: bool,
    /// Default number of kv heads; if `None`, the number of q heads.
    pub kv_heads: Option<u32>,
    /// Default head size; if `None`, the hidden size divided by the number of q heads.
    pub head_dim: Option<u32>,
    /// Whether q and k are normalised per head before the rotation.
    pub qk_norm: bool,
    /// Whether outputs are multiplied by a sigmoid gate.
    pub output_gate: bool,
    /// Default share of a head that is rotated, from 0 to 1.
    pub rotated: f64,
    /// Default of `rope_interleave`; `None` where the family does not have that field.
    pub interleaved: Option<bool>,
    /// For families with the scaling `longrope`, the default of `original_max_position_embeddings`.
    pub long_rope: Option<u32>,
    /// Default of `rope_theta`.
    pub theta: f64,
    /// Default of the base of the rotation of layers with a window; `None` where all layers rotate alike.
    pub window_theta: Option<f64>,
    /// For families whose rotation is scaled by yarn where the config has none: factor and original length. The range
    /// is that of 1 to 32 turns, not rounded.
    pub yarn: Option<(f64, u32)>,
    /// Default of `query_pre_attn_scalar`; `None` where the family does not have that field.
    pub query_scalar: Option<f64>,
    /// Whether there are learned sinks.
    pub sinks: bool,
    /// Which layers see only a window of the last tokens.
    pub windows: Windows,
    /// Which projections have biases.
    pub biases: OfBiases,
}

/// Which layers of a family see only a window of the last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None of them.
    Nowhere,
    /// All of them, unless `sliding_window` is null.
    Everywhere {
        /// Default of `sliding_window`.
        default: Option<u32>,
    },
    /// Those that `layer_types` names or, without it, all but every `interval`-th.
    Between {
        /// Default of `sliding_window`.
        default: u32,
        /// Default of `sliding_window_pattern`.
        interval: u32,
    },
    /// With `use_sliding_window` those that `layer_types` names or, without it, those from layer
    /// `max_window_layers` on.
    FromLayer {
        /// Default of `max_window_layers`.
        first: u32,
        /// Default of `sliding_window`.
        default: u32,
    },
}

/// Which attention projections of a family have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfBiases {
    /// All or none, as `attention_bias` says; none by default.
    Field,
    /// These.
    Always(Biases),
}

/// Names of stored projections in a layer, each without `.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projections {
    /// Those of q, k and v, or of the one matrix that holds them in this order.
    pub qkv: &'static [&'static str],
    /// Those of gate and up, or of the one matrix that holds them in this order.
    pub gate_up: &'static [&'static str],
}

/// Each projection is stored as a matrix of its own.
const SEPARATE: Projections = Projections {
    qkv: &["q_proj", "k_proj", "v_proj"],
    gate_up: &["gate_proj", "up_proj"],
};

/// The attention of Llama, from which other families list their differences.
const PLAIN: Attention = Attention {
    latent: false,
    kv_heads: None,
    head_dim: None,
    qk_norm: false,
    output_gate: false,
    rotated: 1.0,
    interleaved: None,
    long_rope: None,
    theta: 10_000.0,
    window_theta: None,
    yarn: None,
    query_scalar: None,
    sinks: false,
    windows: Windows::Nowhere,
    biases: OfBiases::Field,
};

/// Every family.
pub const ALL: &[&Description] = &[
    &gpt2::GPT2,
    &llama::LLAMA,
    &mistral::MISTRAL,
    &phi3::PHI3,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &qwen3_moe::QWEN3_MOE,
    &qwen3_5::QWEN3_5,
    &qwen3_5_moe::QWEN3_5_MOE,
    &glm4_moe_lite::GLM4_MOE_LITE,
    &gemma3::GEMMA3,
    &gpt_oss::GPT_OSS,
];

/// The description of `family`.
pub fn of(family: Family) -> &'static Description {
    match family {
        Family::Gpt2 => &gpt2::GPT2,
        Family::Llama => &llama::LLAMA,
        Family::Mistral => &mistral::MISTRAL,
        Family::Qwen2 => &qwen2::QWEN2,
        Family::Phi3 => &phi3::PHI3,
        Family::Qwen3 => &qwen3::QWEN3,
        Family::Qwen3Moe => &qwen3_moe::QWEN3_MOE,
        Family::Qwen35 => &qwen3_5::QWEN3_5,
        Family::Qwen35Moe => &qwen3_5_moe::QWEN3_5_MOE,
        Family::Glm4MoeLite => &glm4_moe_lite::GLM4_MOE_LITE,
        Family::Gemma3 => &gemma3::GEMMA3,
        Family::GptOss => &gpt_oss::GPT_OSS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_listed_and_named_once() {
        let mut types: Vec<&str> = Vec::new();
        for description in ALL {
            assert_eq!(of(description.family).family, description.family);
            assert!(description.model_types.contains(&description.family.name()));
            types.extend(description.model_types.iter().copied());
        }
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count);
    }
}
