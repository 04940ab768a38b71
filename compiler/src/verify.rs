//! Checks a plan against its pattern.
//!
//! In:  a plan, as the passes made it. Out: nothing, or the first contradiction, which is a bug of
//! a pass and not a fault of its input.
//!
//! Each kernel's specification and key are checked. The rows that kernels execute are compared
//! with [`sees()`], the definition of patterns, at the first and last rows of several lengths, the
//! capacity among them.

use crate::{key, plan};
use butterfly_ir::band::keys_of_query;
use butterfly_ir::plan::{Plan, PlannedKernel, SwappedLayer};
use butterfly_ir::{Context, KernelSpec, Rows, Sparsity, rows, sees};

/// Rows that are compared at either end of a sequence.
const ROWS: u32 = 4;
/// Layers, each with its stage index, whose rows are compared.
const STAGES: usize = 8;

/// Checks a plan: the order of its layers and kernels, each kernel's specification and key, and
/// samples of the rows.
///
/// # Errors
/// A message that says what contradicts what.
pub fn plan(plan: &Plan) -> Result<(), String> {
    if !plan.layers.is_sorted_by(|a, b| a.layer < b.layer) {
        return Err("layers do not increase".into());
    }
    let place = |kernel: &PlannedKernel| (kernel.target, kernel.key.clone());
    if !plan.kernels.is_sorted_by(|a, b| place(a) < place(b)) {
        return Err("kernels are not in order, or one is there twice".into());
    }
    if plan.variants != plan::variants(&plan.sparsity, &plan.layers) {
        return Err("its variants are not those of its layers".into());
    }
    for kernel in &plan.kernels {
        let KernelSpec { rows, .. } = &kernel.spec;
        let wrong = |what: String| format!("kernel {} for {}: {what}", kernel.key, kernel.target);
        let fits = kernel.spec.check(kernel.target);
        fits.map_err(|error| wrong(error.to_string()))?;
        if kernel.key != key::of(&kernel.spec, kernel.target) {
            return Err(wrong("its key is not that of its specification".into()));
        }
        let mut all = plan.variants.iter().map(|variant| &variant.rows);
        if all.all(|own| own != rows) && plan.kept.iter().all(|kept| kept.rows != *rows) {
            return Err(wrong("its rows are those of no layer".into()));
        }
    }
    for variant in &plan.variants {
        let own =
            |layer: &&SwappedLayer| plan.sparsity.pattern.of_layer(layer.layer) == variant.pattern;
        let indices = plan.layers.iter().filter(own).map(|layer| layer.index);
        let sparsity = Sparsity {
            pattern: variant.pattern.clone(),
            ..plan.sparsity.clone()
        };
        let indices: Vec<u32> = indices.collect();
        meaning(&sparsity, &variant.rows, &indices, plan.capacity)?;
    }
    let mut kept = plan.kept.iter();
    kept.try_for_each(|kept| meaning(&kept.own.sparsity(), &kept.rows, &[0], plan.capacity))
}

/// Compares the rows that kernels execute for `sparsity` with its definition.
fn meaning(
    sparsity: &Sparsity,
    executed: &Rows,
    indices: &[u32],
    capacity: u32,
) -> Result<(), String> {
    let block = sparsity.block;
    let lengths = [1, block, 3 * block + 1, 9 * block - 1, capacity];
    for kv_len in lengths.into_iter().filter(|tokens| *tokens <= capacity) {
        for index in indices.iter().take(STAGES) {
            let context = Context::new(block, kv_len, *index);
            let all = context.rows();
            let first = 0..all.min(ROWS);
            for b in first.chain(all.saturating_sub(ROWS).max(ROWS)..all) {
                // Of the heads that no case names, one stands for all.
                for kv_head in 0..=sparsity.pattern.named_heads() {
                    row(sparsity, executed, &context.of_head(kv_head), b)?;
                }
            }
        }
    }
    Ok(())
}

/// Compares the first and the last query of row `b`.
fn row(sparsity: &Sparsity, executed: &Rows, context: &Context, b: u32) -> Result<(), String> {
    let pattern = &sparsity.pattern;
    let bands = match executed {
        Rows::ClosedForm(program) => program.bands(b, context.kv_head, context),
        Rows::Table => rows::row(pattern, context, b),
    };
    let last = (context.kv_len - 1).min(b * context.block + context.block - 1);
    for q in [b * context.block, last] {
        let ranges = keys_of_query(&bands, q.cast_signed());
        let seen = |k: u32| {
            let k = k.cast_signed();
            ranges
                .iter()
                .any(|(start, end)| (*start..*end).contains(&k))
        };
        // Keys worth comparing: around the ends of the executed ranges, around block borders near
        // the query's block and near the start of the sequence, and around the query itself.
        let changes = ranges.iter().flat_map(|(start, end)| [*start, *end]);
        let near = (0..ROWS).flat_map(|i| [i, b.saturating_sub(i)]);
        let near = near.map(|block| block * context.block).chain([q]);
        let places = changes.map(i32::cast_unsigned).chain(near);
        for k in places.flat_map(|k| [k.wrapping_sub(1), k, k.saturating_add(1)]) {
            if k < context.kv_len && seen(k) != sees(pattern, context, q, k) {
                return Err(format!(
                    "query {q} of {} keys at index {}: its row and the pattern differ at key {k}",
                    context.kv_len, context.index
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::{Dtype, Role, Target};

    fn planned(text: &str) -> Plan {
        let sparsity = Sparsity::parse("test", text).expect("a pattern");
        let spec = |role| KernelSpec {
            role,
            head_dim: 64,
            v_head_dim: 64,
            group: 2,
            dtype: Dtype::F32,
            block: sparsity.block,
            rows: plan::rows(&sparsity.pattern),
            score: Default::default(),
        };
        let mut kernels = [Role::Prefill, Role::Decode]
            .map(|role| PlannedKernel {
                key: key::of(&spec(role), Target::Cpu),
                target: Target::Cpu,
                spec: spec(role),
            })
            .to_vec();
        kernels.sort_by(|a, b| a.key.cmp(&b.key));
        let layers = (0..4).map(|layer| SwappedLayer {
            layer,
            index: layer,
        });
        let layers: Vec<_> = layers.collect();
        Plan {
            variants: plan::variants(&sparsity, &layers),
            sparsity,
            layers,
            capacity: 10_000,
            proof: Default::default(),
            kept: Vec::new(),
            kernels,
        }
    }

    #[test]
    fn what_passes_make_holds() {
        for text in [
            "causal & (local(1) | partner(causal_shift, radix=4) | sink(1))",
            "block 48 causal & (window(100) | partner(xor) | sink_tokens(5) | global(1))",
            "block 16 causal & (local(2) - sink(1) | partner(bit_reversal))",
            "block 32 causal & table([[0], [0, 1], [2]])",
            "block 16 causal & per_head { 1 => tail(20) | sink(1); else => local(1) }",
            "block 16 causal & per_head { 0..2 => local(1); else => table([[0], [0, 1], [2]]) }",
        ] {
            plan(&planned(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn what_contradicts_the_pattern_is_found() {
        let text = |text: &str| planned(&format!("block 32 causal & {text}"));
        let good = text("(local(1) | sink(1))");
        let mut other = good.clone();
        other.kernels = text("local(2)").kernels;
        assert!(plan(&other).expect_err("rows").contains("of no layer"));
        let mut other = good.clone();
        other.kernels[0].key.push('0');
        assert!(plan(&other).is_err());
        let mut other = good.clone();
        other.layers.reverse();
        assert!(plan(&other).is_err());
        // A lowering that forgot a leaf.
        let pattern = &good.sparsity;
        let forgot = plan::rows(&text("local(1)").sparsity.pattern);
        let error = meaning(pattern, &forgot, &[0], 10_000).expect_err("a leaf");
        assert!(error.ends_with("differ at key 31"), "{error}");
    }
}
