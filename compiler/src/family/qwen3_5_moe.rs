//! Qwen3.5, mixture of experts.

use super::{Attention, Description, Layer, PLAIN};
use butterfly_ir::model::Family;

pub(super) const QWEN3_5_MOE: Description = Description {
    family: Family::Qwen35Moe,
    model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
    runs: false,
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        kv_heads: Some(2),
        head_dim: Some(256),
        qk_norm: true,
        output_gate: true,
        rotated: 0.25,
        ..PLAIN
    },
    norm_eps: 1e-6,
    zero_centred: true,
    hybrid: true,
    intermediate: "moe_intermediate_size",
};
