//! How weights are stored, as far as a config tells.

use super::fields::Fields;
use super::{ConfigError, parse, sizes, text_model};
use crate::family;
use butterfly_ir::model::{AttentionShape, ModelConfig, Part};
use butterfly_ir::{Dtype, GroupedFormat};
use serde_json::Value;
use std::collections::BTreeMap;

/// Weights of a model that are stored alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWeights {
    /// Elements of their rows, each length at least once.
    pub columns: Vec<u32>,
    /// The formats in which they may be stored, of those for which there are kernels: a config does not say of which type
    /// the factors of 8-bit floats are.
    pub formats: Vec<GroupedFormat>,
}

/// Reads the packed weights of linear layers from the config of `model`. They have no formats where they are dense; `None`
/// for a config from which not all sizes of a model can be read.
///
/// `file` names the config in messages, `json` is its text.
pub fn linear_weights(file: &str, json: &str, model: &ModelConfig) -> Option<StoredWeights> {
    let sizes = sizes(file, json, model).ok()?;
    let value = parse(file, json).ok()?;
    let (config, top) = text_model(file, &value).ok()?;
    let mut formats = formats(&config, &top, model.dtype);
    // Models with experts in MXFP4 keep their linear layers as they were.
    formats.retain(|format| match format {
        GroupedFormat::Affine4 { .. } | GroupedFormat::Float8 { .. } => true,
        GroupedFormat::Dense | GroupedFormat::Microscaled => false,
    });
    let heads = |count: u32, dim: u32| Some(count.saturating_mul(dim));
    let [attended, latent] = match model.attention {
        AttentionShape::Gqa {
            q_heads, head_dim, ..
        } => [heads(q_heads, head_dim), None],
        AttentionShape::Mla {
            q_heads,
            q_lora_rank,
            v_dim,
            ..
        } => [heads(q_heads, v_dim), q_lora_rank],
    };
    let linear = sizes.linear.map(|shape| heads(shape.v_heads, shape.v_dim));
    let shared = sizes.experts.and_then(|experts| experts.shared);
    let columns = [
        Some(sizes.hidden),
        Some(sizes.intermediate),
        shared.map(|expert| expert.intermediate),
        attended,
        latent,
        linear.flatten(),
    ];
    Some(StoredWeights {
        columns: columns.into_iter().flatten().collect(),
        formats,
    })
}

/// Reads the weights of experts from the config of `model`; `None` for a model without experts, and for a config that
/// does not say how large they are.
///
/// `file` names the config in messages, `json` is its text. Packings that are not known have no formats: whether such
/// a model can be run, its loader says.
///
/// # Errors
/// [`ConfigError`] for the first size that is wrong.
pub fn expert_weights(
    file: &str,
    json: &str,
    model: &ModelConfig,
) -> Result<Option<StoredWeights>, ConfigError> {
    let family = family::of(model.family);
    let Some(of) = &family.experts else {
        return Ok(None);
    };
    let value = parse(file, json)?;
    let (config, top) = text_model(file, &value)?;
    let config = config.with_defaults(family.defaults);
    let hidden = match config.required_count("hidden_size") {
        Err(ConfigError::Missing { .. }) => return Ok(None),
        read => read?,
    };
    let (name, default) = of.intermediate;
    Ok(Some(StoredWeights {
        columns: vec![hidden, config.count_or(name, default)?],
        formats: formats(&config, &top, model.dtype),
    }))
}

/// Bytes of an element of the matrices of the parts of `model` that its config says are packed, scales included;
/// others have the model's own type. Checkpoints may differ in single tensors.
///
/// `file` names the config in messages, `json` is its text. Packings that are not known say nothing.
///
/// # Errors
/// [`ConfigError`] for a config that is not read.
pub fn stored(
    file: &str,
    json: &str,
    model: &ModelConfig,
) -> Result<BTreeMap<Part, f64>, ConfigError> {
    let value = parse(file, json)?;
    let (config, top) = text_model(file, &value)?;
    let all = |parts: &[Part], bytes: f64| -> BTreeMap<Part, f64> {
        parts.iter().map(|part| (*part, bytes)).collect()
    };
    let layers = [Part::Experts, Part::Projections];
    if let Some(settings) = top.get("quantization").filter(|value| value.is_object()) {
        let number = |name: &str| settings[name].as_f64().filter(|number| *number > 0.0);
        let (Some(bits), Some(group)) = (number("bits"), number("group_size")) else {
            return Ok(BTreeMap::new());
        };
        let scales = 2.0 * f64::from(model.dtype.bytes()) / group;
        let ends = [Part::Embedding, Part::OutputProjection];
        return Ok(all(&[ends, layers].concat(), bits / 8.0 + scales));
    }
    Ok(match method(&config, &top) {
        Some("mxfp4") => all(&layers[..1], 17.0 / 32.0),
        // A factor of a square of 128 rows and columns takes next to nothing.
        Some("fp8") => all(&layers, 1.0),
        Some(_) | None => BTreeMap::new(),
    })
}

/// The formats of `quantization` (MLX) or of `quantization_config` (transformers); dense weights without either.
fn formats(config: &Fields<'_>, top: &Fields<'_>, dtype: Dtype) -> Vec<GroupedFormat> {
    if let Some(settings) = top.get("quantization").filter(|value| value.is_object()) {
        return affine4(settings, dtype).into_iter().collect();
    }
    match method(config, top) {
        None => vec![GroupedFormat::Dense],
        Some("mxfp4") => vec![GroupedFormat::Microscaled],
        Some("fp8") => [Dtype::F32, Dtype::Bf16]
            .map(|scales| GroupedFormat::Float8 { scales })
            .to_vec(),
        Some(_) => Vec::new(),
    }
}

/// The packing that `quantization_config` names.
fn method<'a>(config: &Fields<'a>, top: &Fields<'a>) -> Option<&'a str> {
    // Multimodal models keep it beside the settings of their text model, or among them.
    let settings = [top, config].map(|part| part.get("quantization_config"));
    let mut settings = settings.into_iter().flatten();
    settings.find_map(|settings| settings["quant_method"].as_str())
}

/// MLX's integers of 4 bits, whose scales have the type that the weights had.
fn affine4(settings: &Value, scales: Dtype) -> Option<GroupedFormat> {
    let affine = match settings.get("mode") {
        None => true,
        Some(mode) => mode.as_str() == Some("affine"),
    };
    let group = match settings["group_size"].as_u64()? {
        32 => 32,
        64 => 64,
        128 => 128,
        _ => return None,
    };
    let four = settings["bits"].as_u64() == Some(4);
    (affine && four).then_some(GroupedFormat::Affine4 { group, scales })
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use serde_json::json;

    /// The weights of experts of a config of Qwen3-MoE with these fields more.
    fn weights(more: &Value) -> Option<StoredWeights> {
        let (text, model) = config(more);
        expert_weights("config.json", &text, &model).expect("sizes")
    }

    fn config(more: &Value) -> (String, ModelConfig) {
        let mut config = json!({
            "model_type": "qwen3_moe",
            "dtype": "bfloat16",
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "hidden_size": 256,
            "moe_intermediate_size": 128,
            "max_position_embeddings": 4096
        });
        let fields = config.as_object_mut().expect("an object");
        for (name, value) in more.as_object().expect("an object") {
            fields.insert(name.clone(), value.clone());
        }
        let text = config.to_string();
        let model = read("config.json", &text).expect("a model");
        (text, model)
    }

    #[test]
    fn formats_of_packings() {
        let formats = |more: Value| weights(&more).expect("experts").formats;
        let affine = |group| GroupedFormat::Affine4 {
            group,
            scales: Dtype::Bf16,
        };
        assert_eq!(formats(json!({})), [GroupedFormat::Dense]);
        let four = json!({"bits": 4, "group_size": 64});
        // mlx-lm writes both.
        let both = json!({"quantization": four, "quantization_config": four});
        assert_eq!(formats(both), [affine(64)]);
        let mode = json!({"quantization": {"bits": 4, "group_size": 32, "mode": "affine"}});
        assert_eq!(formats(mode), [affine(32)]);
        for none in [
            json!({"bits": 8, "group_size": 64}),
            json!({"bits": 4, "group_size": 16}),
            json!({"bits": 4, "group_size": 32, "mode": "mxfp4"}),
        ] {
            assert!(formats(json!({"quantization": none})).is_empty());
        }
        let method = |name: &str| json!({"quantization_config": {"quant_method": name}});
        assert_eq!(formats(method("mxfp4")), [GroupedFormat::Microscaled]);
        let float8 = [Dtype::F32, Dtype::Bf16].map(|scales| GroupedFormat::Float8 { scales });
        assert_eq!(formats(method("fp8")), float8);
        assert!(formats(method("awq")).is_empty());
    }

    #[test]
    fn sizes_of_rows() {
        let columns = |more: Value| weights(&more).map(|weights| weights.columns);
        assert_eq!(columns(json!({})), Some(vec![256, 128]));
        assert_eq!(
            columns(json!({"model_type": "qwen3", "head_dim": 64})),
            None
        );
    }

    /// Of all projections of a model: hidden vectors, feed-forward layers, attention.
    #[test]
    fn packed_weights_of_linear_layers() {
        let linear = |more: Value| {
            let (text, model) = config(&more);
            linear_weights("config.json", &text, &model)
        };
        let four = json!({"bits": 4, "group_size": 64});
        let dense = json!({"model_type": "qwen3", "head_dim": 128, "intermediate_size": 704, "vocab_size": 1000,
            "quantization": four});
        let format = GroupedFormat::Affine4 {
            group: 64,
            scales: Dtype::Bf16,
        };
        let want = StoredWeights {
            columns: vec![256, 704, 512],
            formats: vec![format],
        };
        assert_eq!(linear(dense), Some(want));
        let formats = |more: Value| linear(more).map(|weights| weights.formats.len());
        assert_eq!(formats(json!({"vocab_size": 1000})), Some(0));
        let method =
            |name: &str| json!({"vocab_size": 1000, "quantization_config": {"quant_method": name}});
        assert_eq!(formats(method("fp8")), Some(2));
        assert_eq!(formats(method("mxfp4")), Some(0));
        // How long its rows are is not known.
        assert_eq!(linear(json!({})), None);
    }
}
