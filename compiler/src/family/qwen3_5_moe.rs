//! Qwen3.5, mixture of experts: like the dense model, but with fewer kv heads and with experts.

use super::qwen3_5::QWEN3_5;
use super::{Attention, Description, OfDense, OfExperts, OfGate, OfShared};
use butterfly_ir::model::{Family, Scores};

pub(super) const QWEN3_5_MOE: Description = Description {
    family: Family::Qwen35Moe,
    model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
    attention: Attention {
        kv_heads: Some(2),
        ..QWEN3_5.attention
    },
    experts: Some(OfExperts {
        count: (&["num_experts", "num_local_experts"], 256),
        chosen: 8,
        intermediate: ("moe_intermediate_size", 512),
        shared: OfShared::Gated { intermediate: 512 },
        gate: OfGate::Silu,
        scores: Scores::Softmax,
        biased: false,
        normalised: None,
        scale: None,
        grouped: false,
        dense: OfDense::Nowhere,
    }),
    ..QWEN3_5
};
