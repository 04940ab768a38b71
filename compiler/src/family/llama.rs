//! Llama 1 to 3.

use super::{Attention, Description, Layer, PLAIN, SEPARATE};
use butterfly_ir::model::Family;

pub(super) const LLAMA: Description = Description {
    family: Family::Llama,
    model_types: &["llama"],
    layer: Layer::Gated,
    prefixes: &["model.language_model.", "model."],
    embedding: "embed_tokens.weight",
    attention: Attention {
        // Checkpoints do not have the field. GGUF files are read as if they had it: the conversion
        // moves the elements that are rotated together side by side.
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
