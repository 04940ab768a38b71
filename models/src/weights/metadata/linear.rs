//! Linear attention: which layers it is in, and its heads.

use super::Keys;
use crate::ModelError;
use serde_json::json;

impl Keys<'_> {
    /// The fields of Qwen3.5: which layers are linear attention, and their heads.
    pub(super) fn linear(&self) -> Result<serde_json::Value, ModelError> {
        let v_heads = self.size("ssm.time_step_rank")?;
        let inner = self.size("ssm.inner_size")?;
        if !inner.is_multiple_of(v_heads) {
            let key = self.key("ssm.time_step_rank");
            let what =
                format!("{inner}, no multiple of `{key}`, {v_heads}; convert the model again");
            return Err(self.beyond("ssm.inner_size", &what));
        }
        let mut config = json!({
            "linear_conv_kernel_dim": self.size("ssm.conv_kernel")?,
            "linear_key_head_dim": self.size("ssm.state_size")?,
            "linear_num_key_heads": self.size("ssm.group_count")?,
            "linear_num_value_heads": v_heads,
            "linear_value_head_dim": inner / v_heads,
        });
        let kinds = ["full_attention", "linear_attention"];
        match self.each_layer("attention.recurrent_layers", kinds)? {
            Some(kinds) => config["layer_types"] = kinds.into(),
            None => {
                let key = self.key("full_attention_interval");
                let interval = match self.gguf.count(&key)? {
                    None => 4,
                    Some(_) => self.size("full_attention_interval")?,
                };
                config["full_attention_interval"] = interval.into();
            }
        }
        Ok(config)
    }
}
