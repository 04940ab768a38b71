//! GLM-4.7-Flash: latent attention, mixture of experts.

use super::{Attention, Description, Layer, PLAIN, SEPARATE};
use butterfly_ir::model::Family;

pub(super) const GLM4_MOE_LITE: Description = Description {
    family: Family::Glm4MoeLite,
    model_types: &["glm4_moe_lite"],
    runs: false,
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
    hybrid: false,
    projections: SEPARATE,
    intermediate: "intermediate_size",
};
