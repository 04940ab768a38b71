//! Phi-3, Phi-3.5 and Phi-4, dense: Llama with q, k and v in one matrix, gate and up in another.

use super::{Attention, Description, Layer, OfBiases, PLAIN, Projections, Windows};
use butterfly_ir::model::{Biases, Family};

pub(super) const PHI3: Description = Description {
    family: Family::Phi3,
    model_types: &["phi3"],
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        windows: Windows::Everywhere { default: None },
        biases: OfBiases::Always(Biases::None),
        long_rope: Some(4096),
        ..PLAIN
    },
    norm_eps: 1e-5,
    zero_centred: false,
    tied: false,
    defaults: &[],
    hybrid: false,
    projections: Projections {
        qkv: &["qkv_proj"],
        gate_up: &["gate_up_proj"],
    },
    norms_after: false,
    scaled_embedding: false,
    intermediate: "intermediate_size",
    experts: None,
};
