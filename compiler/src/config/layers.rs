//! The kind of each layer, from `layer_types` and the fields about sliding windows.

use super::fields::Fields;
use super::{ConfigError, layer_count};
use crate::family::{Description, Windows};
use butterfly_ir::band::MAX_TOKENS;
use butterfly_ir::model::LayerKind;
use serde_json::Value;

/// The kinds of layers that a model can have.
struct Kinds {
    full: Option<LayerKind>,
    sliding: Option<LayerKind>,
    linear: Option<LayerKind>,
}

/// Reads the kind of each layer, first to last.
pub(super) fn read(
    config: &Fields<'_>,
    family: &Description,
) -> Result<Vec<LayerKind>, ConfigError> {
    let count = layer_count(config, "num_hidden_layers")?;
    let sliding = sliding(config, family.attention.windows)?;
    let everywhere = matches!(family.attention.windows, Windows::Everywhere { .. });
    let kinds = Kinds {
        full: (!everywhere || sliding.is_none()).then_some(LayerKind::FullAttention),
        sliding,
        linear: family.hybrid.then_some(LayerKind::LinearAttention),
    };
    match config.list("layer_types")? {
        Some(entries) => listed(config, family, &kinds, entries, count),
        None => usual(config, family, &kinds, count),
    }
}

/// Layers with a window, if the model has any.
fn sliding(config: &Fields<'_>, windows: Windows) -> Result<Option<LayerKind>, ConfigError> {
    let used = config.flag("use_sliding_window", false)?;
    let default = match windows {
        Windows::Nowhere if used => {
            return Err(config.unsupported(
                "use_sliding_window",
                &Value::from(true),
                "false: a pattern can have a window instead",
            ));
        }
        Windows::Nowhere => return Ok(None),
        Windows::Everywhere { default } => default,
        Windows::Between { default, .. } => Some(default),
        Windows::FromLayer { .. } if !used => return Ok(None),
        Windows::FromLayer { default, .. } => Some(default),
    };
    let window = match config.has("sliding_window") {
        true => config.count("sliding_window")?,
        false => default,
    };
    Ok(window.map(|window| match window < MAX_TOKENS {
        true => LayerKind::WindowAttention { window },
        // Sequences have no more tokens than that.
        false => LayerKind::FullAttention,
    }))
}

/// The kinds that `layer_types` lists.
fn listed(
    config: &Fields<'_>,
    family: &Description,
    kinds: &Kinds,
    entries: &[Value],
    count: u32,
) -> Result<Vec<LayerKind>, ConfigError> {
    if entries.len() != count as usize {
        return Err(ConfigError::LayerCount {
            file: config.file.to_string(),
            field: config.path("layer_types"),
            given: entries.len(),
            count_field: config.path("num_hidden_layers"),
            layers: count,
        });
    }
    let known = [
        ("full_attention", kinds.full),
        ("sliding_attention", kinds.sliding),
        ("linear_attention", kinds.linear),
    ];
    let supported = known.iter().filter(|(_, kind)| kind.is_some());
    let supported: Vec<&str> = supported.map(|(name, _)| *name).collect();
    let mut expected = supported.join(" or ");
    match family.attention.windows {
        Windows::FromLayer { .. } if kinds.sliding.is_none() => {
            expected += ", or a window by `use_sliding_window` and `sliding_window`";
        }
        Windows::Everywhere { .. } => {
            expected += ": all layers have the window of `sliding_window`, or none if it is null";
        }
        Windows::FromLayer { .. } | Windows::Between { .. } | Windows::Nowhere => {}
    }
    let kind = |(layer, entry): (usize, &Value)| {
        let name = format!("layer_types[{layer}]");
        let found = known.iter().find(|(name, _)| entry.as_str() == Some(name));
        match found {
            Some((_, Some(kind))) => Ok(*kind),
            Some((_, None)) => Err(config.unsupported(&name, entry, &expected)),
            None => Err(config.bad(&name, entry, &expected)),
        }
    };
    entries.iter().enumerate().map(kind).collect()
}

/// The kinds of a model that does not list them.
fn usual(
    config: &Fields<'_>,
    family: &Description,
    kinds: &Kinds,
    count: u32,
) -> Result<Vec<LayerKind>, ConfigError> {
    let full = LayerKind::FullAttention;
    let sliding = kinds.sliding.unwrap_or(full);
    let first = match family.attention.windows {
        Windows::Nowhere => count,
        Windows::Everywhere { .. } | Windows::Between { .. } => 0,
        Windows::FromLayer { first, .. } => config.number("max_window_layers")?.unwrap_or(first),
    };
    // In hybrid models every `interval`-th layer has softmax attention.
    let interval = match family.hybrid {
        true => config.count_or("full_attention_interval", 4)?,
        false => 1,
    };
    let between = match family.attention.windows {
        Windows::Between { interval, .. } => {
            Some(config.count_or("sliding_window_pattern", interval)?)
        }
        _ => None,
    };
    let kind = |layer: u32| match (layer + 1).is_multiple_of(interval) {
        true if between.is_some_and(|every| (layer + 1).is_multiple_of(every)) => full,
        false => LayerKind::LinearAttention,
        true if layer >= first => sliding,
        true => full,
    };
    Ok((0..count).map(kind).collect())
}
