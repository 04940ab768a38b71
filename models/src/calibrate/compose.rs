//! A choice of parts → one pattern for all layers.
//!
//! In:  the pattern that replaces, and the parts that it replaces. Out: a pattern with `per_layer`
//! and `per_head` in which the other parts have their own attention. Layers, and heads, of equal
//! attention are one case; the largest is `else`.

use super::Site;
use butterfly_compiler::config::{self, ConfigError};
use butterfly_ir::model::ModelConfig;
use butterfly_ir::{Indices, Pattern, Sparsity, build};

/// The pattern that replaces the attention of the `chosen` parts of a model by that of `sparsity`,
/// and leaves the others their own.
///
/// With a `tail`, in tokens, replaced parts see what they see by their own attention from the block
/// on that holds the first of the last `tail` tokens of the prompt.
///
/// # Errors
/// [`ConfigError`] for a layer that `sparsity` names and that cannot be replaced.
pub fn compose(
    model: &ModelConfig,
    sparsity: &Sparsity,
    chosen: &[Site],
    tail: Option<u32>,
) -> Result<Sparsity, ConfigError> {
    let kv_heads = model.attention.kv_heads();
    let mut layers = Vec::new();
    let swapped = config::swapped(model, sparsity)?;
    let swapped: Vec<u32> = swapped.iter().map(|swapped| swapped.layer).collect();
    for &layer in &swapped {
        let Some(own) = model.layers[layer as usize].own() else {
            continue;
        };
        let own = own.sparsity().pattern;
        let replaced = sparsity.pattern.of_layer(layer);
        let of_head = |head: u32| {
            let is = |site: &Site| site.layer == layer && site.head.is_none_or(|h| h == head);
            match (chosen.iter().any(is), tail) {
                (false, _) => own.clone(),
                (true, None) => replaced.of_head(head),
                (true, Some(tokens)) => replaced.of_head(head) | own.clone() & build::tail(tokens),
            }
        };
        let heads = (0..kv_heads).map(|head| (head, of_head(head)));
        layers.push((layer, merged(heads, build::per_head)));
    }
    let pattern = match layers.is_empty() {
        true => sparsity.pattern.clone(),
        false => merged(layers, build::per_layer),
    };
    let all = model.layers.iter().filter(|kind| kind.is_softmax()).count();
    Ok(Sparsity {
        pattern,
        // A pattern with cases by layer would replace the other layers too.
        swapped_layers: match swapped.len() == all {
            true => sparsity.swapped_layers.clone(),
            false => Some(swapped),
        },
        ..sparsity.clone()
    })
}

/// Cases for equal patterns, in the order of their first indices, the largest as `else`; without
/// cases if all are equal.
fn merged(
    all: impl IntoIterator<Item = (u32, Pattern)>,
    cases: impl FnOnce(Vec<(Indices, Pattern)>) -> Pattern,
) -> Pattern {
    let mut groups: Vec<(Vec<u32>, Pattern)> = Vec::new();
    for (index, pattern) in all {
        match groups.iter_mut().find(|(_, other)| *other == pattern) {
            Some((indices, _)) => indices.push(index),
            None => groups.push((vec![index], pattern)),
        }
    }
    let largest = groups.iter().map(|(indices, _)| indices.len()).max();
    let at = groups
        .iter()
        .position(|(indices, _)| Some(indices.len()) == largest);
    let (_, other) = groups.remove(at.unwrap_or_default());
    if groups.is_empty() {
        return other;
    }
    let named = groups.into_iter().map(|(indices, pattern)| {
        let ranges = indices.into_iter().map(|index| (index, index + 1));
        (Indices::of(ranges), pattern)
    });
    cases(named.chain([(Indices::All, other)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{Unit, sites};
    use butterfly_tests::fixture;

    fn model(file: &str) -> ModelConfig {
        let path = fixture("configs").join(file);
        let text = std::fs::read_to_string(&path).expect("a config");
        config::read(file, &text).expect("a config")
    }

    fn composed(model: &ModelConfig, pattern: &str, chosen: &[Site], tail: Option<u32>) -> String {
        let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
        let got = compose(model, &sparsity, chosen, tail).expect("composed");
        let text = got.to_string();
        assert_eq!(
            Sparsity::parse("composed", &text).expect("parses"),
            got,
            "{text}"
        );
        assert_eq!(
            (got.block, got.stage_by),
            (sparsity.block, sparsity.stage_by)
        );
        got.pattern.to_string()
    }

    const WINDOW: &str = "block 64 causal & (window(448) | sink(1))";

    #[test]
    fn equal_parts_are_one_case() {
        let model = model("qwen3-8b.json");
        let head = |layer, head| Site {
            layer,
            head: Some(head),
        };
        let text = |chosen: &[Site], tail| composed(&model, WINDOW, chosen, tail);
        assert_eq!(text(&[], Some(64)), "causal");
        let all = sites(&model, Unit::Head, &(0..36).collect::<Vec<_>>());
        assert_eq!(text(&all, None), "causal & (window(448) | sink(1))");
        let layers = sites(&model, Unit::Layer, &[0, 1, 2, 7]);
        assert_eq!(
            text(&layers, None),
            "per_layer { 0..3, 7 => causal & (window(448) | sink(1)); else => causal }"
        );
        let heads = [head(3, 0), head(5, 0), head(5, 2), head(5, 3), head(9, 0)];
        assert_eq!(
            text(&heads, Some(64)),
            "per_layer { 3, 9 => per_head { 0 => causal & (window(448) | sink(1)) | causal & tail(64); \
             else => causal }; 5 => per_head { 0, 2..4 => causal & (window(448) | sink(1)) | causal & \
             tail(64); else => causal }; else => causal }"
        );
    }

    #[test]
    fn windows_of_their_own_and_linear_layers_stay() {
        let mistral = model("mistral-7b-v0.1.json");
        let one = sites(&mistral, Unit::Layer, &[4]);
        let text = composed(&mistral, WINDOW, &one, Some(8));
        assert_eq!(
            text,
            "per_layer { 4 => causal & (window(448) | sink(1)) | causal & window(4096) & tail(8); \
             else => causal & window(4096) }"
        );
        let hybrid = model("qwen3.5-9b.json");
        let pattern = "layers 3,11,15 causal & window(448)";
        let text = composed(&hybrid, pattern, &sites(&hybrid, Unit::Layer, &[11]), None);
        assert_eq!(
            text,
            "per_layer { 11 => causal & window(448); else => causal }"
        );
        let sparsity = Sparsity::parse("test", "layers 2 causal").expect("a pattern");
        assert!(compose(&hybrid, &sparsity, &[], None).is_err());
    }

    /// Where only some layers have windows, these keep them, and the text of the pattern says so.
    #[test]
    fn windows_between_full_layers_stay() {
        let text = std::fs::read_to_string(fixture("models/gemma3/config.json")).expect("a config");
        let model = config::read("gemma3", &text).expect("a config");
        let sparsity = Sparsity::parse("test", WINDOW).expect("a pattern");
        let one = sites(&model, Unit::Layer, &[2]);
        let got = compose(&model, &sparsity, &one, None).expect("composed");
        assert_eq!(got.swapped_layers, Some(vec![2, 5]));
        assert_eq!(
            got.pattern.to_string(),
            "per_layer { 5 => causal; else => causal & (window(448) | sink(1)) }"
        );
    }

    /// A pattern that differs by layer and head is replaced by what it says for each.
    #[test]
    fn patterns_with_cases_are_taken_apart() {
        let model = model("qwen3-8b.json");
        let pattern = "per_layer { 0..2 => per_head { 0 => causal; else => causal & window(9) }; \
                       else => causal & window(7) }";
        let chosen = sites(&model, Unit::Layer, &[1, 2]);
        assert_eq!(
            composed(&model, pattern, &chosen, None),
            "per_layer { 1 => per_head { 0 => causal; else => causal & window(9) }; \
             2 => causal & window(7); else => causal }"
        );
    }
}
