//! Which form of latent attention a layer runs.
//!
//! In:  the heads of a layer, and what a call attends to. Out: a [`Form`], and why. Attention of other kinds
//! has only one.

use butterfly_ir::model::{AttentionShape, Form, OwnAttention};
use butterfly_ir::{Pattern, Phase};

/// The form of one call of a layer: `lengths` are its queries, and the keys that the cache then holds, in
/// tokens.
pub fn of(
    attention: &AttentionShape,
    phase: Phase,
    pattern: &Pattern,
    [queries, keys]: [u64; 2],
) -> Form {
    let expands = match products(attention, [queries, keys]) {
        // How many pairs a sparse pattern leaves is not known here: it pays for sure where as many keys and
        // values are made as queries and outputs would take products instead.
        _ if pattern.is_by_head() => keys <= queries,
        Some([expanded, absorbed]) => expanded <= absorbed,
        None => true,
    };
    match all(attention, phase, pattern) {
        [Form::Expanded, ..] if expands => Form::Expanded,
        [.., form] => *form,
        [] => Form::Expanded,
    }
}

/// The forms that [`of`] may choose for calls of any lengths: those for which kernels are compiled.
///
/// Where all heads see the same, decode and sparse rows read few keys for each query, or few queries read each
/// key: making keys and values of latents would take longer than attention over them. Where heads see
/// different keys, none of them shares what it reads with others anyway.
pub fn all(attention: &AttentionShape, phase: Phase, pattern: &Pattern) -> &'static [Form] {
    let dense = || *pattern == OwnAttention { window: None }.sparsity().pattern;
    match (attention, phase) {
        (AttentionShape::Gqa { .. }, _) => &[Form::Expanded],
        (AttentionShape::Mla { .. }, Phase::Prefill) if pattern.is_by_head() => {
            &[Form::Expanded, Form::AbsorbedByHead]
        }
        (AttentionShape::Mla { .. }, Phase::Decode) if pattern.is_by_head() => {
            &[Form::AbsorbedByHead]
        }
        (AttentionShape::Mla { .. }, Phase::Prefill) if dense() => {
            &[Form::Expanded, Form::Absorbed]
        }
        (AttentionShape::Mla { .. }, Phase::Prefill | Phase::Decode) => &[Form::Absorbed],
    }
}

/// Why [`of`] chooses what it does, in one line for users; `None` for attention with one form.
pub fn reason(
    attention: &AttentionShape,
    phase: Phase,
    pattern: &Pattern,
    lengths: [u64; 2],
) -> Option<String> {
    let [expanded, absorbed] = products(attention, lengths)?;
    let form = of(attention, phase, pattern, lengths).name();
    let [queries, keys] = lengths;
    Some(match all(attention, phase, pattern) {
        [_] => match phase {
            Phase::Decode => format!("{form}: few queries read each latent"),
            Phase::Prefill => format!("{form}: queries of a sparse pattern read few latents"),
        },
        _ if pattern.is_by_head() => {
            format!("{form}: {queries} queries over {keys} latents, of which each head sees others")
        }
        _ => format!(
            "{form}: {queries} dense queries over {keys} latents take {:.3} TFLOP expanded, {:.3} absorbed",
            expanded as f64 / 1e12,
            absorbed as f64 / 1e12
        ),
    })
}

/// FLOP of the products of a layer that differ between the forms, for dense causal attention: expanded,
/// then absorbed; `None` for attention with one form.
///
/// Expanded, each key and value is made from a latent. Absorbed, the same matrices are applied to each query
/// and its output, and every pair takes the products of longer vectors.
fn products(attention: &AttentionShape, [queries, keys]: [u64; 2]) -> Option<[u128; 2]> {
    let AttentionShape::Mla {
        q_heads,
        q_lora_rank: _,
        kv_lora_rank,
        nope_dim,
        rope_dim,
        v_dim,
    } = *attention
    else {
        return None;
    };
    let [heads, rank, nope, rope, v] =
        [q_heads, kv_lora_rank, nope_dim, rope_dim, v_dim].map(u128::from);
    // Sequences have fewer tokens than that, and no products overflow.
    let [queries, keys] = [queries.min(keys), keys].map(|n| u128::from(n.min(1 << 32)));
    // The last query sees all keys, the one before it one less.
    let pairs = queries * keys - queries * queries.saturating_sub(1) / 2;
    let matrices = 2 * heads * rank * (nope + v);
    Some([
        keys * matrices + pairs * 2 * heads * (nope + rope + v),
        queries * matrices + pairs * 2 * heads * (rank + rope + rank),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::Sparsity;

    /// The heads of GLM-4.7-Flash.
    const GLM: AttentionShape = AttentionShape::Mla {
        q_heads: 20,
        q_lora_rank: Some(768),
        kv_lora_rank: 512,
        nope_dim: 192,
        rope_dim: 64,
        v_dim: 256,
    };

    #[test]
    fn whole_prompts_expand_and_small_chunks_absorb() {
        let dense = OwnAttention { window: None }.sparsity().pattern;
        let of = |phase, lengths| super::of(&GLM, phase, &dense, lengths);
        assert_eq!(of(Phase::Prefill, [8192, 8192]), Form::Expanded);
        assert_eq!(of(Phase::Prefill, [2048, 131_072]), Form::Expanded);
        assert_eq!(of(Phase::Prefill, [64, 131_072]), Form::Absorbed);
        assert_eq!(of(Phase::Decode, [1, 8192]), Form::Absorbed);
        let reason = |phase, lengths| reason(&GLM, phase, &dense, lengths).expect("two forms");
        let text = reason(Phase::Prefill, [8192, 8192]);
        assert!(text.starts_with("expanded: 8192 dense queries"), "{text}");
        assert!(reason(Phase::Decode, [1, 9]).contains("few queries"));
    }

    #[test]
    fn sparse_prompts_absorb() {
        let pattern = "block 64 causal & (local(1) | sink(1))";
        let pattern = Sparsity::parse("test", pattern).expect("a pattern").pattern;
        let of = |phase| super::of(&GLM, phase, &pattern, [8192, 8192]);
        assert_eq!([of(Phase::Prefill), of(Phase::Decode)], [Form::Absorbed; 2]);
        assert_eq!(all(&GLM, Phase::Prefill, &pattern), [Form::Absorbed]);
    }

    #[test]
    fn heads_that_see_other_keys_read_apart() {
        let pattern = "per_head { 0..3 => causal & local(1); else => causal }";
        let pattern = Sparsity::parse("test", pattern).expect("a pattern").pattern;
        let of = |phase, lengths| super::of(&GLM, phase, &pattern, lengths);
        assert_eq!(of(Phase::Prefill, [8192, 8192]), Form::Expanded);
        assert_eq!(of(Phase::Prefill, [8192, 16384]), Form::AbsorbedByHead);
        assert_eq!(of(Phase::Decode, [1, 1]), Form::AbsorbedByHead);
        let shape = GLM.kernel_shape(Form::AbsorbedByHead);
        assert_eq!((shape.kv_heads, shape.group, shape.head_dim), (20, 1, 576));
    }

    #[test]
    fn grouped_attention_has_one_form() {
        let attention = AttentionShape::Gqa {
            q_heads: 8,
            kv_heads: 2,
            head_dim: 64,
        };
        let dense = OwnAttention { window: None }.sparsity().pattern;
        for phase in [Phase::Prefill, Phase::Decode] {
            assert_eq!(of(&attention, phase, &dense, [9, 9]), Form::Expanded);
            assert_eq!(reason(&attention, phase, &dense, [9, 9]), None);
        }
    }
}
