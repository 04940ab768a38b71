//! Rotary position embedding: its metadata → `rope_parameters`.
//!
//! Scalings of all frequencies are keys, those with divisors of each frequency are tensors.

mod llama3;
mod yarn;

use super::Keys;
use crate::ModelError;
use crate::weights::architecture::Architecture;
use crate::weights::gguf::{GgmlType, decimal};
use llama3::{Llama3, near};
use serde_json::{Map, Value, json};

/// The tensor of Llama 3's divisors.
const DIVISORS: &str = "rope_freqs.weight";
/// The longest text before the model was trained on longer ones, in tokens.
pub(super) const ORIGINAL: &str = "rope.scaling.original_context_length";

/// The base of the frequencies of layers with a window, where these have another.
const OF_WINDOWS: &str = "rope.freq_base_swa";

/// How all frequencies are scaled, and by which factor.
enum Scaling {
    Linear(f64),
    Yarn(f64),
}

/// The rotary parameters of a model with heads of `head_dim` elements; in Gemma 3, of layers without a
/// window.
pub(super) fn parameters(keys: Keys<'_>, head_dim: u32) -> Result<Value, ModelError> {
    let gguf = keys.gguf;
    let theta = base(keys, "rope.freq_base")?;
    if keys.architecture == Architecture::GptOss
        && let Some(windows) = keys.float(OF_WINDOWS)?
        && windows != theta
    {
        let what = format!(
            "{windows}: of this architecture, only windows with the base of other layers, {theta}, run"
        );
        return Err(keys.beyond(OF_WINDOWS, &what));
    }
    let dims = match gguf.count(&keys.key("rope.dimension_count"))? {
        None => head_dim,
        Some(dims) if dims <= head_dim && (2..).contains(&dims) && dims.is_multiple_of(2) => dims,
        Some(dims) => {
            let what = format!("{dims}, expected an even number up to the head size, {head_dim}");
            return Err(keys.beyond("rope.dimension_count", &what));
        }
    };
    if keys.architecture == Architecture::Llama && dims != head_dim {
        let what = format!(
            "{dims}: of this architecture, only heads that are rotated whole, {head_dim}, run"
        );
        return Err(keys.beyond("rope.dimension_count", &what));
    }
    let mut parameters = Map::new();
    let mut set = |name: &str, value: Value| {
        parameters.insert(name.to_string(), value);
    };
    set("rope_theta", theta.into());
    if dims != head_dim {
        set("partial_rotary_factor", share(dims, head_dim).into());
    }
    if let Some(long) = long(keys, dims)? {
        super::extend(&mut parameters, long);
        return Ok(parameters.into());
    }
    let scaling = scaling(keys)?;
    let divisors = divisors(keys, DIVISORS, dims)?;
    let divisors = divisors.filter(|all| all.iter().any(|x| !near(*x, 1.0)));
    let scaling = match (scaling, divisors) {
        (None, None) => json!({ "rope_type": "default" }),
        (Some(Scaling::Linear(factor)), None) => {
            json!({ "rope_type": "linear", "factor": factor })
        }
        (Some(Scaling::Yarn(factor)), None) => yarn::fields(keys, factor)?,
        (None, Some(divisors)) => {
            let original = gguf.count(&keys.key(ORIGINAL))?;
            let found = Llama3::find(&divisors, theta, original).ok_or_else(|| {
                gguf.wrong(format!(
                    "tensor `{DIVISORS}` has divisors of rotary frequencies that are not those of Llama 3; they do not run"
                ))
            })?;
            json!({
                "rope_type": "llama3",
                "factor": found.factor,
                "low_freq_factor": found.low,
                "high_freq_factor": found.high,
                "original_max_position_embeddings": found.original,
            })
        }
        (Some(_), Some(_)) => {
            let what = format!("given beside the tensor `{DIVISORS}`: two scalings do not run");
            return Err(keys.beyond("rope.scaling.factor", &what));
        }
    };
    super::extend(&mut parameters, scaling);
    Ok(parameters.into())
}

/// The base of layers with a window in Gemma 3, which are not scaled.
pub(super) fn of_windows(keys: Keys<'_>) -> Result<f64, ModelError> {
    base(keys, OF_WINDOWS)
}

/// A base of frequencies; llama.cpp has one default for all.
fn base(keys: Keys<'_>, name: &str) -> Result<f64, ModelError> {
    match keys.float(name)? {
        None => Ok(10_000.0),
        Some(theta) if theta > 0.0 => Ok(theta),
        Some(theta) => {
            let what = format!("{theta}, expected a number above 0; convert the model again");
            Err(keys.beyond(name, &what))
        }
    }
}

/// Phi-3's scaling: the divisors of frequencies of short texts and of long ones, and what cosines and
/// sines are multiplied by.
fn long(keys: Keys<'_>, dims: u32) -> Result<Option<Value>, ModelError> {
    let long = divisors(keys, "rope_factors_long.weight", dims)?;
    let short = divisors(keys, "rope_factors_short.weight", dims)?;
    let (long, short) = match (long, short) {
        (None, None) => return Ok(None),
        (Some(long), Some(short)) => (long, short),
        (Some(_), None) | (None, Some(_)) => {
            return Err(keys.gguf.wrong(
                "has only one of the tensors `rope_factors_long.weight` and `rope_factors_short.weight`; convert the model again".to_string(),
            ));
        }
    };
    if keys.architecture != Architecture::Phi3 {
        return Err(keys.gguf.wrong(format!(
            "tensor `rope_factors_long.weight`: rotary frequencies that depend on the length of the text (LongRoPE) run in phi3 alone, and this is {}",
            keys.architecture.name()
        )));
    }
    let mut scaling = json!({
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
    });
    if let Some(factor) = keys.float("rope.scaling.attn_factor")? {
        scaling["attention_factor"] = factor.into();
    }
    Ok(Some(scaling))
}

/// The factor of which `head_dim` times it, rounded down, is `dims`.
fn share(dims: u32, head_dim: u32) -> f64 {
    let share = f64::from(dims) / f64::from(head_dim);
    match (share * f64::from(head_dim)) as u32 == dims {
        true => share,
        false => share.next_up(),
    }
}

/// How all frequencies are scaled, unless the factor is 1.
fn scaling(keys: Keys<'_>) -> Result<Option<Scaling>, ModelError> {
    let name = "rope.scaling.type";
    // As llama.cpp: a factor without a type is linear, and had another name once.
    let kind = keys.gguf.string(&keys.key(name))?.unwrap_or("linear");
    let scaling = match kind {
        "none" => return Ok(None),
        "linear" => Scaling::Linear,
        // In configs of Phi-3, that is the name of another scaling.
        "yarn" if keys.architecture != Architecture::Phi3 => Scaling::Yarn,
        other => {
            let what = format!(
                "`{other}`, which does not run: linear, yarn (but in phi3), Llama 3's and Phi-3's do; take a file without a longer context"
            );
            return Err(keys.beyond(name, &what));
        }
    };
    for name in ["rope.scaling.factor", "rope.scale_linear"] {
        match keys.float(name)? {
            None => {}
            // Zero stands for none.
            Some(factor) if factor == 0.0 || factor == 1.0 => return Ok(None),
            Some(factor) if factor > 0.0 => return Ok(Some(scaling(factor))),
            Some(factor) => {
                let what = format!("{factor}, expected a number above 0; convert the model again");
                return Err(keys.beyond(name, &what));
            }
        }
    }
    Ok(None)
}

/// A tensor with the divisor of each frequency.
fn divisors(keys: Keys<'_>, name: &str, dims: u32) -> Result<Option<Vec<f64>>, ModelError> {
    let Some(tensor) = keys.gguf.tensor(name) else {
        return Ok(None);
    };
    let wrong = |what: String| keys.gguf.wrong(format!("tensor `{name}` {what}"));
    if tensor.kind != GgmlType::F32 || tensor.shape != [dims as usize / 2] {
        return Err(wrong(format!(
            "is {} {:?}, expected F32 [{}]: half of the rotated elements; convert the model again",
            tensor.kind.name(),
            tensor.shape,
            dims / 2
        )));
    }
    let words = keys.gguf.bytes(tensor).as_chunks::<4>().0.iter();
    let divisors: Vec<f64> = words.map(|b| decimal(f32::from_le_bytes(*b))).collect();
    if let Some(bad) = divisors.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
        return Err(wrong(format!(
            "divides a rotary frequency by {bad}; convert the model again"
        )));
    }
    Ok(Some(divisors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_gives_its_elements_back() {
        for head_dim in (2..=576).step_by(2) {
            for dims in (2..=head_dim).step_by(2) {
                let factor = share(dims, head_dim);
                assert_eq!((factor * f64::from(head_dim)) as u32, dims);
                assert!(factor <= 1.0);
            }
        }
    }
}
