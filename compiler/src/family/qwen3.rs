//! Qwen3, dense.

use super::{Attention, Description, Layer, PLAIN, SEPARATE};
use butterfly_ir::model::Family;

pub(super) const QWEN3: Description = Description {
    family: Family::Qwen3,
    model_types: &["qwen3"],
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        kv_heads: Some(32),
        head_dim: Some(128),
        qk_norm: true,
        ..PLAIN
    },
    norm_eps: 1e-6,
    zero_centred: false,
    tied: false,
    defaults: &[],
    hybrid: false,
    projections: SEPARATE,
    norms_after: false,
    scaled_embedding: false,
    intermediate: "intermediate_size",
    experts: None,
};
