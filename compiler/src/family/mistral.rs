//! Mistral, dense: Llama with a window of the last tokens in all layers.

use super::{Attention, Description, Layer, OfBiases, PLAIN, SEPARATE, Windows};
use butterfly_ir::model::{Biases, Family};

pub(super) const MISTRAL: Description = Description {
    family: Family::Mistral,
    model_types: &["mistral"],
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        kv_heads: Some(8),
        windows: Windows::Everywhere {
            default: Some(4096),
        },
        biases: OfBiases::Always(Biases::None),
        // As for Llama: true of GGUF files.
        interleaved: Some(false),
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
