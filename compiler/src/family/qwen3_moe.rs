//! Qwen3, mixture of experts.

use super::qwen3::QWEN3;
use super::{Attention, Description, OfDense, OfExperts, OfGate, OfShared};
use butterfly_ir::model::{Family, Scores};

pub(super) const QWEN3_MOE: Description = Description {
    family: Family::Qwen3Moe,
    model_types: &["qwen3_moe"],
    attention: Attention {
        kv_heads: Some(4),
        head_dim: None,
        ..QWEN3.attention
    },
    experts: Some(OfExperts {
        count: (&["num_experts", "num_local_experts"], 128),
        chosen: 8,
        intermediate: ("moe_intermediate_size", 768),
        shared: OfShared::Nothing,
        gate: OfGate::Silu,
        scores: Scores::Softmax,
        biased: false,
        normalised: Some(false),
        scale: None,
        grouped: false,
        dense: OfDense::Listed,
    }),
    ..QWEN3
};
