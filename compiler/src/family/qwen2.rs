//! Qwen2 and Qwen2.5, dense: Llama with biases of q, k and v, and windows in the later layers.

use super::{Attention, Description, Layer, OfBiases, PLAIN, SEPARATE, Windows};
use butterfly_ir::model::{Biases, Family};

pub(super) const QWEN2: Description = Description {
    family: Family::Qwen2,
    model_types: &["qwen2"],
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        kv_heads: Some(32),
        windows: Windows::FromLayer {
            first: 28,
            default: 4096,
        },
        biases: OfBiases::Always(Biases::Inputs),
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
