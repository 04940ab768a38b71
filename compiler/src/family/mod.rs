//! Model families, one file each: what sets one apart from the others, as data.
//!
//! Config reading, layer graphs and `butterfly-models` ask here; none of them knows a family by name.

mod glm4_moe_lite;
mod gpt2;
mod llama;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;

use butterfly_ir::model::Family;

/// What sets a family apart. Defaults are those of its config class in transformers, for fields that
/// are absent.
#[derive(Debug)]
pub struct Description {
    /// Which one.
    pub family: Family,
    /// Values of `model_type`, of a text model and of one within a larger model.
    pub model_types: &'static [&'static str],
    /// Whether whole models run; if not, their attention is compiled for.
    pub runs: bool,
    /// How a layer is built.
    pub layer: Layer,
    /// What stands before the names of tensors, but for the output projection: the first that any name
    /// begins with, else the last.
    pub prefixes: &'static [&'static str],
    /// Name of the embedding of tokens.
    pub embedding: &'static str,
    /// What its attention has.
    pub attention: Attention,
    /// Default of the number added to the variance in norms.
    pub norm_eps: f64,
    /// Whether norms store how far a weight is from one.
    pub zero_centred: bool,
    /// Whether layers of linear attention stand between those of full attention.
    pub hybrid: bool,
    /// The field that has the inner size of feed-forward layers.
    pub intermediate: &'static str,
}

/// How a layer is built, and how configs name its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Learned positions, LayerNorm, one projection for q, k and v, GELU.
    Gpt2,
    /// Rotary positions, RMSNorm, a gated feed-forward layer.
    Gated,
}

/// What sets the attention of a family apart.
#[derive(Debug)]
pub struct Attention {
    /// Whether keys and values come from a latent vector (MLA).
    pub latent: bool,
    /// Default number of kv heads; as many as q heads where there is none.
    pub kv_heads: Option<u32>,
    /// Default head size; hidden size over q heads where there is none.
    pub head_dim: Option<u32>,
    /// Whether q and k are normalised per head before the rotation.
    pub qk_norm: bool,
    /// Whether outputs are multiplied by a sigmoid gate.
    pub output_gate: bool,
    /// Default share of a head that is rotated.
    pub rotated: f64,
    /// Default of `rope_interleave`, where the family has that.
    pub interleaved: Option<bool>,
}

/// As Llama has it; others say how they differ.
const PLAIN: Attention = Attention {
    latent: false,
    kv_heads: None,
    head_dim: None,
    qk_norm: false,
    output_gate: false,
    rotated: 1.0,
    interleaved: None,
};

/// Every family.
pub const ALL: &[&Description] = &[
    &gpt2::GPT2,
    &llama::LLAMA,
    &qwen3::QWEN3,
    &qwen3_5::QWEN3_5,
    &qwen3_5_moe::QWEN3_5_MOE,
    &glm4_moe_lite::GLM4_MOE_LITE,
];

/// What sets `family` apart.
pub fn of(family: Family) -> &'static Description {
    match family {
        Family::Gpt2 => &gpt2::GPT2,
        Family::Llama => &llama::LLAMA,
        Family::Qwen3 => &qwen3::QWEN3,
        Family::Qwen35 => &qwen3_5::QWEN3_5,
        Family::Qwen35Moe => &qwen3_5_moe::QWEN3_5_MOE,
        Family::Glm4MoeLite => &glm4_moe_lite::GLM4_MOE_LITE,
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
