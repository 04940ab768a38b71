//! Feed-forward layers of experts.

use super::ConfigError;
use super::fields::Fields;
use crate::family::{OfDense, OfExperts, OfShared};
use butterfly_ir::model::{ExpertGroups, ExpertsShape, Router, SharedExpert};
use serde_json::Value;

/// Most experts of a layer.
const MAX_EXPERTS: u32 = 4096;

/// Reads the layers of experts of a model with so many layers.
pub(super) fn read(
    config: &Fields<'_>,
    of: &OfExperts,
    layers: usize,
) -> Result<ExpertsShape, ConfigError> {
    let (names, default) = of.count;
    let name = names.iter().find(|name| config.has(name));
    let name = name.unwrap_or(&names[0]);
    let count = config.count_or(name, default)?;
    let bad = |name, given: u32, expected: &str| config.bad(name, &Value::from(given), expected);
    if count > MAX_EXPERTS {
        return Err(bad(name, count, &format!("at most {MAX_EXPERTS} experts")));
    }
    let groups = groups(config, of, count)?;
    let choices = groups.map_or(count, |groups| count / groups.count * groups.chosen);
    let chosen = config.count_or("num_experts_per_tok", of.chosen)?;
    if chosen > choices {
        let expected = format!("at most {choices}, of which experts are chosen");
        return Err(bad("num_experts_per_tok", chosen, &expected));
    }
    let (name, default) = of.intermediate;
    let intermediate = config.count_or(name, default)?;
    let shared = match of.shared {
        OfShared::Nothing => None,
        OfShared::Gated { intermediate } => Some(SharedExpert {
            intermediate: config.count_or("shared_expert_intermediate_size", intermediate)?,
            gated: true,
        }),
        OfShared::Multiple => {
            let count = config.number("n_shared_experts")?.unwrap_or(1);
            (count > 0).then_some(SharedExpert {
                intermediate: intermediate.saturating_mul(count),
                gated: false,
            })
        }
    };
    let scale = match of.scale {
        Some(usual) => config.positive("routed_scaling_factor")?.unwrap_or(usual),
        None => 1.0,
    };
    let normalised = match of.normalised {
        Some(usual) => config.flag("norm_topk_prob", usual)?,
        None => true,
    };
    Ok(ExpertsShape {
        count,
        chosen,
        intermediate,
        shared,
        router: Router {
            scores: of.scores,
            biased: of.biased,
            groups,
            normalised,
            scale,
        },
        dense: dense(config, of.dense, layers)?,
    })
}

/// The groups of experts, if there is more than one.
fn groups(
    config: &Fields<'_>,
    of: &OfExperts,
    experts: u32,
) -> Result<Option<ExpertGroups>, ConfigError> {
    if !of.grouped {
        return Ok(None);
    }
    let count = config.count_or("n_group", 1)?;
    let chosen = config.count_or("topk_group", 1)?;
    if !experts.is_multiple_of(count) {
        let expected = format!("a divisor of the {experts} experts");
        return Err(config.bad("n_group", &Value::from(count), &expected));
    }
    if chosen > count {
        let expected = format!("at most `n_group`, which is {count}");
        return Err(config.bad("topk_group", &Value::from(chosen), &expected));
    }
    Ok((count > 1).then_some(ExpertGroups { count, chosen }))
}

/// The layers without experts.
fn dense(config: &Fields<'_>, of: OfDense, layers: usize) -> Result<Vec<u32>, ConfigError> {
    let all = 0..u32::try_from(layers).unwrap_or(u32::MAX);
    match of {
        OfDense::Nowhere => Ok(Vec::new()),
        OfDense::Listed => {
            let step = config.count_or("decoder_sparse_step", 1)?;
            let listed = match config.list("mlp_only_layers")? {
                Some(list) => layer_numbers(config, list, layers)?,
                None => Vec::new(),
            };
            let dense = |layer: &u32| listed.contains(layer) || !(layer + 1).is_multiple_of(step);
            Ok(all.filter(dense).collect())
        }
        OfDense::First { count } => {
            let Some(kinds) = config.list("mlp_layer_types")? else {
                let count = config.number("first_k_dense_replace")?.unwrap_or(count);
                return Ok(all.filter(|layer| *layer < count).collect());
            };
            let expected = format!("a list of {layers} entries, each \"dense\" or \"sparse\"");
            let bad = || config.bad("mlp_layer_types", &Value::from(kinds.clone()), &expected);
            if kinds.len() != layers {
                return Err(bad());
            }
            let mut dense = Vec::new();
            for (layer, kind) in all.zip(kinds) {
                match kind.as_str() {
                    Some("dense") => dense.push(layer),
                    Some("sparse") => {}
                    _ => return Err(bad()),
                }
            }
            Ok(dense)
        }
    }
}

/// `mlp_only_layers`.
fn layer_numbers(
    config: &Fields<'_>,
    list: &[Value],
    layers: usize,
) -> Result<Vec<u32>, ConfigError> {
    let number = |value: &Value| {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.filter(|layer| (*layer as usize) < layers)
    };
    let numbers: Option<Vec<u32>> = list.iter().map(number).collect();
    let expected = format!("a list of layers below {layers}");
    numbers.ok_or_else(|| config.bad("mlp_only_layers", &Value::from(list.to_vec()), &expected))
}
