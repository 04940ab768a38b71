//! Hugging Face `config.json` → [`ModelConfig`], and which of its layers a pattern replaces.
//!
//! In:  the text of a config, in the spelling of transformers 5.0 or of earlier versions
//! (`torch_dtype`, `rope_theta`, `rope_scaling`), at the top level or under `text_config`.
//! Out: a [`ModelConfig`] that upholds its invariants, with head sizes that kernels take:
//! multiples of 8, at most 576.
//!
//! An absent field has the default that transformers gives it; an absent `dtype`, for which
//! transformers has no default, means float32. [`read`] reads the fields of attention, [`sizes`]
//! the others that running a model needs, [`expert_weights`] and [`linear_weights`] how weights are
//! stored. All remaining fields are ignored.

mod error;
mod experts;
mod fields;
mod layers;
mod packing;
mod rope;
mod sizes;
mod swapped;
#[cfg(test)]
mod tests;

pub use error::ConfigError;
pub use packing::{StoredWeights, expert_weights, linear_weights, stored};
pub use sizes::{linear, sizes};
pub use swapped::swapped;

use crate::family::{self, Attention, Description, Layer, OfBiases};
use butterfly_ir::Dtype;
use butterfly_ir::model::{AttentionShape, Biases, Form, LayerKind, ModelConfig};
use fields::{Fields, quote};
use serde_json::Value;

const DTYPES: &str = "float32, float16 or bfloat16";
const MAX_LAYERS: u32 = 4096;
const MAX_HEADS: u32 = 1 << 16;
const MAX_HEAD_DIM: u64 = 576;

/// Reads the attention of a model from the text of its config; `file` names it in messages.
///
/// # Errors
/// [`ConfigError`] for the first field that is missing, wrong or not supported.
pub fn read(file: &str, json: &str) -> Result<ModelConfig, ConfigError> {
    let value = parse(file, json)?;
    let (config, top) = text_model(file, &value)?;
    let family = family(&config, &top)?;
    let config = config.with_defaults(family.defaults);
    let dtype = dtype(&config, &top)?;
    match family.layer {
        Layer::Gpt2 => gpt2(&config, family, dtype),
        Layer::Gated => gated(&config, family, dtype),
    }
}

fn parse(file: &str, json: &str) -> Result<Value, ConfigError> {
    serde_json::from_str(json).map_err(|error| syntax(file, &error))
}

/// The fields of the text model, and those at the top level of the file.
fn text_model<'a>(
    file: &'a str,
    value: &'a Value,
) -> Result<(Fields<'a>, Fields<'a>), ConfigError> {
    let Value::Object(object) = value else {
        return Err(ConfigError::NotAnObject {
            file: file.to_string(),
            given: quote(value),
        });
    };
    let top = Fields::new(file, "", object);
    let config = match top.object("text_config")? {
        Some(inner) => Fields::new(file, "text_config.", inner),
        None => top,
    };
    Ok((config, top))
}

fn syntax(file: &str, error: &serde_json::Error) -> ConfigError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let place = format!(" at line {line} column {column}");
    ConfigError::Syntax {
        file: file.to_string(),
        line,
        column,
        message: text.strip_suffix(&place).unwrap_or(&text).to_string(),
    }
}

fn family(config: &Fields<'_>, top: &Fields<'_>) -> Result<&'static Description, ConfigError> {
    let holder = match config.get("model_type") {
        Some(_) => config,
        None => top,
    };
    let mut known: Vec<&str> = family::ALL
        .iter()
        .flat_map(|one| one.model_types.iter().copied())
        .collect();
    let last = known.pop().unwrap_or_default();
    let expected = format!("one of {} or {last}", known.join(", "));
    let Some(given) = holder.text("model_type", &expected)? else {
        return Err(config.missing("model_type", &expected));
    };
    let named = |one: &&&Description| one.model_types.contains(&given);
    match family::ALL.iter().find(named) {
        Some(family) => Ok(family),
        None => Err(holder.unsupported("model_type", &Value::from(given), &expected)),
    }
}

/// `dtype` or `torch_dtype`; the text model's fields take precedence over the top level's.
fn dtype(config: &Fields<'_>, top: &Fields<'_>) -> Result<Dtype, ConfigError> {
    for holder in [config, top] {
        for name in ["dtype", "torch_dtype"] {
            match holder.text(name, DTYPES)? {
                None => {}
                Some("float32") => return Ok(Dtype::F32),
                Some("float16") => return Ok(Dtype::F16),
                Some("bfloat16") => return Ok(Dtype::Bf16),
                Some(other) => return Err(holder.bad(name, &Value::from(other), DTYPES)),
            }
        }
    }
    Ok(Dtype::F32)
}

fn gpt2(
    config: &Fields<'_>,
    family: &Description,
    dtype: Dtype,
) -> Result<ModelConfig, ConfigError> {
    for (name, usual) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
    ] {
        if config.flag(name, usual)? != usual {
            return Err(config.unsupported(name, &Value::from(!usual), &usual.to_string()));
        }
    }
    let heads = head_count(config, "n_head")?;
    let head_dim = derived_head_dim(config, "n_embd", "n_head", heads)?;
    Ok(ModelConfig {
        family: family.family,
        dtype,
        layers: vec![LayerKind::FullAttention; layer_count(config, "n_layer")? as usize],
        attention: AttentionShape::Gqa {
            q_heads: heads,
            kv_heads: heads,
            head_dim: checked_head_dim(config, "n_embd / n_head", head_dim.into())?,
        },
        rope: None,
        window_rope: None,
        logit_scale: None,
        softcap: None,
        sinks: false,
        qk_norm: false,
        norm_eps: config
            .positive("layer_norm_epsilon")?
            .unwrap_or(family.norm_eps),
        output_gate: false,
        biases: biases(config, &family.attention)?,
        max_positions: config.required_count("n_positions")?,
    })
}

/// Every family with rotary position embedding.
fn gated(
    config: &Fields<'_>,
    family: &Description,
    dtype: Dtype,
) -> Result<ModelConfig, ConfigError> {
    let layers = layers::read(config, family)?;
    if config.flag("use_bidirectional_attention", false)? {
        let given = Value::from(true);
        return Err(config.unsupported("use_bidirectional_attention", &given, "false"));
    }
    let attention = match family.attention.latent {
        true => mla(config)?,
        false => gqa(config, &family.attention)?,
    };
    let rotated = match attention {
        AttentionShape::Gqa { head_dim, .. } => head_dim,
        AttentionShape::Mla { rope_dim, .. } => rope_dim,
    };
    Ok(ModelConfig {
        family: family.family,
        dtype,
        layers,
        attention,
        rope: Some(rope::read(
            config,
            &family.attention,
            rotated,
            "full_attention",
        )?),
        window_rope: match family.attention.window_theta {
            Some(_) => Some(rope::read(
                config,
                &family.attention,
                rotated,
                "sliding_attention",
            )?),
            None => None,
        },
        logit_scale: match family.attention.query_scalar {
            Some(usual) => {
                let scalar = config.positive("query_pre_attn_scalar")?.unwrap_or(usual);
                Some(1.0 / scalar.sqrt())
            }
            None => match attention {
                AttentionShape::Gqa { .. } => None,
                AttentionShape::Mla { .. } => {
                    let usual = attention.kernel_shape(Form::Expanded).scale;
                    rope::latent_factor(config)?.map(|factor| factor * usual)
                }
            },
        },
        softcap: config.positive("attn_logit_softcapping")?,
        sinks: family.attention.sinks,
        qk_norm: family.attention.qk_norm,
        norm_eps: config.positive("rms_norm_eps")?.unwrap_or(family.norm_eps),
        output_gate: family.attention.output_gate,
        biases: biases(config, &family.attention)?,
        max_positions: config.required_count("max_position_embeddings")?,
    })
}

fn gqa(config: &Fields<'_>, family: &Attention) -> Result<AttentionShape, ConfigError> {
    // The family's default applies where a field is absent, but not where it is null.
    let class = |name, default: Option<u32>| default.filter(|_| !config.has(name));
    let q_heads = head_count(config, "num_attention_heads")?;
    let kv_heads = config
        .count("num_key_value_heads")?
        .or(class("num_key_value_heads", family.kv_heads))
        .unwrap_or(q_heads);
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(ConfigError::Heads {
            file: config.file.to_string(),
            field: config.path("num_attention_heads"),
            q_heads,
            kv_field: config.path("num_key_value_heads"),
            kv_heads,
        });
    }
    let given = config
        .count("head_dim")?
        .or(class("head_dim", family.head_dim));
    let (formula, head_dim) = match given {
        Some(head_dim) => ("head_dim", head_dim),
        None => (
            "hidden_size / num_attention_heads",
            derived_head_dim(config, "hidden_size", "num_attention_heads", q_heads)?,
        ),
    };
    Ok(AttentionShape::Gqa {
        q_heads,
        kv_heads,
        head_dim: checked_head_dim(config, formula, head_dim.into())?,
    })
}

fn mla(config: &Fields<'_>) -> Result<AttentionShape, ConfigError> {
    let q_lora_rank = match config.has("q_lora_rank") {
        true => config.count("q_lora_rank")?,
        false => Some(768),
    };
    let kv_lora_rank = config.count_or("kv_lora_rank", 512)?;
    let nope_dim = config.count_or("qk_nope_head_dim", 192)?;
    let rope_dim = config.count_or("qk_rope_head_dim", 64)?;
    let v_dim = config.count_or("v_head_dim", 256)?;
    let q_heads = head_count(config, "num_attention_heads")?;
    let kv_heads = config.count("num_key_value_heads")?;
    if let Some(kv_heads) = kv_heads.filter(|heads| *heads != q_heads) {
        let expected =
            format!("{q_heads}, as `num_attention_heads`: latent attention has no groups");
        return Err(config.unsupported("num_key_value_heads", &Value::from(kv_heads), &expected));
    }
    if q_lora_rank.is_none() && config.flag("attention_bias", false)? {
        let expected = "false where `q_lora_rank` is null: q has no bias then, but k and v do";
        return Err(config.unsupported("attention_bias", &Value::from(true), expected));
    }
    let rope = u64::from(rope_dim);
    for (formula, size) in [
        (
            "qk_nope_head_dim + qk_rope_head_dim",
            u64::from(nope_dim) + rope,
        ),
        ("v_head_dim", v_dim.into()),
        ("kv_lora_rank", kv_lora_rank.into()),
        (
            "kv_lora_rank + qk_rope_head_dim",
            u64::from(kv_lora_rank) + rope,
        ),
    ] {
        checked_head_dim(config, formula, size)?;
    }
    Ok(AttentionShape::Mla {
        q_heads,
        q_lora_rank,
        kv_lora_rank,
        nope_dim,
        rope_dim,
        v_dim,
    })
}

/// The projections that have biases. A family whose projections have some whatever the config says
/// may have a field about them: the weights are what counts then.
fn biases(config: &Fields<'_>, family: &Attention) -> Result<Biases, ConfigError> {
    let given = config.flag("attention_bias", false)?;
    match family.biases {
        OfBiases::Field if given => Ok(Biases::All),
        OfBiases::Field => Ok(Biases::None),
        OfBiases::Always(Biases::None) if given => {
            Err(config.unsupported("attention_bias", &Value::from(true), "false"))
        }
        OfBiases::Always(biases) => Ok(biases),
    }
}

fn layer_count(config: &Fields<'_>, name: &str) -> Result<u32, ConfigError> {
    at_most(
        MAX_LAYERS,
        "layers",
        config,
        name,
        config.required_count(name)?,
    )
}

fn head_count(config: &Fields<'_>, name: &str) -> Result<u32, ConfigError> {
    at_most(
        MAX_HEADS,
        "heads",
        config,
        name,
        config.required_count(name)?,
    )
}

/// Refuses a number above `most`, so that products of sizes cannot overflow.
fn at_most(
    most: u32,
    what: &str,
    config: &Fields<'_>,
    name: &str,
    count: u32,
) -> Result<u32, ConfigError> {
    match count <= most {
        true => Ok(count),
        false => {
            let expected = format!("at most {most} {what}");
            Err(config.unsupported(name, &Value::from(count), &expected))
        }
    }
}

fn derived_head_dim(
    config: &Fields<'_>,
    hidden_name: &str,
    heads_name: &str,
    heads: u32,
) -> Result<u32, ConfigError> {
    let hidden = config.required_count(hidden_name)?;
    match hidden.is_multiple_of(heads) {
        true => Ok(hidden / heads),
        false => Err(ConfigError::HiddenSize {
            file: config.file.to_string(),
            field: config.path(hidden_name),
            hidden,
            heads_field: config.path(heads_name),
            heads,
        }),
    }
}

/// `formula` is the field that gives the size, or several joined by `/` or `+`.
fn checked_head_dim(config: &Fields<'_>, formula: &str, size: u64) -> Result<u32, ConfigError> {
    if size.is_multiple_of(8) && size <= MAX_HEAD_DIM {
        return Ok(size as u32);
    }
    let path = |word| match word {
        "/" | "+" => word.to_string(),
        field => config.path(field),
    };
    let field: Vec<String> = formula.split(' ').map(path).collect();
    Err(ConfigError::HeadDim {
        file: config.file.to_string(),
        field: field.join(" "),
        given: size,
    })
}
