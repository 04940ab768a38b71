//! Rotary position embedding: its metadata → `rope_parameters`.
//!
//! llama.cpp knows Llama 3's scaling only by its result: the tensor `rope_freqs.weight` with a divisor
//! of each frequency. The fields that give these divisors are found again, and checked against
//! all of them.

use super::Keys;
use crate::ModelError;
use crate::weights::architecture::Architecture;
use crate::weights::gguf::{GgmlType, decimal};
use serde_json::{Map, Value, json};
use std::f64::consts::PI;

/// The tensor of Llama 3's divisors.
const DIVISORS: &str = "rope_freqs.weight";
/// The longest text before the model was trained on longer ones, in tokens.
pub(super) const ORIGINAL: &str = "rope.scaling.original_context_length";
/// How far a divisor may be off, relative to its size; they are computed in f32.
const TOLERANCE: f64 = 1e-4;

/// The rotary parameters of a model with heads of `head_dim` elements.
pub(super) fn parameters(keys: Keys<'_>, head_dim: u32) -> Result<Value, ModelError> {
    let gguf = keys.gguf;
    let theta = match keys.float("rope.freq_base")? {
        None => 10_000.0,
        Some(theta) if theta > 0.0 => theta,
        Some(theta) => {
            let what = format!("{theta}, expected a number above 0; convert the model again");
            return Err(keys.beyond("rope.freq_base", &what));
        }
    };
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
    let factor = linear(keys)?;
    let divisors = divisors(keys, DIVISORS, dims)?;
    let divisors = divisors.filter(|all| all.iter().any(|x| !near(*x, 1.0)));
    let scaling = match (factor, divisors) {
        (None, None) => json!({ "rope_type": "default" }),
        (Some(factor), None) => json!({ "rope_type": "linear", "factor": factor }),
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

/// The divisor of all frequencies, if it is not 1.
fn linear(keys: Keys<'_>) -> Result<Option<f64>, ModelError> {
    let name = "rope.scaling.type";
    // As llama.cpp: a factor without a type is linear, and had another name once.
    let kind = keys.gguf.string(&keys.key(name))?.unwrap_or("linear");
    match kind {
        "none" => return Ok(None),
        "linear" => {}
        other => {
            let what = format!(
                "`{other}`, which does not run: linear, Llama 3's and Phi-3's do; take a file without a longer context"
            );
            return Err(keys.beyond(name, &what));
        }
    }
    for name in ["rope.scaling.factor", "rope.scale_linear"] {
        match keys.float(name)? {
            None => {}
            // Zero stands for none.
            Some(factor) if factor == 0.0 || factor == 1.0 => return Ok(None),
            Some(factor) if factor > 0.0 => return Ok(Some(factor)),
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

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * b.abs()
}

/// Llama 3's scaling: frequencies of wavelengths above `original / low` tokens are divided by
/// `factor`, those below `original / high` are kept, those between are blended.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: u32,
}

impl Llama3 {
    /// The scaling that has these divisors; `original` is what the metadata say of it.
    fn find(divisors: &[f64], theta: f64, original: Option<u32>) -> Option<Self> {
        let factor = *divisors.last()?;
        // What all released models have.
        let usual = Self {
            factor,
            low: 1.0,
            high: 4.0,
            original: original.unwrap_or(8192),
        };
        let fits = |one: &Self| {
            let count = divisors.len();
            let mut pairs = divisors.iter().enumerate();
            pairs.all(|(i, given)| near(one.divisor(frequency(i, count, theta)), *given))
        };
        let fitted = Self::fitted(divisors, theta);
        [Some(usual), fitted].into_iter().flatten().find(fits)
    }

    /// The scaling of which the blended divisors are. Blended, `(1/d - 1/factor) / (1 - 1/factor)` is
    /// `(original / wavelength - low) / (high - low)`: a line over `1 / wavelength`, of which the
    /// slope and the offset are found by least squares. Only the ratios of `original`, `low` and
    /// `high` matter: `low` is set to 1.
    fn fitted(divisors: &[f64], theta: f64) -> Option<Self> {
        let factor = *divisors.last()?;
        let least = factor.recip();
        let blended = divisors.iter().enumerate();
        let blended = blended.filter(|(_, d)| !near(**d, 1.0) && !near(**d, factor));
        let points: Vec<(f64, f64)> = blended
            .map(|(i, d)| {
                let turns = frequency(i, divisors.len(), theta) / (2.0 * PI);
                (turns, (d.recip() - least) / (1.0 - least))
            })
            .collect();
        let count = points.len() as f64;
        let (x, y) = points
            .iter()
            .fold((0.0, 0.0), |(x, y), p| (x + p.0 / count, y + p.1 / count));
        let (xx, xy) = points.iter().fold((0.0, 0.0), |(xx, xy), p| {
            (xx + (p.0 - x) * (p.0 - x), xy + (p.0 - x) * (p.1 - y))
        });
        let slope = xy / xx;
        let offset = slope * x - y;
        let original = (slope / offset).round();
        let high = 1.0 + offset.recip();
        // Comparisons with NaN are false: of fewer than two points there is no line.
        (offset > 0.0 && (1.0..=f64::from(u32::MAX)).contains(&original)).then_some(Self {
            factor,
            low: 1.0,
            high: (high * 1000.0).round() / 1000.0,
            original: original as u32,
        })
    }

    /// What a frequency, in radians a token, is divided by.
    fn divisor(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * PI / frequency;
        let original = f64::from(self.original);
        if wavelength < original / self.high {
            1.0
        } else if wavelength > original / self.low {
            self.factor
        } else {
            let blend = (original / wavelength - self.low) / (self.high - self.low);
            ((1.0 - blend) / self.factor + blend).recip()
        }
    }
}

/// The `i`-th of `count` rotary frequencies, in radians a token.
fn frequency(i: usize, count: usize, theta: f64) -> f64 {
    theta.powf(-(i as f64) / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divisors(scaling: Llama3, theta: f64, count: usize) -> Vec<f64> {
        // Rounded to f32, as files have them.
        let rounded = |i| f64::from(scaling.divisor(frequency(i, count, theta)) as f32);
        (0..count).map(rounded).collect()
    }

    #[test]
    fn the_fields_of_a_scaling_are_found_again() {
        for (factor, low, high, original, theta, count) in [
            (8.0, 1.0, 4.0, 8192, 500_000.0, 64),
            (32.0, 1.0, 4.0, 8192, 500_000.0, 32),
            (4.0, 1.0, 4.0, 512, 10_000.0, 32),
            (3.0, 1.0, 8.0, 2048, 1e6, 64),
        ] {
            let scaling = Llama3 {
                factor,
                low,
                high,
                original,
            };
            let found = Llama3::find(&divisors(scaling, theta, count), theta, None);
            assert_eq!(found, Some(scaling));
        }
        // Only ratios matter.
        let doubled = Llama3 {
            factor: 8.0,
            low: 2.0,
            high: 8.0,
            original: 16384,
        };
        let found = Llama3::find(&divisors(doubled, 5e5, 64), 5e5, None).expect("found");
        assert_eq!((found.low, found.high, found.original), (1.0, 4.0, 8192));
    }

    #[test]
    fn other_divisors_are_none_of_llama3() {
        assert_eq!(Llama3::find(&[1.0, 3.0, 2.0, 8.0], 1e4, None), None);
        assert_eq!(Llama3::find(&[2.0; 32], 1e4, None), None);
        assert_eq!(Llama3::find(&[], 1e4, None), None);
        let scaling = Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original: 8192,
        };
        let mut off = divisors(scaling, 5e5, 64);
        off[30] *= 1.01;
        assert_eq!(Llama3::find(&off, 5e5, None), None);
    }

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
