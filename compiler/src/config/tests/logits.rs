//! What gemma3 and gpt-oss do with logits and windows, and what they take for absent fields.

use super::*;
use crate::config::sizes;
use butterfly_ir::model::ModelSizes;

fn config(family: &str, changes: Value) -> String {
    let least = json!({"model_type": family, "num_hidden_layers": 6, "num_attention_heads": 8,
        "hidden_size": 64, "intermediate_size": 96, "vocab_size": 256,
        "max_position_embeddings": 512});
    changed(&least.to_string(), changes).to_string()
}

fn model(family: &str, changes: Value) -> ModelConfig {
    good(&config(family, changes))
}

fn sizes_of(family: &str, changes: Value) -> ModelSizes {
    let text = config(family, changes);
    let sizes = sizes("config.json", &text, &good(&text));
    sizes.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn sinks_are_those_of_gpt_oss() {
    assert!(model("gpt_oss", json!({})).sinks);
    for family in [
        "llama",
        "mistral",
        "gemma3_text",
        "qwen3_moe",
        "qwen3_5_moe",
    ] {
        assert!(!model(family, json!({})).sinks, "{family}");
    }
    // Its projections have biases whatever the config says.
    for given in [json!("absent"), json!(false), json!(true)] {
        let model = model("gpt_oss", json!({"attention_bias": given}));
        assert_eq!(model.biases, Biases::All);
    }
}

#[test]
fn logits_are_scaled_and_capped() {
    let scale = |family, changes| model(family, changes).kernel_shape(Form::Expanded).scale;
    assert_eq!(scale("gemma3_text", json!({})), 1.0 / 16.0);
    // That of the heads, which have 32 elements, does not count.
    let given = json!({"query_pre_attn_scalar": 24, "head_dim": 32});
    assert_eq!(scale("gemma3_text", given.clone()), 1.0 / 24f64.sqrt());
    let other = model("gemma3_text", given.clone()).kernel_shape(Form::Absorbed);
    assert_eq!(other.scale, 1.0 / 24f64.sqrt());
    assert_eq!(scale("llama", given.clone()), 1.0 / 32f64.sqrt());
    assert_eq!(model("llama", given).logit_scale, None);

    let cap = |given: Value| model("gemma3_text", json!({"attn_logit_softcapping": given})).softcap;
    assert_eq!(cap(json!(50.0)), Some(50.0));
    assert_eq!(cap(json!(null)), None);
    assert_eq!(cap(json!("absent")), None);
    let last = |given: Value| {
        let sizes = sizes_of("gemma3_text", json!({"final_logit_softcapping": given}));
        sizes.logit_softcap
    };
    assert_eq!(last(json!(30)), Some(30.0));
    assert_eq!(last(json!(null)), None);

    for field in ["query_pre_attn_scalar", "attn_logit_softcapping"] {
        for given in [json!(0), json!(-1), json!("30")] {
            assert_eq!(
                message(&config("gemma3_text", json!({field: given}))),
                format!("config.json: `{field}` is {given}: give a number above 0")
            );
        }
    }
    let text = config("gemma3_text", json!({"final_logit_softcapping": 0}));
    let error = sizes("config.json", &text, &good(&text)).expect_err("the config is bad");
    assert_eq!(
        error.to_string(),
        "config.json: `final_logit_softcapping` is 0: give a number above 0"
    );
}

#[test]
fn windows_lie_between_full_attention() {
    let windows = |family, changes| {
        let layers = model(family, changes).layers.into_iter();
        let own = layers.map(|kind| kind.own().expect("softmax attention").window);
        own.collect::<Vec<_>>()
    };
    let w = Some(4096);
    assert_eq!(windows("gemma3_text", json!({})), [w, w, w, w, w, None]);
    let w = Some(128);
    assert_eq!(windows("gpt_oss", json!({})), [w, None, w, None, w, None]);
    let w = Some(16);
    let given = json!({"sliding_window": 16, "sliding_window_pattern": 3});
    for family in ["gemma3_text", "gpt_oss"] {
        assert_eq!(windows(family, given.clone()), [w, w, None, w, w, None]);
        assert_eq!(windows(family, json!({"sliding_window": null})), [None; 6]);
        let (f, s) = ("full_attention", "sliding_attention");
        let listed = json!({"sliding_window": 16, "layer_types": [f, f, s, f, s, s]});
        assert_eq!(windows(family, listed), [None, None, w, None, w, w]);
        assert_eq!(
            message(&config(family, json!({"sliding_window_pattern": 0}))),
            "config.json: `sliding_window_pattern` is 0: give a whole number from 1 to 4294967295"
        );
        assert_eq!(
            message(&config(family, json!({"sliding_window": 0}))),
            "config.json: `sliding_window` is 0: give a whole number from 1 to 4294967295"
        );
    }
}

/// Layers that see later tokens, as those of EmbeddingGemma do, are no layers of a language model.
#[test]
fn attention_in_both_directions_is_refused() {
    let field = "use_bidirectional_attention";
    for given in [json!(false), json!(null), json!("absent")] {
        let read = model("gemma3_text", json!({field: given}));
        assert_eq!(read, model("gemma3_text", json!({})));
    }
    let refused = |given: Value| config("gemma3_text", json!({field: given}));
    assert_eq!(
        message(&refused(json!(true))),
        format!("config.json: `{field}` is true, which is not supported: give false")
    );
    assert_eq!(
        message(&refused(json!("all"))),
        format!("config.json: `{field}` is \"all\": give true or false")
    );
    let text: Value = serde_json::from_str(&refused(json!(true))).expect("JSON");
    let nested = json!({"model_type": "gemma3", "text_config": text});
    assert_eq!(
        message(&nested.to_string()),
        format!("config.json: `text_config.{field}` is true, which is not supported: give false")
    );
}

/// `Gemma3TextConfig` of transformers 5.24 ties the output projection to the embedding, and checkpoints of such a
/// model leave the field out.
#[test]
fn gemma3_is_tied_by_default() {
    assert!(sizes_of("gemma3_text", json!({})).tied);
    assert!(!sizes_of("gemma3_text", json!({"tie_word_embeddings": false})).tied);
    assert!(!sizes_of("gpt_oss", json!({})).tied);
}

/// `GptOssConfig` of transformers 5.24 has this rotation where the config has none.
#[test]
fn gpt_oss_is_scaled_by_default() {
    let rope = model("gpt_oss", json!({})).rope.expect("it rotates");
    let given = json!({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": false, "original_max_position_embeddings": 4096});
    let given = model("gpt_oss", json!({"rope_parameters": given})).rope;
    assert_eq!(rope.theta, 150_000.0);
    assert_eq!(Some(rope), given);
}

/// `yarn_apply_mscale` of transformers: 0.1 ln(40) + 1 squared, for a head of 256.
#[test]
fn a_scaled_rotation_scales_the_logits_of_latent_attention() {
    let scale = |rope: Value| {
        let changes = json!({"rope_parameters": rope, "num_key_value_heads": 8});
        model("glm4_moe_lite", changes)
            .kernel_shape(Form::Expanded)
            .scale
    };
    let yarn = |all: f64| {
        json!({"rope_type": "yarn", "factor": 40.0, "rope_theta": 10000.0, "mscale": 1.0,
            "mscale_all_dim": all, "original_max_position_embeddings": 64})
    };
    assert_eq!(scale(json!({"rope_type": "default"})), 0.0625);
    let factor = 0.1 * 40f64.ln() + 1.0;
    assert!((scale(yarn(1.0)) - 0.0625 * factor * factor).abs() < 1e-12);
}
