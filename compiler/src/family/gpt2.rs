//! GPT-2.

use super::{Attention, Description, Layer, OfBiases, PLAIN, SEPARATE};
use butterfly_ir::model::{Biases, Family};

pub(super) const GPT2: Description = Description {
    family: Family::Gpt2,
    model_types: &["gpt2"],
    layer: Layer::Gpt2,
    prefixes: &["transformer.", ""],
    embedding: "wte.weight",
    attention: Attention {
        biases: OfBiases::Always(Biases::All),
        ..PLAIN
    },
    norm_eps: 1e-5,
    zero_centred: false,
    tied: true,
    defaults: &[],
    hybrid: false,
    projections: SEPARATE,
    norms_after: false,
    scaled_embedding: false,
    intermediate: "n_inner",
    experts: None,
};
