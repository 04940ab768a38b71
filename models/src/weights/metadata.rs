//! The metadata of a GGUF file → a `config.json` as Hugging Face writes it.
//!
//! In:  an opened file. Out: a JSON object with every field that `butterfly_compiler::config` reads,
//! which then holds it to what runs here; the fields of other programs are left out.
//!
//! Sizes that the tensors show are taken from there: the vocabulary (files may list fewer tokens),
//! biases, whether the output projection is the embedding.
//!
//! Source of keys and their defaults: ggml-org/llama.cpp, `gguf-py/gguf/constants.py`,
//! `src/llama-model.cpp` and `src/models`; of what conversions write, `conversion/*.py`.

mod rope;
#[cfg(test)]
mod tests;

use super::architecture::Architecture;
use super::gguf::{GgmlType, Gguf, Value};
use crate::ModelError;
use serde_json::{Map, json};

/// The config of a file's model.
///
/// # Errors
/// A [`ModelError`] that names the file and the key that is missing, of a wrong type, or beyond what
/// runs.
pub(crate) fn config(
    gguf: &Gguf,
    architecture: Architecture,
) -> Result<serde_json::Value, ModelError> {
    let keys = Keys { gguf, architecture };
    keys.check()?;
    let mut fields = Map::new();
    let mut set = |name: &str, value: serde_json::Value| {
        fields.insert(name.to_string(), value);
    };
    let tied = gguf.tensor("output.weight").is_none();
    set("tie_word_embeddings", tied.into());
    set("dtype", dtype(gguf).into());
    set("vocab_size", vocabulary(gguf)?.into());
    set("eos_token_id", ends(gguf)?.into());
    match architecture {
        Architecture::Gpt2 => keys.gpt2(&mut fields)?,
        Architecture::Llama
        | Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Qwen35
        | Architecture::Phi3 => keys.gated(&mut fields)?,
    }
    Ok(fields.into())
}

/// The keys of an architecture: those that begin with its name.
#[derive(Clone, Copy)]
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    /// A number of at least 1.
    fn size(&self, name: &str) -> Result<u32, ModelError> {
        let key = self.key(name);
        let size = self.gguf.count(&key)?;
        match self.gguf.required(&key, "a whole number", size)? {
            0 => Err(self.beyond(name, "0, expected at least 1; convert the model again")),
            size => Ok(size),
        }
    }

    /// A number of at least 1 that files may give for each layer, and that is the same for all.
    fn same_for_all(&self, name: &str) -> Result<Option<u32>, ModelError> {
        let key = self.key(name);
        let Some(Value::Array(_)) = self.gguf.metadata(&key) else {
            return match self.gguf.metadata(&key) {
                None => Ok(None),
                Some(_) => self.size(name).map(Some),
            };
        };
        let list = self.gguf.integers(&key)?.unwrap_or_default();
        let first = list.first().and_then(|n| u32::try_from(*n).ok());
        match first {
            Some(size) if size > 0 && list.iter().all(|n| *n == list[0]) => Ok(Some(size)),
            _ => {
                let what = "not the same in all layers, at least 1, which does not run";
                Err(self.beyond(name, what))
            }
        }
    }

    fn float(&self, name: &str) -> Result<Option<f64>, ModelError> {
        self.gguf.float(&self.key(name))
    }

    fn required_float(&self, name: &str) -> Result<f64, ModelError> {
        let key = self.key(name);
        self.gguf.required(&key, "f32", self.gguf.float(&key)?)
    }

    /// The error of a key whose value is understood and refused: "`KEY` is WHAT".
    fn beyond(&self, name: &str, what: &str) -> ModelError {
        self.gguf.wrong(format!("`{}` is {what}", self.key(name)))
    }

    /// Refuses what would silently give other logits.
    fn check(&self) -> Result<(), ModelError> {
        if let Some(experts) = self.gguf.count(&self.key("expert_count"))?
            && experts > 0
        {
            let what = format!("{experts}: mixtures of experts do not run from GGUF files");
            return Err(self.beyond("expert_count", &what));
        }
        if self.gguf.flag(&self.key("attention.causal"))? == Some(false) {
            let what = "false: models that see later tokens do not run";
            return Err(self.beyond("attention.causal", what));
        }
        Ok(())
    }

    fn gpt2(&self, fields: &mut Map<String, serde_json::Value>) -> Result<(), ModelError> {
        let config = json!({
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "layer_norm_epsilon": self.required_float("attention.layer_norm_epsilon")?,
            "n_ctx": self.size("context_length")?,
            "n_embd": self.size("embedding_length")?,
            "n_head": self.size("attention.head_count")?,
            "n_inner": self.size("feed_forward_length")?,
            "n_layer": self.size("block_count")?,
            "n_positions": self.size("context_length")?,
        });
        extend(fields, config);
        Ok(())
    }

    fn gated(&self, fields: &mut Map<String, serde_json::Value>) -> Result<(), ModelError> {
        let hidden = self.size("embedding_length")?;
        let required = |name: &str| {
            let size = self.same_for_all(name)?;
            self.gguf.required(&self.key(name), "a whole number", size)
        };
        let heads = required("attention.head_count")?;
        let head_dim = self.head_dim(hidden, heads)?;
        let window = self.window()?;
        extend(
            fields,
            json!({
                "model_type": self.model_type(window),
                "head_dim": head_dim,
                "hidden_act": "silu",
                "hidden_size": hidden,
                "intermediate_size": required("feed_forward_length")?,
                "max_position_embeddings": self.size("context_length")?,
                "num_attention_heads": heads,
                "num_hidden_layers": self.layers()?,
                "num_key_value_heads": self.same_for_all("attention.head_count_kv")?.unwrap_or(heads),
                "rms_norm_eps": self.required_float("attention.layer_norm_rms_epsilon")?,
                "rope_parameters": rope::parameters(*self, head_dim)?,
            }),
        );
        let has = |name: &str| self.gguf.tensor(name).is_some();
        let own = match self.architecture {
            Architecture::Llama => json!({
                "attention_bias": has("blk.0.attn_q.bias"),
                "mlp_bias": has("blk.0.ffn_gate.bias"),
                "rope_interleave": true,
                "sliding_window": window,
            }),
            Architecture::Qwen3 => json!({ "attention_bias": has("blk.0.attn_q.bias") }),
            Architecture::Qwen35 => self.linear()?,
            Architecture::Phi3 => {
                let original = self.gguf.count(&self.key(rope::ORIGINAL))?;
                let mut own = json!({ "sliding_window": window });
                if let Some(original) = original {
                    own["original_max_position_embeddings"] = original.into();
                }
                own
            }
            Architecture::Qwen2 | Architecture::Gpt2 => json!({}),
        };
        extend(fields, own);
        Ok(())
    }

    /// The `model_type` of the checkpoint. Mistral is converted to `llama`, and is the same unless it
    /// has a window.
    fn model_type(&self, window: Option<u32>) -> &'static str {
        match (self.architecture, window) {
            (Architecture::Llama, None) => "llama",
            (Architecture::Llama, Some(_)) => "mistral",
            (Architecture::Qwen2, _) => "qwen2",
            (Architecture::Qwen3, _) => "qwen3",
            (Architecture::Qwen35, _) => "qwen3_5_text",
            (Architecture::Phi3, _) => "phi3",
            (Architecture::Gpt2, _) => "gpt2",
        }
    }

    /// Number of layers, without those at the end that predict further tokens.
    fn layers(&self) -> Result<u32, ModelError> {
        let all = self.size("block_count")?;
        let more = self.gguf.count(&self.key("nextn_predict_layers"))?;
        match all.checked_sub(more.unwrap_or(0)) {
            None | Some(0) => {
                let what = format!("{all}, and none is left without `nextn_predict_layers`");
                Err(self.beyond("block_count", &what))
            }
            Some(layers) => Ok(layers),
        }
    }

    fn head_dim(&self, hidden: u32, heads: u32) -> Result<u32, ModelError> {
        let head_dim = match self.gguf.count(&self.key("attention.key_length"))? {
            Some(_) => self.size("attention.key_length")?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let what = format!(
                    "missing, and `{}`, {hidden}, is no multiple of `{}`, {heads}; convert the model again",
                    self.key("embedding_length"),
                    self.key("attention.head_count")
                );
                return Err(self.beyond("attention.key_length", &what));
            }
        };
        let values = self.gguf.count(&self.key("attention.value_length"))?;
        if values.is_some_and(|values| values != head_dim) {
            let what = format!(
                "other than the length of keys, {head_dim}: values that are longer or shorter than keys do not run"
            );
            return Err(self.beyond("attention.value_length", &what));
        }
        let usual = f64::from(head_dim).sqrt().recip();
        match self.float("attention.scale")? {
            // Zero stands for the usual scale.
            Some(scale) if scale != 0.0 && (scale - usual).abs() > 1e-6 * usual => {
                let what = format!("{scale}: only 1 / sqrt({head_dim}) runs");
                Err(self.beyond("attention.scale", &what))
            }
            _ => Ok(head_dim),
        }
    }

    /// The window of all layers, in tokens; zero stands for none.
    fn window(&self) -> Result<Option<u32>, ModelError> {
        let name = "attention.sliding_window";
        let window = self.gguf.count(&self.key(name))?.filter(|n| *n > 0);
        match self.architecture {
            Architecture::Llama | Architecture::Phi3 => Ok(window),
            Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen35
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

    /// The fields of Qwen3.5: which layers are linear attention, and their heads.
    fn linear(&self) -> Result<serde_json::Value, ModelError> {
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
        let layers = self.layers()? as usize;
        let name = "attention.recurrent_layers";
        let kinds = self.gguf.flags(&self.key(name))?;
        match kinds {
            Some(kinds) if kinds.len() < layers => {
                let what = format!("given for {} layers of {layers}", kinds.len());
                return Err(self.beyond(name, &what));
            }
            Some(kinds) => {
                let kinds = kinds.iter().take(layers).map(|linear| match linear {
                    true => "linear_attention",
                    false => "full_attention",
                });
                config["layer_types"] = kinds.collect();
            }
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

/// Adds the entries of a JSON object.
fn extend(fields: &mut Map<String, serde_json::Value>, more: serde_json::Value) {
    if let serde_json::Value::Object(more) = more {
        fields.extend(more);
    }
}

/// The float type of most bytes of matrices; of a file whose matrices are all packed, f16, in which
/// blocks have their scales.
fn dtype(gguf: &Gguf) -> &'static str {
    let bytes = |kind: GgmlType| -> usize {
        let matrices = gguf.tensors().iter();
        let matrices = matrices.filter(|one| one.kind == kind && one.shape.len() > 1);
        matrices.map(|one| one.bytes.len()).sum()
    };
    let floats = [
        (bytes(GgmlType::F16), "float16"),
        (bytes(GgmlType::Bf16), "bfloat16"),
        (bytes(GgmlType::F32), "float32"),
    ];
    let mut most = floats[0];
    for one in floats {
        if one.0 > most.0 {
            most = one;
        }
    }
    most.1
}

/// Number of rows of the embedding; without one, of tokens.
fn vocabulary(gguf: &Gguf) -> Result<usize, ModelError> {
    if let Some(rows) = gguf
        .tensor("token_embd.weight")
        .and_then(|one| one.shape.first())
    {
        return Ok(*rows);
    }
    let key = "tokenizer.ggml.tokens";
    let tokens = gguf.strings(key)?.map(|tokens| tokens.len());
    gguf.required(key, "an array of strings", tokens)
}

/// The tokens that end a text: of a text, of a turn, of a message.
fn ends(gguf: &Gguf) -> Result<Vec<u32>, ModelError> {
    let mut ends = Vec::new();
    for what in ["eos", "eot", "eom"] {
        let token = gguf.count(&format!("tokenizer.ggml.{what}_token_id"))?;
        ends.extend(token.filter(|token| !ends.contains(token)));
    }
    Ok(ends)
}
