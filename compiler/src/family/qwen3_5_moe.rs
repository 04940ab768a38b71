//! Qwen3.5, mixture of experts: like the dense model, but with fewer kv heads and with experts.

use super::qwen3_5::QWEN3_5;
use super::{Attention, Description};
use butterfly_ir::model::Family;

pub(super) const QWEN3_5_MOE: Description = Description {
    family: Family::Qwen35Moe,
    model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
    runs: false,
    attention: Attention {
        kv_heads: Some(2),
        ..QWEN3_5.attention
    },
    intermediate: "moe_intermediate_size",
    ..QWEN3_5
};
