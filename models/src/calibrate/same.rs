//! How far into a window a pattern changes nothing.

use butterfly_compiler::config::{self, ConfigError};
use butterfly_ir::band::keys_of_query;
use butterfly_ir::model::ModelConfig;
use butterfly_ir::{Context, Pattern, Sparsity, rows};
use std::collections::HashSet;

/// The first tokens of a window, in whole blocks, whose queries see by the pattern what they see by
/// the model's own attention, in every layer that the pattern replaces; `tokens` if the pattern
/// changes nothing. The window has `tokens` tokens, `capacity` fixes the stages.
///
/// # Errors
/// [`ConfigError`] for a layer that cannot be replaced.
pub fn same(
    model: &ModelConfig,
    sparsity: &Sparsity,
    tokens: u32,
    capacity: u32,
) -> Result<u32, ConfigError> {
    let heads = model.attention.kv_heads();
    let mut known = HashSet::new();
    let mut same = tokens;
    for swapped in config::swapped(model, sparsity)? {
        let Some(own) = model.layers[swapped.layer as usize].own() else {
            continue;
        };
        let own = own.sparsity().pattern;
        for (pattern, _) in sparsity.pattern.of_layer(swapped.layer).head_classes(heads) {
            let context = Context {
                capacity: capacity.max(tokens),
                ..Context::new(sparsity.block, tokens, swapped.index)
            };
            let stage = swapped.index % pattern.stage_count(context.blocks()).max(1);
            if known.insert((own.clone(), pattern.clone(), stage)) {
                same = same.min(until(&own, &pattern, &context, same));
            }
        }
    }
    Ok(same)
}

/// The first query of the first block in which a query sees other keys by one pattern than by the
/// other; at most `end`.
fn until(a: &Pattern, b: &Pattern, context: &Context, end: u32) -> u32 {
    let block = context.block;
    let differs = |row: &u32| {
        let [a, b] = [a, b].map(|pattern| rows::row(pattern, context, *row));
        let mut queries = row * block..((row + 1) * block).min(context.kv_len);
        queries.any(|q| keys_of_query(&a, q as i32) != keys_of_query(&b, q as i32))
    };
    let row = (0..end.div_ceil(block)).find(differs);
    row.map_or(end, |row| row * block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_tests::fixture;

    #[test]
    fn the_first_keys_are_all_seen() {
        let model = |file: &str| {
            let path = fixture("configs").join(file);
            let text = std::fs::read_to_string(&path).expect("a config");
            config::read(file, &text).expect("a config")
        };
        let [full, windows] = ["qwen3-8b.json", "mistral-7b-v0.1.json"].map(model);
        let get = |model, pattern: &str, tokens| {
            let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
            same(model, &sparsity, tokens, tokens).expect("layers")
        };
        for (pattern, want) in [
            ("block 64 causal & (window(448) | sink(1))", 512),
            ("block 64 causal & window(448)", 448),
            ("block 64 causal & window(449)", 448),
            ("block 64 causal & local(2)", 192),
            ("block 64 causal", 2000),
            ("block 64 causal & window(2000)", 2000),
            (
                "block 64 causal & (local(1) | partner(causal_shift, radix=2, count=1))",
                128,
            ),
            (
                "block 64 per_layer { 3 => causal & local(2); else => causal & local(3) }",
                192,
            ),
            (
                "block 64 per_head { 3 => causal & local(2); else => causal & local(3) }",
                192,
            ),
        ] {
            assert_eq!(get(&full, pattern, 2000), want, "{pattern}");
        }
        // What the layers' own windows do not see is no difference.
        assert_eq!(get(&windows, "causal & window(4096)", 9000), 9000);
        assert_eq!(get(&windows, "causal", 9000), 4096);
    }
}
