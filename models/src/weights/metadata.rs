//! The metadata of a GGUF file → a `config.json` as Hugging Face writes it.
//!
//! In:  an opened file. Out: a JSON object with every field that `butterfly_compiler::config` reads,
//! which then holds it to what runs here; the fields of other programs are left out.
//!
//! Sizes that the tensors show are taken from there: the vocabulary (files may list fewer tokens),
//! biases, whether the output projection is the embedding, which layers have no experts.
//!
//! Source of keys and their defaults: ggml-org/llama.cpp, `gguf-py/gguf/constants.py`,
//! `src/llama-model.cpp` and `src/models`; of what conversions write, `conversion/*.py`.

mod experts;
mod latent;
mod linear;
mod rope;
#[cfg(test)]
mod tests;
mod windows;

use super::architecture::Architecture;
use super::gguf::{GgmlType, Gguf, Tensor, Value};
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
        | Architecture::Qwen3Moe
        | Architecture::Qwen35
        | Architecture::Qwen35Moe
        | Architecture::Gemma3
        | Architecture::GptOss
        | Architecture::Deepseek2
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
        self.check_experts()?;
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
        let head_dim = match self.architecture == Architecture::Deepseek2 {
            // As configs of latent attention have it: the elements that are rotated.
            true => self.size("rope.dimension_count")?,
            false => self.head_dim(hidden, heads)?,
        };
        let window = self.window()?;
        let wide = match self.architecture.has_experts() {
            true => self.same_for_all("feed_forward_length")?,
            false => Some(required("feed_forward_length")?),
        };
        extend(
            fields,
            json!({
                "model_type": self.model_type(window),
                "head_dim": head_dim,
                "hidden_act": "silu",
                "hidden_size": hidden,
                "intermediate_size": wide,
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
            Architecture::Qwen3 | Architecture::Qwen3Moe => {
                json!({ "attention_bias": has("blk.0.attn_q.bias") })
            }
            Architecture::Qwen35 | Architecture::Qwen35Moe => self.linear()?,
            Architecture::Gemma3 => json!({
                "attn_logit_softcapping": self.softcap("attn_logit_softcapping")?,
                "final_logit_softcapping": self.softcap("final_logit_softcapping")?,
                "hidden_activation": "gelu_pytorch_tanh",
                "query_pre_attn_scalar": self.query_scalar([hidden, heads, head_dim])?,
                "rope_local_base_freq": rope::of_windows(*self)?,
            }),
            Architecture::Deepseek2 => self.latent(heads)?,
            Architecture::Phi3 => {
                let original = self.gguf.count(&self.key(rope::ORIGINAL))?;
                let mut own = json!({ "sliding_window": window });
                if let Some(original) = original {
                    own["original_max_position_embeddings"] = original.into();
                }
                own
            }
            Architecture::Qwen2 | Architecture::GptOss | Architecture::Gpt2 => json!({}),
        };
        extend(fields, own);
        extend(fields, self.between(window)?);
        extend(fields, self.experts()?);
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
            (Architecture::Qwen3Moe, _) => "qwen3_moe",
            (Architecture::Qwen35, _) => "qwen3_5_text",
            (Architecture::Qwen35Moe, _) => "qwen3_5_moe_text",
            (Architecture::Gemma3, _) => "gemma3_text",
            (Architecture::GptOss, _) => "gpt_oss",
            (Architecture::Deepseek2, _) => "glm4_moe_lite",
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
        if self.architecture != Architecture::Gemma3 {
            self.check_scale(head_dim)?;
        }
        Ok(head_dim)
    }

    /// Refuses a scale of logits other than that of heads of `head_dim` elements.
    fn check_scale(&self, head_dim: u32) -> Result<(), ModelError> {
        let usual = f64::from(head_dim).sqrt().recip();
        match self.scale()? {
            Some(scale) if (scale - usual).abs() > 1e-6 * usual => {
                let what = format!("{scale}: only 1 / sqrt({head_dim}) runs");
                Err(self.beyond("attention.scale", &what))
            }
            _ => Ok(()),
        }
    }

    /// The scale of logits, if it is not the usual one, for which zero stands.
    fn scale(&self) -> Result<Option<f64>, ModelError> {
        let scale = self.float("attention.scale")?;
        Ok(scale.filter(|scale| *scale != 0.0))
    }

    /// `query_pre_attn_scalar` of Gemma 3: logits are divided by its root.
    ///
    /// Conversions do not write it. As llama.cpp, which knows models by their number of layers: the length
    /// of heads or, in the model of 27B parameters, the hidden size by the number of heads. The key that
    /// other architectures have for the scale counts if it is there.
    fn query_scalar(&self, [hidden, heads, head_dim]: [u32; 3]) -> Result<f64, ModelError> {
        const LAYERS_OF_27B: u32 = 62;
        match self.scale()? {
            None if self.layers()? == LAYERS_OF_27B => Ok((hidden / heads).into()),
            None => Ok(head_dim.into()),
            Some(scale) if scale > 0.0 && scale.powi(-2).is_finite() => Ok(scale.powi(-2)),
            Some(scale) => {
                let what = format!("{scale}, expected a number above 0; convert the model again");
                Err(self.beyond("attention.scale", &what))
            }
        }
    }

    /// The bound of a soft cap; zero stands for none.
    fn softcap(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let cap = self.float(name)?;
        Ok(cap.filter(|cap| *cap != 0.0))
    }

    /// A value for each layer, where a file lists bools.
    fn each_layer<T: Copy>(
        &self,
        name: &str,
        [no, yes]: [T; 2],
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(flags) = self.gguf.flags(&self.key(name))? else {
            return Ok(None);
        };
        let layers = self.layers()? as usize;
        if flags.len() < layers {
            let what = format!("given for {} layers of {layers}", flags.len());
            return Err(self.beyond(name, &what));
        }
        let flags = flags.into_iter().take(layers);
        Ok(Some(
            flags.map(|flag| if flag { yes } else { no }).collect(),
        ))
    }
}

/// Adds the entries of a JSON object.
fn extend(fields: &mut Map<String, serde_json::Value>, more: serde_json::Value) {
    if let serde_json::Value::Object(more) = more {
        fields.extend(more);
    }
}

/// Matrices that conversions store as F32 whatever the others are; so they do those of biases.
const ALWAYS_F32: [&str; 4] = [
    ".ffn_gate_inp.weight",
    ".ffn_gate_inp_shexp.weight",
    ".ssm_conv1d.weight",
    "position_embd.weight",
];

/// The float type of most bytes of matrices; of a file whose matrices are all packed, f16, in which
/// blocks have their scales.
fn dtype(gguf: &Gguf) -> &'static str {
    let is_matrix = |one: &Tensor| {
        let always = ALWAYS_F32.iter().any(|end| one.name.ends_with(end));
        one.shape.len() > 1 && one.name.ends_with(".weight") && !always
    };
    let bytes = |kind: GgmlType| -> usize {
        let matrices = gguf.tensors().iter();
        let matrices = matrices.filter(|one| one.kind == kind && is_matrix(one));
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
