//! Sliding windows: which layers have one, and how long it is.
//!
//! llama.cpp knows from the architecture whether windows are in all layers or in a part of them.

use super::Keys;
use crate::ModelError;
use crate::weights::architecture::Architecture;
use crate::weights::gguf::Value;
use serde_json::json;

/// Which layers have a window, where not all of them do.
const PATTERN: &str = "attention.sliding_window_pattern";

impl Keys<'_> {
    /// The window of layers that have one, in tokens; zero stands for none.
    pub(super) fn window(&self) -> Result<Option<u32>, ModelError> {
        let name = "attention.sliding_window";
        let window = self.gguf.count(&self.key(name))?.filter(|n| *n > 0);
        match self.architecture {
            Architecture::Llama | Architecture::Phi3 | Architecture::Gemma3 => Ok(window),
            Architecture::GptOss => self.size(name).map(Some),
            Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen3Moe
            | Architecture::Qwen35
            | Architecture::Qwen35Moe
            | Architecture::Deepseek2
            | Architecture::Gpt2 => match window {
                None => Ok(None),
                Some(window) => {
                    let what = format!(
                        "{window}: windows in a part of the layers do not run; a pattern can have a window"
                    );
                    Err(self.beyond(name, &what))
                }
            },
        }
    }

    /// The fields of architectures with windows in a part of the layers. Without a pattern it is every
    /// sixth layer of Gemma 3 that has none, and every second of gpt-oss: in llama.cpp, and in configs.
    pub(super) fn between(&self, window: Option<u32>) -> Result<serde_json::Value, ModelError> {
        match self.architecture {
            Architecture::Gemma3 | Architecture::GptOss => {}
            Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen3Moe
            | Architecture::Qwen35
            | Architecture::Qwen35Moe
            | Architecture::Deepseek2
            | Architecture::Phi3
            | Architecture::Gpt2 => return Ok(json!({})),
        }
        let mut fields = json!({ "sliding_window": window });
        if window.is_none() {
            return Ok(fields);
        }
        match self.gguf.metadata(&self.key(PATTERN)) {
            None => {}
            Some(Value::Array(_)) => {
                let kinds = ["full_attention", "sliding_attention"];
                fields["layer_types"] = json!(self.each_layer(PATTERN, kinds)?);
            }
            Some(_) => fields["sliding_window_pattern"] = self.size(PATTERN)?.into(),
        }
        Ok(fields)
    }
}
