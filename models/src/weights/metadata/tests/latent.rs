//! Latent attention, and experts that are chosen by sigmoids.

use super::*;
use butterfly_ir::model::{Biases, ExpertGroups, Scores};

/// The metadata of a small GLM-4.7-Flash.
fn glm() -> Vec<Entry> {
    let own: Vec<Entry> = vec![
        ("deepseek2.attention.head_count_kv", 1.into()),
        ("deepseek2.attention.key_length", 48.into()),
        ("deepseek2.attention.value_length", 32.into()),
        ("deepseek2.attention.key_length_mla", 40.into()),
        ("deepseek2.attention.value_length_mla", 24.into()),
        ("deepseek2.attention.kv_lora_rank", 32.into()),
        ("deepseek2.attention.q_lora_rank", 48.into()),
        ("deepseek2.rope.dimension_count", 16.into()),
        ("deepseek2.leading_dense_block_count", 1.into()),
        ("deepseek2.expert_count", 8.into()),
        ("deepseek2.expert_used_count", 2.into()),
        ("deepseek2.expert_shared_count", 2.into()),
        ("deepseek2.expert_feed_forward_length", 24.into()),
        ("deepseek2.expert_group_count", 4.into()),
        ("deepseek2.expert_group_used_count", 2.into()),
        ("deepseek2.expert_gating_func", 2.into()),
        ("deepseek2.expert_weights_norm", Stored::Bool(true)),
        ("deepseek2.expert_weights_scale", 1.8.into()),
    ];
    let all = of("deepseek2", vec![]);
    (own.into_iter()).fold(all, |all, (key, value)| with(all, key, value))
}

fn without(mut metadata: Vec<Entry>, keys: &[&str]) -> Vec<Entry> {
    metadata.retain(|(key, _)| {
        let name = key.strip_prefix("deepseek2.");
        name.is_none_or(|name| !keys.contains(&name))
    });
    metadata
}

fn shape(q_lora_rank: Option<u32>) -> AttentionShape {
    AttentionShape::Mla {
        q_heads: 4,
        q_lora_rank,
        kv_lora_rank: 32,
        nope_dim: 24,
        rope_dim: 16,
        v_dim: 24,
    }
}

#[test]
fn lengths_and_experts_are_read() {
    let (config, sizes) = read(&glm(), &[embedding()]).expect("read");
    assert_eq!(config.family, Family::Glm4MoeLite);
    assert_eq!(config.layers.len(), 3);
    assert_eq!(config.attention, shape(Some(48)));
    assert_eq!((config.biases, config.logit_scale), (Biases::None, None));
    let rope = config.rope.expect("rotated");
    // The conversion leaves neighbours together, as they are in the checkpoint.
    assert!(rope.interleaved);
    assert_eq!((rope.theta, rope.dims), (500_000.0, 16));
    assert_eq!(rope.scaling, RopeScaling::Default);
    let experts = sizes.experts.expect("experts");
    assert_eq!((experts.count, experts.chosen), (8, 2));
    assert_eq!((experts.intermediate, sizes.intermediate), (24, 128));
    assert_eq!(experts.dense, [0]);
    let shared = experts.shared.expect("a shared expert");
    assert_eq!((shared.intermediate, shared.gated), (48, false));
    let router = experts.router;
    assert_eq!((router.scores, router.biased), (Scores::Sigmoid, true));
    assert_eq!((router.normalised, router.scale), (true, 1.8));
    let groups = ExpertGroups {
        count: 4,
        chosen: 2,
    };
    assert_eq!(router.groups, Some(groups));

    // With a layer that predicts further tokens.
    let more = with(glm(), "deepseek2.nextn_predict_layers", 1.into());
    let (config, _) = read(&more, &[embedding()]).expect("read");
    assert_eq!(config.layers.len(), 2);
}

#[test]
fn what_files_leave_out_has_the_values_of_llama_cpp() {
    let less = without(
        glm(),
        &[
            "attention.q_lora_rank",
            "expert_group_count",
            "expert_group_used_count",
            "expert_weights_norm",
            "expert_weights_scale",
        ],
    );
    let (config, sizes) = read(&less, &[embedding()]).expect("read");
    assert_eq!(config.attention, shape(None));
    let router = sizes.experts.expect("experts").router;
    assert_eq!((router.normalised, router.scale), (false, 1.0));
    assert_eq!(router.groups, None);

    // Older files have no lengths but those of heads.
    let older = without(
        glm(),
        &["attention.key_length_mla", "attention.value_length_mla"],
    );
    let older = with(older, "deepseek2.attention.key_length", 40.into());
    let older = with(older, "deepseek2.attention.value_length", 24.into());
    let (config, _) = read(&older, &[embedding()]).expect("read");
    assert_eq!(config.attention, shape(Some(48)));

    // Without experts all layers are dense.
    let dense = without(glm(), &["expert_count", "expert_gating_func"]);
    let dense = with(dense, "deepseek2.leading_dense_block_count", 3.into());
    let (_, sizes) = read(&dense, &[embedding()]).expect("read");
    assert_eq!(sizes.experts.expect("experts").dense, [0, 1, 2]);
}

#[test]
fn corrected_scores_are_those_of_sigmoids() {
    let unsaid = without(glm(), &["expert_gating_func"]);
    let correction = Tensor::floats("blk.1.exp_probs_b.bias", &[8], &[0.0; 8]);
    let (_, sizes) = read(&unsaid, &[embedding(), correction]).expect("read");
    let router = sizes.experts.expect("experts").router;
    assert_eq!(router.scores, Scores::Sigmoid);
    // DeepSeek-V2.
    let error = refused(unsaid, &[embedding()]);
    let expected = "`deepseek2.expert_gating_func` is missing, and no layer has a tensor";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn yarn_scales_logits_of_latent_attention() {
    let yarn = |multiplier: Option<f32>| {
        let scaling: Vec<Entry> = vec![
            ("deepseek2.rope.scaling.type", "yarn".into()),
            ("deepseek2.rope.scaling.factor", 40.0.into()),
            ("deepseek2.rope.scaling.original_context_length", 128.into()),
        ];
        let key = "deepseek2.rope.scaling.yarn_log_multiplier";
        let multiplier: Option<Entry> = multiplier.map(|given| (key, given.into()));
        [glm(), scaling, multiplier.into_iter().collect()].concat()
    };
    for (multiplier, all) in [(0.1, 1.0), (0.0707, 0.707)] {
        let (config, _) = read(&yarn(Some(multiplier)), &[embedding()]).expect("read");
        let RopeScaling::Yarn {
            factor, amplitude, ..
        } = config.rope.expect("rotated").scaling
        else {
            panic!("not scaled")
        };
        assert_eq!((factor, amplitude), (40.0, 1.0));
        let expected = (0.1 * all * 40f64.ln() + 1.0).powi(2) / 40f64.sqrt();
        let scale = config.logit_scale.expect("a scale");
        assert!((scale - expected).abs() < 1e-9, "{scale} {expected}");
    }
    let error = refused(yarn(None), &[embedding()]);
    let expected = "`deepseek2.rope.scaling.yarn_log_multiplier` is missing";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn what_latent_attention_does_not_run_is_named() {
    for (key, value, expected) in [
        (
            "deepseek2.expert_gating_func",
            1.into(),
            "is 1: of this architecture, only sigmoid (2) runs",
        ),
        (
            "deepseek2.attention.key_length_mla",
            16.into(),
            "is 16, expected more than `deepseek2.rope.dimension_count`, 16",
        ),
        (
            "deepseek2.rope.dimension_count",
            15.into(),
            "is 15, expected an even number",
        ),
        ("deepseek2.attention.scale", 0.5.into(), "is 0.5"),
        (
            "deepseek2.attention.temperature_scale",
            0.1.into(),
            "is 0.1",
        ),
        (
            "deepseek2.attention.sliding_window",
            20.into(),
            "is 20: windows",
        ),
        (
            "deepseek2.expert_weights_scale",
            (-1.0).into(),
            "is -1, expected a number above 0",
        ),
        ("deepseek2.expert_count", 0.into(), "is 0"),
    ] {
        let error = refused(with(glm(), key, value), &[embedding()]);
        let expected = format!("`{key}` {expected}");
        assert!(error.contains(&expected), "{error}");
        assert!(error.contains(".gguf"), "{error}");
    }
    let error = refused(
        with(glm(), "deepseek2.expert_used_count", 5.into()),
        &[embedding()],
    );
    assert!(error.contains("at most 4"), "{error}");
    for missing in [
        "attention.kv_lora_rank",
        "expert_feed_forward_length",
        "expert_shared_count",
        "expert_used_count",
        "leading_dense_block_count",
        "rope.dimension_count",
    ] {
        let error = refused(without(glm(), &[missing]), &[embedding()]);
        let expected = format!("has no `deepseek2.{missing}`");
        assert!(error.contains(&expected), "{error}");
    }
}
