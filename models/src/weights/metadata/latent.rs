//! Latent attention (`deepseek2`): its lengths, and the experts of the models that have it.
//!
//! Files describe attention as it runs over latents: one kv head, keys and values as long as a latent. Lengths of
//! heads have names of their own (`_mla`), which older files lack: theirs are not of latents.

use super::Keys;
use crate::ModelError;
use serde_json::{Value, json};

/// The number for `expert_gating_func` that stands for sigmoids.
const SIGMOID: u32 = 2;

/// The name of a layer's tensor that is added to the scores of experts, after `blk.N.`.
const CORRECTION: &str = "exp_probs_b.bias";

impl Keys<'_> {
    /// The fields of latent attention with so many heads.
    pub(super) fn latent(&self, heads: u32) -> Result<Value, ModelError> {
        let rotated = self.size("rope.dimension_count")?;
        let (name, keys) = self.length("key")?;
        let Some(nope) = keys.checked_sub(rotated).filter(|nope| *nope > 0) else {
            let key = self.key("rope.dimension_count");
            let what =
                format!("{keys}, expected more than `{key}`, {rotated}; convert the model again");
            return Err(self.beyond(&name, &what));
        };
        self.check_scale(keys)?;
        self.check_temperature()?;
        let (_, values) = self.length("value")?;
        let q_rank = self.gguf.count(&self.key("attention.q_lora_rank"))?;
        let biased = self.gguf.tensor("blk.0.attn_kv_a_mqa.bias").is_some();
        Ok(json!({
            "attention_bias": biased,
            "kv_lora_rank": self.size("attention.kv_lora_rank")?,
            "num_key_value_heads": heads,
            "q_lora_rank": q_rank.filter(|rank| *rank > 0),
            "qk_nope_head_dim": nope,
            "qk_rope_head_dim": rotated,
            "rope_interleave": true,
            "v_head_dim": values,
        }))
    }

    /// The length of a head's keys or values, and the key that has it.
    fn length(&self, what: &str) -> Result<(String, u32), ModelError> {
        let [of_heads, older] = ["_mla", ""].map(|end| format!("attention.{what}_length{end}"));
        let given = self.gguf.count(&self.key(&of_heads))?;
        // As llama.cpp: zero stands for none.
        let name = match given.filter(|length| *length > 0) {
            Some(_) => of_heads,
            None => older,
        };
        let length = self.size(&name)?;
        Ok((name, length))
    }

    /// Refuses logits that depend on the position of their query (Mistral Large 3).
    fn check_temperature(&self) -> Result<(), ModelError> {
        let name = "attention.temperature_scale";
        match self.float(name)? {
            Some(scale) if scale != 0.0 => {
                let what = format!("{scale}: logits that are scaled by positions do not run");
                Err(self.beyond(name, &what))
            }
            _ => Ok(()),
        }
    }

    /// Refuses routers that do not score by sigmoids.
    pub(super) fn check_sigmoid(&self) -> Result<(), ModelError> {
        let count = |name: &str| self.gguf.count(&self.key(name));
        let name = "expert_gating_func";
        match count(name)?.unwrap_or(0) {
            SIGMOID => Ok(()),
            0 if count("expert_count")?.unwrap_or(0) == 0 => Ok(()),
            // Configs of GLM-4.7-Flash do not have it, so that some files do not. llama.cpp knows the model by its number
            // of layers and tokens; in all models with sigmoids, and in no other, scores are corrected for the choice.
            0 if self.corrects() => Ok(()),
            0 => {
                let what = format!(
                    "missing, and no layer has a tensor `{CORRECTION}`, which stands for softmax: of this architecture, only sigmoid ({SIGMOID}) runs"
                );
                Err(self.beyond(name, &what))
            }
            other => {
                let what = format!("{other}: of this architecture, only sigmoid ({SIGMOID}) runs");
                Err(self.beyond(name, &what))
            }
        }
    }

    /// Whether a layer corrects the scores of its experts.
    fn corrects(&self) -> bool {
        let mut names = self.gguf.tensors().iter().map(|tensor| &tensor.name);
        names.any(|name| name.starts_with("blk.") && name.ends_with(CORRECTION))
    }

    /// The fields of layers of experts, of which some files have none.
    pub(super) fn sigmoid_experts(&self) -> Result<Value, ModelError> {
        let count = |name: &str| self.gguf.count(&self.key(name));
        let required = |name: &str, given| {
            let key = self.key(name);
            self.gguf.required(&key, "a whole number", given)
        };
        let name = "leading_dense_block_count";
        let dense = required(name, count(name)?)?;
        if count("expert_count")?.unwrap_or(0) == 0 && dense >= self.layers()? {
            return Ok(json!({ "first_k_dense_replace": dense }));
        }
        let groups = |name: &str| Ok::<u32, ModelError>(count(name)?.unwrap_or(0).max(1));
        let wide = "expert_feed_forward_length";
        let shared = "expert_shared_count";
        let normalised = self.gguf.flag(&self.key("expert_weights_norm"))?;
        Ok(json!({
            "first_k_dense_replace": dense,
            "moe_intermediate_size": required(wide, self.same_for_all(wide)?)?,
            "n_group": groups("expert_group_count")?,
            "n_routed_experts": self.size("expert_count")?,
            "n_shared_experts": required(shared, count(shared)?)?,
            "norm_topk_prob": normalised.unwrap_or(false),
            "num_experts_per_tok": self.size("expert_used_count")?,
            "routed_scaling_factor": self.weights_scale()?,
            "topk_group": groups("expert_group_used_count")?,
        }))
    }

    /// What the weights of chosen experts are multiplied by; as in llama.cpp, zero stands for 1.
    fn weights_scale(&self) -> Result<f64, ModelError> {
        let name = "expert_weights_scale";
        match self.float(name)? {
            None => Ok(1.0),
            Some(0.0) => Ok(1.0),
            Some(scale) if scale > 0.0 => Ok(scale),
            Some(scale) => {
                let what = format!("{scale}, expected a number above 0; convert the model again");
                Err(self.beyond(name, &what))
            }
        }
    }
}
