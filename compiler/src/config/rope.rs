//! Rotary position embedding from `rope_parameters`, or from the older `rope_theta`,
//! `rope_scaling` and `partial_rotary_factor` beside it.

use super::{ConfigError, fields::Fields};
use crate::family::Attention;
use butterfly_ir::model::{Rope, RopeScaling};
use serde_json::{Map, Value};

const KINDS: &str = "default, linear, llama3 or yarn";
const LONG_KINDS: &str = "default, linear, llama3 or longrope";

/// Reads the rotary embedding of layers of a kind, by its name in `layer_types`; `head_dim` is the number of elements
/// of a head that may be rotated.
pub(super) fn read(
    config: &Fields<'_>,
    family: &Attention,
    head_dim: u32,
    kind: &str,
) -> Result<Rope, ConfigError> {
    let empty = Map::new();
    let name = match config.get("rope_scaling") {
        Some(_) => "rope_scaling",
        None => "rope_parameters",
    };
    let object = config.object(name)?.unwrap_or(&empty);
    let prefix = config.path(&format!("{name}."));
    let all = Fields::new(config.file, &prefix, object);
    let inner = format!("{prefix}{kind}.");
    // Layers of each kind may have a rotation of their own.
    let own = family.window_theta.is_some() && object.values().any(Value::is_object);
    let rope = match own {
        true => Fields::new(config.file, &inner, all.object(kind)?.unwrap_or(&empty)),
        false => all,
    };
    let windows = kind == "sliding_attention";
    if let Some((other, value)) = object.iter().find(|(_, value)| value.is_object())
        && !own
    {
        return Err(rope.unsupported(other, value, "one rotation for all layers"));
    }

    let older = |field: &str| -> Result<Option<f64>, ConfigError> {
        match rope.positive(field)? {
            None => config.positive(field),
            given => Ok(given),
        }
    };
    let theta = match (family.window_theta, windows) {
        (Some(usual), true) => match rope.positive("rope_theta")?.filter(|_| own) {
            Some(theta) => theta,
            None => config.positive("rope_local_base_freq")?.unwrap_or(usual),
        },
        _ => older("rope_theta")?.unwrap_or(family.theta),
    };
    let part = older("partial_rotary_factor")?;
    let interleaved = match family.interleaved {
        Some(usual) => config.flag("rope_interleave", usual)?,
        None => false,
    };
    let part = part.unwrap_or(family.rotated);
    let dims = f64::from(head_dim) * part;
    let whole = dims as u32;
    if dims > f64::from(head_dim) || whole == 0 || !whole.is_multiple_of(2) {
        let holder = match rope.get("partial_rotary_factor") {
            Some(_) => &rope,
            None => config,
        };
        let given = Value::from(part);
        let expected =
            format!("a factor of at most 1 that rotates an even number of the {head_dim} elements");
        return Err(holder.bad("partial_rotary_factor", &given, &expected));
    }
    Ok(Rope {
        theta,
        dims: whole,
        interleaved,
        // Without rotations of their own, what is scaled is that of layers without a window.
        scaling: match (windows && !own, family.yarn.filter(|_| object.is_empty())) {
            (true, _) => RopeScaling::Default,
            (_, Some((factor, original))) => RopeScaling::Yarn {
                factor,
                range: range(theta, whole, original, [32.0, 1.0], false),
                amplitude: magnitude(factor, 1.0),
            },
            (false, None) => scaling(config, &rope, family, theta, whole)?,
        },
    })
}

fn scaling(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    family: &Attention,
    theta: f64,
    dims: u32,
) -> Result<RopeScaling, ConfigError> {
    let field = match rope.get("rope_type") {
        None if rope.has("type") => "type",
        _ => "rope_type",
    };
    let kinds = match family.long_rope {
        None => KINDS,
        Some(_) => LONG_KINDS,
    };
    match (rope.text(field, kinds)?, family.long_rope) {
        // The other two names are those of earlier versions.
        (Some("longrope" | "su" | "yarn"), Some(usual)) => long(config, rope, usual, dims),
        (Some("yarn"), None) => yarn(config, rope, theta, dims),
        (given, _) => plain(rope, field, given, kinds),
    }
}

fn plain(
    rope: &Fields<'_>,
    field: &str,
    given: Option<&str>,
    kinds: &str,
) -> Result<RopeScaling, ConfigError> {
    match given {
        None | Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: rope.required_positive("factor")?,
        }),
        Some("llama3") => {
            let low = rope.required_positive("low_freq_factor")?;
            let high = rope.required_positive("high_freq_factor")?;
            if high <= low {
                let expected = format!("a number above `low_freq_factor`, which is {low}");
                return Err(rope.bad("high_freq_factor", &Value::from(high), &expected));
            }
            Ok(RopeScaling::Llama3 {
                factor: rope.required_positive("factor")?,
                low,
                high,
                original_max: rope.required_count("original_max_position_embeddings")?,
            })
        }
        Some(other) => Err(rope.unsupported(field, &Value::from(other), kinds)),
    }
}

/// The scaling `longrope`; `usual` is the default of `original_max_position_embeddings`.
fn long(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    usual: u32,
    dims: u32,
) -> Result<RopeScaling, ConfigError> {
    let pairs = (dims / 2) as usize;
    let name = "original_max_position_embeddings";
    // As in transformers, the field beside the rotation counts, not one in it.
    let original_max = config.count_or(name, usual)?;
    if original_max == 1 {
        return Err(config.bad(name, &Value::from(1), "at least 2 tokens"));
    }
    let factor = match rope.positive("factor")? {
        Some(factor) => factor,
        None => {
            let most = config.required_count("max_position_embeddings")?;
            f64::from(most) / f64::from(original_max)
        }
    };
    let amplitude = match rope.positive("attention_factor")? {
        Some(amplitude) => amplitude,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / f64::from(original_max).ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope {
        short: rope.positives("short_factor", pairs)?,
        long: rope.positives("long_factor", pairs)?,
        original_max,
        amplitude,
    })
}

/// The scaling `yarn`, with what transformers takes for absent fields.
fn yarn(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    theta: f64,
    dims: u32,
) -> Result<RopeScaling, ConfigError> {
    let name = "original_max_position_embeddings";
    let most = config.required_count("max_position_embeddings")?;
    let original = config.count(name)?.or(rope.count(name)?).unwrap_or(most);
    let factor = match rope.has("factor") && rope.get("factor").is_none() {
        true => f64::from(most) / f64::from(original),
        false => rope.required_positive("factor")?,
    };
    let amplitude = match rope.positive("attention_factor")? {
        Some(amplitude) => amplitude,
        None => match (rope.positive("mscale")?, rope.positive("mscale_all_dim")?) {
            (Some(own), Some(all)) => magnitude(factor, own) / magnitude(factor, all),
            _ => magnitude(factor, 1.0),
        },
    };
    let fast = rope.positive("beta_fast")?.unwrap_or(32.0);
    let slow = rope.positive("beta_slow")?.unwrap_or(1.0);
    let truncate = rope.flag("truncate", true)?;
    Ok(RopeScaling::Yarn {
        factor,
        range: range(theta, dims, original, [fast, slow], truncate),
        amplitude,
    })
}

/// What a rotation that is scaled multiplies the logits of latent attention with, beside what yarn does to
/// queries and keys; `None` if nothing (`yarn_apply_mscale` in transformers).
pub(super) fn latent_factor(config: &Fields<'_>) -> Result<Option<f64>, ConfigError> {
    let name = match config.get("rope_scaling") {
        Some(_) => "rope_scaling",
        None => "rope_parameters",
    };
    let Some(object) = config.object(name)? else {
        return Ok(None);
    };
    let prefix = config.path(&format!("{name}."));
    let rope = Fields::new(config.file, &prefix, object);
    let all = object.get("mscale_all_dim").and_then(Value::as_f64);
    let scaled = ["rope_type", "type"].iter().any(|field| {
        let kind = object.get(*field).and_then(Value::as_str);
        kind.is_some_and(|kind| kind != "default")
    });
    if !scaled || all.is_none_or(|all| all == 0.0) {
        return Ok(None);
    }
    let of = rope.required_positive("mscale_all_dim")?;
    let factor = magnitude(rope.required_positive("factor")?, of);
    Ok(Some(factor * factor))
}

/// What yarn multiplies queries and keys with.
fn magnitude(factor: f64, of: f64) -> f64 {
    match factor > 1.0 {
        true => 0.1 * of * factor.ln() + 1.0,
        false => 1.0,
    }
}

/// The pairs of dimensions that turn `turns` times, first more often and then less, within the original length; between
/// them yarn goes over from one frequency to the other.
fn range(theta: f64, dims: u32, original: u32, turns: [f64; 2], truncate: bool) -> [f64; 2] {
    let mut range = turns.map(|turns| {
        let span = f64::from(original) / (turns * std::f64::consts::TAU);
        f64::from(dims) * span.ln() / (2.0 * theta.ln())
    });
    if truncate {
        range = [range[0].floor(), range[1].ceil()];
    }
    let mut range = [range[0].max(0.0), range[1].min(f64::from(dims - 1))];
    if range[0] == range[1] {
        range[1] += 0.001;
    }
    range
}
