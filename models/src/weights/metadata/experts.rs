//! Layers of experts: how many there are, how large they are, which layers have none.

use super::Keys;
use crate::ModelError;
use crate::weights::architecture::Architecture;
use serde_json::json;

/// The numbers for `expert_gating_func` that stand for softmax: none given, over all experts, over the
/// chosen ones. The last two are the same once weights are divided by their sum.
const SOFTMAX: [u32; 3] = [0, 1, 3];

impl Keys<'_> {
    /// Refuses experts where an architecture has none, and routers of a kind that it does not have.
    pub(super) fn check_experts(&self) -> Result<(), ModelError> {
        let count = |name: &str| self.gguf.count(&self.key(name));
        if !self.architecture.has_experts() {
            return match count("expert_count")?.unwrap_or(0) {
                0 => Ok(()),
                experts => {
                    let what = format!("{experts}: of this architecture, experts do not run");
                    Err(self.beyond("expert_count", &what))
                }
            };
        }
        if self.architecture == Architecture::Deepseek2 {
            return self.check_sigmoid();
        }
        let function = count("expert_gating_func")?.unwrap_or(0);
        if !SOFTMAX.contains(&function) {
            let what = format!("{function}: of this architecture, only softmax (1) runs");
            return Err(self.beyond("expert_gating_func", &what));
        }
        let groups = count("expert_group_count")?.unwrap_or(0);
        if groups > 1 {
            let what = format!("{groups}: of this architecture, groups of experts do not run");
            return Err(self.beyond("expert_group_count", &what));
        }
        if self.gguf.flag(&self.key("expert_weights_norm"))? == Some(false) {
            let what = "false: only weights that are divided by their sum run";
            return Err(self.beyond("expert_weights_norm", what));
        }
        match self.float("expert_weights_scale")? {
            // Zero stands for none.
            Some(scale) if scale != 0.0 && scale != 1.0 => {
                let what = format!("{scale}: weights of experts that are scaled do not run");
                Err(self.beyond("expert_weights_scale", &what))
            }
            _ => Ok(()),
        }
    }

    /// The fields of layers of experts, under the names of each family.
    pub(super) fn experts(&self) -> Result<serde_json::Value, ModelError> {
        Ok(match self.architecture {
            Architecture::Qwen3Moe => json!({
                "mlp_only_layers": self.dense()?,
                "moe_intermediate_size": self.expert_size()?,
                // llama.cpp divides by the sum, and conversions do not write whether checkpoints do. All
                // that were released do.
                "norm_topk_prob": true,
                "num_experts": self.size("expert_count")?,
                "num_experts_per_tok": self.size("expert_used_count")?,
            }),
            Architecture::Qwen35Moe => json!({
                "moe_intermediate_size": self.expert_size()?,
                "num_experts": self.size("expert_count")?,
                "num_experts_per_tok": self.size("expert_used_count")?,
                "shared_expert_intermediate_size": self.shared_size()?,
            }),
            Architecture::GptOss => json!({
                "intermediate_size": self.size("expert_feed_forward_length")?,
                "num_local_experts": self.size("expert_count")?,
                "num_experts_per_tok": self.size("expert_used_count")?,
            }),
            Architecture::Deepseek2 => self.sigmoid_experts()?,
            Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen35
            | Architecture::Gemma3
            | Architecture::Phi3
            | Architecture::Gpt2 => json!({}),
        })
    }

    /// The inner size of an expert. As llama.cpp: without the key, all that are chosen are as large as a
    /// dense layer.
    fn expert_size(&self) -> Result<u32, ModelError> {
        let name = "expert_feed_forward_length";
        let all = self.same_for_all("feed_forward_length")?;
        let share = match all {
            Some(all) => Some(all / self.size("expert_used_count")?).filter(|share| *share > 0),
            None => None,
        };
        let size = self.same_for_all(name)?.or(share);
        self.gguf.required(&self.key(name), "a whole number", size)
    }

    /// The inner size of the shared expert. As llama.cpp: without the key, that of a dense layer.
    fn shared_size(&self) -> Result<u32, ModelError> {
        let name = "expert_shared_feed_forward_length";
        let all = self.same_for_all("feed_forward_length")?;
        let size = self.same_for_all(name)?.or(all);
        self.gguf.required(&self.key(name), "a whole number", size)
    }

    /// The layers that have a dense feed-forward layer, as their tensors show.
    fn dense(&self) -> Result<Vec<u32>, ModelError> {
        let layers = self.layers()?;
        let names = self.gguf.tensors().iter().map(|tensor| &tensor.name);
        let dense = names.filter_map(|name| {
            let number = name
                .strip_prefix("blk.")?
                .strip_suffix(".ffn_gate.weight")?;
            number.parse().ok().filter(|layer| *layer < layers)
        });
        Ok(dense.collect())
    }
}
