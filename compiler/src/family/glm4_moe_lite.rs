//! GLM-4.7-Flash: latent attention, mixture of experts.

use super::{Attention, Description, Layer, OfDense, OfExperts, OfGate, OfShared, PLAIN, SEPARATE};
use butterfly_ir::model::{Family, Scores};

pub(super) const GLM4_MOE_LITE: Description = Description {
    family: Family::Glm4MoeLite,
    model_types: &["glm4_moe_lite"],
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        latent: true,
        interleaved: Some(true),
        ..PLAIN
    },
    norm_eps: 1e-5,
    zero_centred: false,
    tied: false,
    defaults: &[],
    norms_after: false,
    scaled_embedding: false,
    hybrid: false,
    projections: SEPARATE,
    intermediate: "intermediate_size",
    experts: Some(OfExperts {
        count: (&["n_routed_experts", "num_local_experts"], 64),
        chosen: 4,
        intermediate: ("moe_intermediate_size", 1536),
        shared: OfShared::Multiple,
        gate: OfGate::Silu,
        scores: Scores::Sigmoid,
        biased: true,
        normalised: Some(true),
        scale: Some(1.8),
        grouped: true,
        dense: OfDense::First { count: 1 },
    }),
};
