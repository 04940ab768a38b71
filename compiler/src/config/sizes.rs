//! The sizes of the rest of a model: everything but softmax attention.

use super::fields::Fields;
use super::{ConfigError, MAX_HEADS, at_most, experts, parse, text_model};
use crate::family::{self, Description, Layer, OfGate};
use butterfly_ir::model::{
    Family, FeedForwardGate, LayerKind, LinearShape, ModelConfig, ModelSizes,
};
use serde_json::Value;

/// Reads the sizes that running a model needs beyond its attention, which is `model`.
///
/// `file` names the config in messages, `json` is its text.
///
/// # Errors
/// [`ConfigError`] for the first field that is missing, wrong or not supported.
pub fn sizes(file: &str, json: &str, model: &ModelConfig) -> Result<ModelSizes, ConfigError> {
    let value = parse(file, json)?;
    let (config, top) = text_model(file, &value)?;
    let family = family::of(model.family);
    let config = &config.with_defaults(family.defaults);
    let ends = match ends(config)? {
        ends if ends.is_empty() => self::ends(&top)?,
        ends => ends,
    };
    if family.layer == Layer::Gpt2 {
        activation(config, "activation_function", "gelu_new")?;
        let hidden = config.required_count("n_embd")?;
        return Ok(ModelSizes {
            hidden,
            intermediate: config.count_or(family.intermediate, hidden.saturating_mul(4))?,
            vocabulary: config.required_count("vocab_size")?,
            tied: config.flag("tie_word_embeddings", family.tied)?,
            linear: None,
            gate: FeedForwardGate::Gelu,
            logit_softcap: None,
            experts: None,
            ends,
        });
    }
    let gate = gate(config, family)?;
    for name in ["mlp_bias"] {
        if config.flag(name, false)? {
            return Err(config.unsupported(name, &Value::from(true), "false"));
        }
    }
    let hybrid = model.layers.contains(&LayerKind::LinearAttention);
    let tied = match config.get("tie_word_embeddings") {
        Some(_) => config,
        None => &top,
    };
    let experts = match &family.experts {
        Some(of) => Some(experts::read(config, of, model.layers.len())?),
        None => None,
    };
    // Without dense layers no field need say how large they are.
    let intermediate = match &experts {
        Some(experts) if experts.dense.is_empty() => experts.intermediate,
        _ => config.required_count(family.intermediate)?,
    };
    Ok(ModelSizes {
        hidden: config.required_count("hidden_size")?,
        intermediate,
        vocabulary: config.required_count("vocab_size")?,
        tied: tied.flag("tie_word_embeddings", family.tied)?,
        linear: match hybrid {
            true => Some(linear_shape(config)?),
            false => None,
        },
        gate,
        logit_softcap: config.positive("final_logit_softcapping")?,
        experts,
        ends,
    })
}

/// Reads the heads of linear attention from the config of `model`; `None` for a model without it. Fields that its
/// attention does not need, as the sizes of feed-forward layers, may be missing.
///
/// `file` names the config in messages, `json` is its text.
///
/// # Errors
/// [`ConfigError`] for the first field that is wrong or not supported.
pub fn linear(
    file: &str,
    json: &str,
    model: &ModelConfig,
) -> Result<Option<LinearShape>, ConfigError> {
    if !model.layers.contains(&LayerKind::LinearAttention) {
        return Ok(None);
    }
    let value = parse(file, json)?;
    let (config, _) = text_model(file, &value)?;
    let config = config.with_defaults(family::of(model.family).defaults);
    linear_shape(&config).map(Some)
}

/// The gate of feed-forward layers.
fn gate(config: &Fields<'_>, family: &Description) -> Result<FeedForwardGate, ConfigError> {
    if family.family == Family::Gemma3 {
        activation(config, "hidden_activation", "gelu_pytorch_tanh")?;
        return Ok(FeedForwardGate::Gelu);
    }
    activation(config, "hidden_act", "silu")?;
    match family.experts.map(|experts| experts.gate) {
        Some(OfGate::Clamped { alpha, limit }) => Ok(FeedForwardGate::Clamped {
            alpha: config.positive("swiglu_alpha")?.unwrap_or(alpha),
            limit: config.positive("swiglu_limit")?.unwrap_or(limit),
        }),
        Some(OfGate::Silu) | None => Ok(FeedForwardGate::Silu),
    }
}

fn activation(config: &Fields<'_>, name: &str, supported: &str) -> Result<(), ConfigError> {
    match config.text(name, supported)? {
        None => Ok(()),
        Some(given) if given == supported => Ok(()),
        Some(other) => Err(config.unsupported(name, &Value::from(other), supported)),
    }
}

fn linear_shape(config: &Fields<'_>) -> Result<LinearShape, ConfigError> {
    let heads = |name, default| {
        let count = config.count_or(name, default)?;
        at_most(MAX_HEADS, "heads", config, name, count)
    };
    let shape = LinearShape {
        k_heads: heads("linear_num_key_heads", 16)?,
        v_heads: heads("linear_num_value_heads", 32)?,
        k_dim: config.count_or("linear_key_head_dim", 128)?,
        v_dim: config.count_or("linear_value_head_dim", 128)?,
        taps: config.count_or("linear_conv_kernel_dim", 4)?,
        tiled: false,
    };
    let bad = |name, given: u32, expected: &str| config.bad(name, &Value::from(given), expected);
    if !shape.v_heads.is_multiple_of(shape.k_heads) {
        let expected = format!("a multiple of `linear_num_key_heads`, {}", shape.k_heads);
        return Err(bad("linear_num_value_heads", shape.v_heads, &expected));
    }
    for (name, given) in [
        ("linear_key_head_dim", shape.k_dim),
        ("linear_value_head_dim", shape.v_dim),
    ] {
        if given > 256 || !given.is_multiple_of(8) {
            return Err(bad(name, given, "a multiple of 8, at most 256"));
        }
    }
    if !(2..=16).contains(&shape.taps) {
        return Err(bad("linear_conv_kernel_dim", shape.taps, "2 to 16 taps"));
    }
    Ok(shape)
}

/// `eos_token_id`, a number or a list of them.
fn ends(config: &Fields<'_>) -> Result<Vec<u32>, ConfigError> {
    let expected = "a token, or a list of tokens";
    let Some(value) = config.get("eos_token_id") else {
        return Ok(Vec::new());
    };
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let token = |token: &Value| token.as_u64().and_then(|token| u32::try_from(token).ok());
    let tokens: Option<Vec<u32>> = list.iter().map(token).collect();
    tokens.ok_or_else(|| config.bad("eos_token_id", value, expected))
}
