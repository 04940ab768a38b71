//! Configs that are refused, and the messages.

use super::*;

#[test]
fn bad_json() {
    let cases = [
        (
            "{\n  \"a\": 1,\n}",
            "config.json: line 3, column 1: trailing comma: \
             give the config.json of a Hugging Face model",
        ),
        (
            "[1]",
            "config.json: holds [1]: give a JSON object, the config.json of a Hugging Face model",
        ),
    ];
    for (json, expected) in cases {
        assert_eq!(message(json), expected);
    }
}

#[test]
fn bad_fields() {
    let count = "a whole number from 1 to 4294967295";
    let kinds = "default, linear, llama3 or yarn";
    let types = "one of gpt2, llama, mistral, phi3, qwen2, qwen3, qwen3_moe, qwen3_5, \
                 qwen3_5_text, qwen3_5_moe, qwen3_5_moe_text, glm4_moe_lite, gemma3_text, gemma3 \
                 or gpt_oss";
    let sliding = changed(QWEN3, json!({}))["layer_types"]
        .as_array()
        .map(|types| [vec![json!("sliding_attention")], types[1..].to_vec()].concat());
    let cases = [
        (
            LLAMA,
            json!({"num_attention_heads": "absent"}),
            "`num_attention_heads` is missing: give a whole number of at least 1".to_string(),
        ),
        (
            LLAMA,
            json!({"max_position_embeddings": null}),
            "`max_position_embeddings` is missing: give a whole number of at least 1".to_string(),
        ),
        (
            LLAMA,
            json!({"num_attention_heads": "32"}),
            format!("`num_attention_heads` is \"32\": give {count}"),
        ),
        (
            LLAMA,
            json!({"num_attention_heads": 32.5}),
            format!("`num_attention_heads` is 32.5: give {count}"),
        ),
        (
            LLAMA,
            json!({"num_hidden_layers": 0}),
            format!("`num_hidden_layers` is 0: give {count}"),
        ),
        (
            LLAMA,
            json!({"num_key_value_heads": -8}),
            format!("`num_key_value_heads` is -8: give {count}"),
        ),
        (
            LLAMA,
            json!({"num_hidden_layers": 4_000_000_000u32}),
            "`num_hidden_layers` is 4000000000, which is not supported: \
             give at most 4096 layers"
                .to_string(),
        ),
        (
            LLAMA,
            json!({"num_attention_heads": 65_537}),
            "`num_attention_heads` is 65537, which is not supported: give at most 65536 heads"
                .to_string(),
        ),
        (
            GPT2,
            json!({"n_head": 4_294_967_295u32}),
            "`n_head` is 4294967295, which is not supported: give at most 65536 heads".to_string(),
        ),
        (
            GLM,
            json!({"num_attention_heads": 4_294_967_295u32}),
            "`num_attention_heads` is 4294967295, which is not supported: \
             give at most 65536 heads"
                .to_string(),
        ),
        (
            LLAMA,
            json!({"attention_bias": "no"}),
            "`attention_bias` is \"no\": give true or false".to_string(),
        ),
        (
            LLAMA,
            json!({"rms_norm_eps": 0.0}),
            "`rms_norm_eps` is 0.0: give a number above 0".to_string(),
        ),
        (
            LLAMA,
            json!({"num_key_value_heads": 5}),
            "`num_attention_heads` is 32, `num_key_value_heads` is 5: \
             give a number of heads that is a multiple of the kv heads"
                .to_string(),
        ),
        (
            LLAMA,
            json!({"head_dim": 100}),
            "`head_dim` is 100: give a head size that is a multiple of 8, at most 576".to_string(),
        ),
        (
            LLAMA,
            json!({"head_dim": 584}),
            "`head_dim` is 584: give a head size that is a multiple of 8, at most 576".to_string(),
        ),
        (
            LLAMA,
            json!({"head_dim": "absent", "hidden_size": 3200}),
            "`hidden_size / num_attention_heads` is 100: \
             give a head size that is a multiple of 8, at most 576"
                .to_string(),
        ),
        (
            LLAMA,
            json!({"head_dim": "absent", "hidden_size": 4097}),
            "`hidden_size` is 4097, not a multiple of `num_attention_heads`, which is 32: \
             give a hidden size that divides into heads"
                .to_string(),
        ),
        (
            LLAMA,
            json!({"model_type": "mamba"}),
            format!("`model_type` is \"mamba\", which is not supported: give {types}"),
        ),
        (
            LLAMA,
            json!({"model_type": "absent"}),
            format!("`model_type` is missing: give {types}"),
        ),
        (
            LLAMA,
            json!({"dtype": "float8"}),
            "`dtype` is \"float8\": give float32, float16 or bfloat16".to_string(),
        ),
        (
            LLAMA,
            json!({"rope_parameters": {"rope_type": "ntk", "factor": 4.0}}),
            format!("`rope_parameters.rope_type` is \"ntk\", which is not supported: give {kinds}"),
        ),
        (
            LLAMA,
            json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
            format!("`rope_scaling.type` is \"dynamic\", which is not supported: give {kinds}"),
        ),
        (
            LLAMA,
            json!({"rope_scaling": {"rope_type": "longrope"}}),
            format!(
                "`rope_scaling.rope_type` is \"longrope\", which is not supported: give {kinds}"
            ),
        ),
        (
            LLAMA,
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "`rope_scaling.factor` is missing: give a number above 0".to_string(),
        ),
        (
            LLAMA,
            json!({"rope_parameters": {"full_attention": {}}}),
            "`rope_parameters.full_attention` is {}, which is not supported: \
             give one rotation for all layers"
                .to_string(),
        ),
        (
            LLAMA,
            json!({"rope_theta": -1, "rope_parameters": null}),
            "`rope_theta` is -1: give a number above 0".to_string(),
        ),
        (
            LLAMA,
            json!({"partial_rotary_factor": 1.5}),
            "`partial_rotary_factor` is 1.5: give a factor of at most 1 that rotates an even \
             number of the 128 elements"
                .to_string(),
        ),
        (
            QWEN3,
            json!({"use_sliding_window": true}),
            "`use_sliding_window` is true, which is not supported: \
             give false: a pattern can have a window instead"
                .to_string(),
        ),
        (
            QWEN3,
            json!({"layer_types": sliding}),
            "`layer_types[0]` is \"sliding_attention\", which is not supported: \
             give full_attention"
                .to_string(),
        ),
        (
            QWEN35,
            json!({"num_hidden_layers": 31}),
            "`layer_types` has 32 entries, `num_hidden_layers` is 31: \
             give one entry for each layer"
                .to_string(),
        ),
        (
            QWEN35,
            json!({"num_hidden_layers": 1, "layer_types": ["mamba"]}),
            "`layer_types[0]` is \"mamba\": give full_attention or linear_attention".to_string(),
        ),
        (
            QWEN35,
            json!({"layer_types": "absent", "full_attention_interval": 0}),
            format!("`full_attention_interval` is 0: give {count}"),
        ),
        (
            GLM,
            json!({"kv_lora_rank": 520}),
            "`kv_lora_rank + qk_rope_head_dim` is 584: \
             give a head size that is a multiple of 8, at most 576"
                .to_string(),
        ),
        (
            GLM,
            json!({"num_key_value_heads": 4}),
            "`num_key_value_heads` is 4, which is not supported: \
             give 20, as `num_attention_heads`: latent attention has no groups"
                .to_string(),
        ),
        (
            GPT2,
            json!({"n_positions": "absent"}),
            "`n_positions` is missing: give a whole number of at least 1".to_string(),
        ),
        (
            GPT2,
            json!({"scale_attn_weights": false}),
            "`scale_attn_weights` is false, which is not supported: give true".to_string(),
        ),
    ];
    for (fixture, changes, expected) in cases {
        let config = changed(fixture, changes);
        assert_eq!(
            message(&config.to_string()),
            format!("config.json: {expected}")
        );
        let nested = message(&json!({"text_config": config}).to_string());
        assert!(nested.starts_with("config.json: `text_config."), "{nested}");
    }
    let nested = json!({"text_config": changed(LLAMA, json!({"num_key_value_heads": 5}))});
    assert_eq!(
        message(&nested.to_string()),
        "config.json: `text_config.num_attention_heads` is 32, `text_config.num_key_value_heads` \
         is 5: give a number of heads that is a multiple of the kv heads"
    );
}
