//! GPT-2.

use super::{Description, Layer, PLAIN};
use butterfly_ir::model::Family;

pub(super) const GPT2: Description = Description {
    family: Family::Gpt2,
    model_types: &["gpt2"],
    runs: true,
    layer: Layer::Gpt2,
    prefixes: &["transformer.", ""],
    embedding: "wte.weight",
    attention: PLAIN,
    norm_eps: 1e-5,
    zero_centred: false,
    hybrid: false,
    intermediate: "n_inner",
};
