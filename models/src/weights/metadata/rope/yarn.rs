//! YaRN's scaling of rotary frequencies (arXiv:2309.00071).

use super::{Keys, ORIGINAL};
use crate::ModelError;
use crate::weights::architecture::Architecture;
use serde_json::{Value, json};

/// Numbers that configs have too.
const FIELDS: [(&str, &str); 3] = [
    ("rope.scaling.yarn_beta_fast", "beta_fast"),
    ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ("rope.scaling.yarn_attn_factor", "attention_factor"),
];

/// Numbers that configs do not have, which are 1 in all that run; below zero stands for not given.
const ONES: [&str; 2] = ["rope.scaling.yarn_ext_factor", "rope.scaling.attn_factor"];

/// The fields of a scaling by `factor`. What is not given has the same default in llama.cpp and in configs.
pub(super) fn fields(keys: Keys<'_>, factor: f64) -> Result<Value, ModelError> {
    for name in ONES {
        match keys.float(name)? {
            Some(given) if given >= 0.0 && given != 1.0 => {
                let what = format!("{given}: with the scaling `yarn`, only 1 runs");
                return Err(keys.beyond(name, &what));
            }
            _ => {}
        }
    }
    let mut fields = json!({ "rope_type": "yarn", "factor": factor });
    let original = keys.gguf.count(&keys.key(ORIGINAL))?;
    if let Some(original) = original.filter(|tokens| *tokens > 0) {
        fields["original_max_position_embeddings"] = json!(original);
    }
    for (name, field) in FIELDS {
        if let Some(number) = keys.float(name)? {
            fields[field] = json!(number);
        }
    }
    let name = "rope.scaling.yarn_log_multiplier";
    let multiplier = keys.float(name)?.filter(|all| *all != 0.0);
    match (multiplier, keys.architecture) {
        // Of latent attention, files have a tenth of `mscale_all_dim`, and nothing about `mscale`: llama.cpp takes the
        // two to be the same, as they are in all checkpoints.
        (Some(tenth), Architecture::Deepseek2) => {
            let all = tenth * 10.0;
            fields["mscale"] = json!(all);
            fields["mscale_all_dim"] = json!(all);
        }
        // llama.cpp would multiply elements that are not rotated too, which checkpoints do not mean.
        (None, Architecture::Deepseek2) => {
            let what = "missing: of this architecture, the scaling `yarn` runs with it alone";
            return Err(keys.beyond(name, what));
        }
        (Some(all), _) => {
            fields["mscale"] = json!(1.0);
            fields["mscale_all_dim"] = json!(all);
        }
        (None, _) => {}
    }
    if keys.architecture == Architecture::GptOss {
        // Files do not say it: the range of pairs that are blended is not rounded to whole pairs. llama.cpp
        // rounds it in all models, which the checkpoint's own code does not.
        fields["truncate"] = json!(false);
    }
    Ok(fields)
}
