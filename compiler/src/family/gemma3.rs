//! Gemma 3, the text model: windows in five of six layers, each kind of layer with a rotation of its own.

use super::llama::LLAMA;
use super::{Attention, Description, PLAIN, Windows};
use butterfly_ir::model::Family;

pub(super) const GEMMA3: Description = Description {
    family: Family::Gemma3,
    model_types: &["gemma3_text", "gemma3"],
    prefixes: &["model.language_model.", "language_model.model.", "model."],
    attention: Attention {
        kv_heads: Some(4),
        head_dim: Some(256),
        qk_norm: true,
        theta: 1_000_000.0,
        window_theta: Some(10_000.0),
        query_scalar: Some(256.0),
        windows: Windows::Between {
            default: 4096,
            interval: 6,
        },
        ..PLAIN
    },
    zero_centred: true,
    tied: true,
    defaults: &[
        ("num_hidden_layers", 26),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_attention_heads", 8),
        ("vocab_size", 262_208),
        ("max_position_embeddings", 131_072),
    ],
    norms_after: true,
    scaled_embedding: true,
    ..LLAMA
};
