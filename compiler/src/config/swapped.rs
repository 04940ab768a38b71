//! Which layers of a model a pattern replaces.

use super::ConfigError;
use butterfly_ir::model::{AttentionShape, LayerKind, ModelConfig};
use butterfly_ir::plan::SwappedLayer;
use butterfly_ir::{Pattern, Sparsity};

/// Checks that the cases of a pattern name kv heads and layers that the model has.
fn check_cases(config: &ModelConfig, pattern: &Pattern) -> Result<(), ConfigError> {
    let kv_heads = config.attention.kv_heads();
    if matches!(config.attention, AttentionShape::Mla { .. }) {
        let layers = (0u32..).zip(&config.layers);
        let mut patterns = layers.map(|(layer, _)| pattern.of_layer(layer));
        if patterns.any(|pattern| pattern.is_by_head() && pattern.routing().is_some()) {
            return Err(ConfigError::LatentHeads);
        }
    }
    let layers = u32::try_from(config.layers.len()).unwrap_or(u32::MAX);
    for (what, end, count) in [
        ("kv head", pattern.named_heads(), kv_heads),
        ("layer", pattern.named_layers(), layers),
    ] {
        if end > count {
            let named = end - 1;
            return Err(ConfigError::Named { what, named, count });
        }
    }
    Ok(())
}

/// The layers whose attention `sparsity` replaces, in order, each with the index that picks its
/// stage. These are the layers that the pattern names. If it names none, they are all layers with
/// full attention, since a window is bounded as it is; where all layers have windows or the pattern has
/// cases by layer, all layers with softmax attention.
///
/// # Errors
/// [`ConfigError::NoSuchLayer`] and [`ConfigError::LinearLayer`] for a layer that cannot
/// be replaced; [`ConfigError::Named`] for a head or layer that the model does not have, and
/// [`ConfigError::LatentHeads`].
pub fn swapped(
    config: &ModelConfig,
    sparsity: &Sparsity,
) -> Result<Vec<SwappedLayer>, ConfigError> {
    check_cases(config, &sparsity.pattern)?;
    let softmax = (0u32..)
        .zip(&config.layers)
        .filter(|(_, kind)| kind.is_softmax())
        .map(|(layer, _)| layer);
    let layers: Vec<u32> = match &sparsity.swapped_layers {
        None => {
            let is_full = |layer: &u32| config.layers[*layer as usize] == LayerKind::FullAttention;
            let full: Vec<u32> = softmax.clone().filter(is_full).collect();
            match full.is_empty() || sparsity.pattern.named_layers() > 0 {
                true => softmax.collect(),
                false => full,
            }
        }
        Some(named) => {
            for &layer in named {
                match config.layers.get(layer as usize) {
                    Some(LayerKind::FullAttention | LayerKind::WindowAttention { .. }) => {}
                    Some(LayerKind::LinearAttention) => {
                        let full: Vec<String> = softmax.map(|l| l.to_string()).collect();
                        return Err(ConfigError::LinearLayer {
                            layer,
                            full: full.join(", "),
                        });
                    }
                    None => {
                        return Err(ConfigError::NoSuchLayer {
                            layer,
                            layers: config.layers.len(),
                        });
                    }
                }
            }
            let mut layers = named.clone();
            layers.sort_unstable();
            layers.dedup();
            layers
        }
    };
    Ok((0u32..)
        .zip(layers)
        .map(|(position, layer)| SwappedLayer {
            layer,
            index: sparsity.index(position, layer),
        })
        .collect())
}
