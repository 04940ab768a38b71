//! `general.architecture`: which family a GGUF file's model is of.

use super::gguf::Gguf;
use crate::ModelError;

/// An architecture of llama.cpp whose family runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// Llama, Mistral, SmolLM and others that differ in nothing but sizes.
    Llama,
    Qwen2,
    Qwen3,
    /// Qwen3, mixture of experts.
    Qwen3Moe,
    /// Qwen3.5, dense.
    Qwen35,
    /// Qwen3.5, mixture of experts.
    Qwen35Moe,
    /// Gemma 3, the text model.
    Gemma3,
    GptOss,
    /// Latent attention, experts chosen by sigmoids: GLM-4.7-Flash, DeepSeek-V3.
    Deepseek2,
    Phi3,
    Gpt2,
}

impl Architecture {
    /// Every architecture.
    pub(crate) const ALL: [Self; 11] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Qwen35,
        Self::Qwen35Moe,
        Self::Gemma3,
        Self::GptOss,
        Self::Deepseek2,
        Self::Phi3,
        Self::Gpt2,
    ];

    /// The name in `general.architecture`, with which the model's keys begin.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
            Self::Qwen35 => "qwen35",
            Self::Qwen35Moe => "qwen35moe",
            Self::Gemma3 => "gemma3",
            Self::GptOss => "gpt-oss",
            Self::Deepseek2 => "deepseek2",
            Self::Phi3 => "phi3",
            Self::Gpt2 => "gpt2",
        }
    }

    /// Whether its models have layers of experts.
    pub(crate) fn has_experts(self) -> bool {
        match self {
            Self::Qwen3Moe | Self::Qwen35Moe | Self::GptOss | Self::Deepseek2 => true,
            Self::Llama
            | Self::Qwen2
            | Self::Qwen3
            | Self::Qwen35
            | Self::Gemma3
            | Self::Phi3
            | Self::Gpt2 => false,
        }
    }

    /// The architecture of a file.
    ///
    /// # Errors
    /// A [`ModelError`] if it holds no language model, or one of another architecture.
    pub(crate) fn of(gguf: &Gguf) -> Result<Self, ModelError> {
        let contents = gguf.string("general.type")?.unwrap_or("model");
        if contents != "model" {
            return Err(gguf.wrong(format!(
                "`general.type` is `{contents}`: the file holds no language model; give the file of the model itself"
            )));
        }
        let key = "general.architecture";
        let given = gguf.required(key, "a string", gguf.string(key)?)?;
        let found = Self::ALL.into_iter().find(|one| one.name() == given);
        found.ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|one| one.name()).collect();
            gguf.wrong(format!(
                "`{key}` is `{given}`, which does not run; those that do are {}",
                known.join(", ")
            ))
        })
    }
}
