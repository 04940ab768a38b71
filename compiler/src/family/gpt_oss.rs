//! gpt-oss: experts, sinks, windows in every other layer.

use super::llama::LLAMA;
use super::{
    Attention, Description, OfBiases, OfDense, OfExperts, OfGate, OfShared, PLAIN, Windows,
};
use butterfly_ir::model::{Biases, Family, Scores};

pub(super) const GPT_OSS: Description = Description {
    family: Family::GptOss,
    model_types: &["gpt_oss"],
    prefixes: &["model."],
    attention: Attention {
        kv_heads: Some(8),
        head_dim: Some(64),
        theta: 150_000.0,
        yarn: Some((32.0, 4096)),
        sinks: true,
        windows: Windows::Between {
            default: 128,
            interval: 2,
        },
        biases: OfBiases::Always(Biases::All),
        ..PLAIN
    },
    norm_eps: 1e-5,
    experts: Some(OfExperts {
        count: (&["num_local_experts"], 128),
        chosen: 4,
        intermediate: ("intermediate_size", 2880),
        shared: OfShared::Nothing,
        gate: OfGate::Clamped {
            alpha: 1.702,
            limit: 7.0,
        },
        // Softmax over those that are chosen is softmax over all, divided by its sum over them.
        scores: Scores::Softmax,
        biased: false,
        normalised: None,
        scale: None,
        grouped: false,
        dense: OfDense::Nowhere,
    }),
    ..LLAMA
};
