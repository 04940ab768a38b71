//! Qwen3.5, dense: three layers of gated DeltaNet, then one of gated attention.

use super::{Attention, Description, Layer, PLAIN, SEPARATE};
use butterfly_ir::model::Family;

pub(super) const QWEN3_5: Description = Description {
    family: Family::Qwen35,
    model_types: &["qwen3_5", "qwen3_5_text"],
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        kv_heads: Some(4),
        head_dim: Some(256),
        qk_norm: true,
        output_gate: true,
        rotated: 0.25,
        ..PLAIN
    },
    norm_eps: 1e-6,
    zero_centred: true,
    tied: false,
    defaults: &[],
    hybrid: true,
    projections: SEPARATE,
    norms_after: false,
    scaled_embedding: false,
    intermediate: "intermediate_size",
    experts: None,
};
