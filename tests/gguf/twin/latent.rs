//! Latent attention: what the conversion makes of its weights, and the metadata of such models.

use super::{Json, Value, Weight, swapped};

/// The weight that makes keys and values of latents as two: for each head the rows of keys, transposed, and those of
/// values. In the first layer it stays whole, as in older files; other tensors stay as they are.
pub(super) fn apart(config: &Json, weight: Weight) -> Vec<Weight> {
    let Some(at) = weight.name.strip_suffix(".kv_b_proj.weight") else {
        return vec![weight];
    };
    if at.contains(".layers.0.") {
        return vec![weight];
    }
    let size = |field: &str| config[field].as_u64().expect("a size") as usize;
    let [heads, nope, v] = ["num_attention_heads", "qk_nope_head_dim", "v_head_dim"].map(size);
    let rank = weight.shape[1];
    assert_eq!(weight.shape[0], heads * (nope + v), "{}", weight.name);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for head in weight.values.chunks((nope + v) * rank) {
        let (of_keys, of_values) = head.split_at(nope * rank);
        keys.extend(swapped(of_keys, [1, nope, rank, 1]));
        values.extend(of_values);
    }
    vec![
        Weight {
            name: format!("{at}.k_b_proj.weight"),
            shape: vec![heads, rank, nope],
            values: keys,
        },
        Weight {
            name: format!("{at}.v_b_proj.weight"),
            shape: vec![heads, v, rank],
            values,
        },
    ]
}

/// The keys that only models with latent attention have, or with other values. As of GLM-4.7-Flash, whose config does
/// not say how experts are scored, there is none for that.
pub(super) fn metadata(config: &Json) -> Vec<(&'static str, Option<Value>)> {
    let number = |field: &str| config[field].as_u64().map(|n| n as u32);
    let size = |field: &str| number(field).expect("a size");
    let (rank, rotated) = (size("kv_lora_rank"), size("qk_rope_head_dim"));
    let whole = |field: &str| number(field).map(Value::U32);
    let wide = whole("moe_intermediate_size").or(whole("intermediate_size"));
    let scale = config["routed_scaling_factor"].as_f64();
    let normalised = config["norm_topk_prob"].as_bool();
    vec![
        ("attention.head_count_kv", Some(1.into())),
        ("attention.key_length", Some((rank + rotated).into())),
        ("attention.value_length", Some(rank.into())),
        (
            "attention.key_length_mla",
            Some((size("qk_nope_head_dim") + rotated).into()),
        ),
        ("attention.value_length_mla", whole("v_head_dim")),
        ("attention.kv_lora_rank", Some(rank.into())),
        ("attention.q_lora_rank", whole("q_lora_rank")),
        ("rope.dimension_count", Some(rotated.into())),
        ("leading_dense_block_count", whole("first_k_dense_replace")),
        ("expert_count", whole("n_routed_experts")),
        ("expert_used_count", whole("num_experts_per_tok")),
        (
            "expert_shared_count",
            Some(number("n_shared_experts").unwrap_or(0).into()),
        ),
        ("expert_feed_forward_length", wide),
        (
            "expert_weights_scale",
            scale.map(|scale| Value::F32(scale as f32)),
        ),
        (
            "expert_weights_norm",
            normalised.filter(|is| *is).map(Value::Bool),
        ),
        ("expert_group_count", whole("n_group")),
        ("expert_group_used_count", whole("topk_group")),
    ]
}
