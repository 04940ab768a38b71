//! Layers of experts: what configs say of them, the defaults of families, and configs that are refused.

use super::*;
use crate::config::sizes;
use butterfly_ir::model::{
    ExpertGroups, ExpertsShape, FeedForwardGate, ModelSizes, Router, Scores, SharedExpert,
};

/// A config of four layers that gives what every family needs, with `changes` put over it.
fn config(family: &str, changes: Value) -> String {
    let least = json!({"model_type": family, "num_hidden_layers": 4, "num_attention_heads": 8,
        "hidden_size": 64, "intermediate_size": 96, "vocab_size": 256,
        "max_position_embeddings": 512});
    changed(&least.to_string(), changes).to_string()
}

fn read_sizes(family: &str, changes: Value) -> ModelSizes {
    let text = config(family, changes);
    let model = good(&text);
    sizes("config.json", &text, &model).unwrap_or_else(|error| panic!("{error}"))
}

fn experts(family: &str, changes: Value) -> ExpertsShape {
    read_sizes(family, changes).experts.expect("experts")
}

fn refused(text: &str) -> String {
    let model = good(text);
    let error = sizes("config.json", text, &model).expect_err("the config is bad");
    error.to_string()
}

#[test]
fn absent_fields_have_the_defaults_of_the_family() {
    let qwen3 = ExpertsShape {
        count: 128,
        chosen: 8,
        intermediate: 768,
        shared: None,
        router: Router {
            scores: Scores::Softmax,
            biased: false,
            groups: None,
            normalised: false,
            scale: 1.0,
        },
        dense: vec![],
    };
    let normalised = Router {
        normalised: true,
        ..qwen3.router
    };
    let qwen35 = ExpertsShape {
        count: 256,
        intermediate: 512,
        shared: Some(SharedExpert {
            intermediate: 512,
            gated: true,
        }),
        router: normalised,
        ..qwen3.clone()
    };
    let glm = ExpertsShape {
        count: 64,
        chosen: 4,
        intermediate: 1536,
        shared: Some(SharedExpert {
            intermediate: 1536,
            gated: false,
        }),
        router: Router {
            scores: Scores::Sigmoid,
            biased: true,
            scale: 1.8,
            ..normalised
        },
        dense: vec![0],
    };
    let gpt_oss = ExpertsShape {
        chosen: 4,
        intermediate: 2880,
        router: normalised,
        ..qwen3.clone()
    };
    let absent = json!({"intermediate_size": "absent"});
    for (family, changes, expected) in [
        ("qwen3_moe", json!({}), &qwen3),
        ("qwen3_5_moe", json!({}), &qwen35),
        ("qwen3_5_moe_text", json!({}), &qwen35),
        ("glm4_moe_lite", json!({}), &glm),
        ("gpt_oss", absent.clone(), &gpt_oss),
    ] {
        assert_eq!(&experts(family, changes), expected, "{family}");
    }
    for family in ["llama", "mistral", "gemma3_text"] {
        assert_eq!(read_sizes(family, json!({})).experts, None, "{family}");
    }
    // What no layer needs may be absent.
    for (family, size) in [("qwen3_moe", 768), ("qwen3_5_moe", 512), ("gpt_oss", 2880)] {
        let sizes = read_sizes(family, absent.clone());
        assert_eq!(sizes.intermediate, size, "{family}");
    }
}

#[test]
fn fields_count() {
    let given = json!({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": true, "shared_expert_intermediate_size": 40,
        "routed_scaling_factor": 3.0, "n_group": 2});
    let qwen3 = experts("qwen3_moe", given.clone());
    assert_eq!((qwen3.count, qwen3.chosen), (8, 2));
    assert_eq!((qwen3.intermediate, qwen3.shared), (24, None));
    assert!(qwen3.router.normalised);
    // Fields of other families say nothing.
    assert_eq!((qwen3.router.scale, qwen3.router.groups), (1.0, None));
    let shared = experts("qwen3_5_moe", given).shared.expect("it is shared");
    assert_eq!(shared.intermediate, 40);
    let always = experts("qwen3_5_moe", json!({"norm_topk_prob": false}));
    assert!(always.router.normalised);

    let count = |changes| experts("qwen3_moe", changes).count;
    assert_eq!(count(json!({"num_local_experts": 16})), 16);
    let both = json!({"num_experts": 32, "num_local_experts": 16});
    assert_eq!(count(both), 32);
    let gpt_oss = json!({"num_local_experts": 32, "num_experts": 16, "intermediate_size": 40});
    let gpt_oss = experts("gpt_oss", gpt_oss);
    assert_eq!((gpt_oss.count, gpt_oss.intermediate), (32, 40));

    let glm = json!({"n_routed_experts": 16, "num_experts_per_tok": 8, "n_group": 4,
        "topk_group": 2, "n_shared_experts": 3, "moe_intermediate_size": 32,
        "routed_scaling_factor": 2.5, "norm_topk_prob": false});
    let glm = experts("glm4_moe_lite", glm);
    let groups = ExpertGroups {
        count: 4,
        chosen: 2,
    };
    assert_eq!((glm.count, glm.chosen), (16, 8));
    assert_eq!(glm.router.groups, Some(groups));
    assert_eq!((glm.router.scale, glm.router.normalised), (2.5, false));
    assert_eq!(glm.shared.map(|shared| shared.intermediate), Some(96));
    let none = experts("glm4_moe_lite", json!({"n_shared_experts": 0}));
    assert_eq!(none.shared, None);
}

#[test]
fn layers_without_experts() {
    let dense = |family, changes| experts(family, changes).dense;
    for (changes, expected) in [
        (json!({"mlp_only_layers": null}), vec![]),
        (json!({"mlp_only_layers": []}), vec![]),
        (json!({"mlp_only_layers": [2, 0]}), vec![0, 2]),
        (json!({"decoder_sparse_step": 2}), vec![0, 2]),
        (json!({"decoder_sparse_step": 3}), vec![0, 1, 3]),
        (json!({"decoder_sparse_step": 9}), vec![0, 1, 2, 3]),
        (
            json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
            vec![0, 2, 3],
        ),
    ] {
        assert_eq!(dense("qwen3_moe", changes.clone()), expected, "{changes}");
        for family in ["qwen3_5_moe", "gpt_oss"] {
            assert_eq!(dense(family, changes.clone()), [0u32; 0], "{family}");
        }
    }
    let (d, s) = ("dense", "sparse");
    for (changes, expected) in [
        (json!({"mlp_layer_types": [s, d, s, d]}), vec![1, 3]),
        (json!({"mlp_layer_types": [s, s, s, s]}), vec![]),
        (json!({"first_k_dense_replace": 3}), vec![0, 1, 2]),
        (json!({"first_k_dense_replace": 0}), vec![]),
        (json!({"first_k_dense_replace": 9}), vec![0, 1, 2, 3]),
        (
            json!({"first_k_dense_replace": 3, "mlp_layer_types": [s, s, s, d]}),
            vec![3],
        ),
    ] {
        assert_eq!(
            dense("glm4_moe_lite", changes.clone()),
            expected,
            "{changes}"
        );
    }
    // Dense layers have a size of their own.
    let sizes = read_sizes("qwen3_moe", json!({"mlp_only_layers": [1]}));
    assert_eq!(sizes.intermediate, 96);
    let text = config(
        "qwen3_moe",
        json!({"mlp_only_layers": [1], "intermediate_size": "absent"}),
    );
    assert_eq!(
        refused(&text),
        "config.json: `intermediate_size` is missing: give a whole number of at least 1"
    );
}

#[test]
fn gates_of_families() {
    let gate = |family, changes| read_sizes(family, changes).gate;
    let clamped = |alpha, limit| FeedForwardGate::Clamped { alpha, limit };
    assert_eq!(gate("gpt_oss", json!({})), clamped(1.702, 7.0));
    let given = json!({"swiglu_alpha": 2, "swiglu_limit": 10.5});
    assert_eq!(gate("gpt_oss", given.clone()), clamped(2.0, 10.5));
    for family in ["qwen3_moe", "qwen3_5_moe", "glm4_moe_lite", "llama"] {
        assert_eq!(gate(family, given.clone()), FeedForwardGate::Silu);
    }
    assert_eq!(gate("gemma3_text", json!({})), FeedForwardGate::Gelu);
}

#[test]
fn experts_that_are_refused() {
    let count = "a whole number from 1 to 4294967295";
    let whole = "a whole number from 0 to 4294967295";
    let above = "a number above 0";
    let words = "a list of 4 entries, each \"dense\" or \"sparse\"";
    let (qwen3, qwen35, glm, gpt_oss) = ("qwen3_moe", "qwen3_5_moe", "glm4_moe_lite", "gpt_oss");
    let cases = [
        (qwen3, json!({"num_experts": 0}), count.to_string()),
        (qwen3, json!({"num_local_experts": 0}), count.to_string()),
        (qwen3, json!({"num_experts": "8"}), count.to_string()),
        (
            qwen3,
            json!({"num_experts": 4097}),
            "at most 4096 experts".to_string(),
        ),
        (glm, json!({"n_routed_experts": -1}), count.to_string()),
        (qwen3, json!({"num_experts_per_tok": 0}), count.to_string()),
        (
            qwen3,
            json!({"num_experts_per_tok": 129}),
            "at most 128, of which experts are chosen".to_string(),
        ),
        (
            qwen3,
            json!({"moe_intermediate_size": 0}),
            count.to_string(),
        ),
        (
            qwen3,
            json!({"norm_topk_prob": "yes"}),
            "true or false".to_string(),
        ),
        (qwen3, json!({"decoder_sparse_step": 0}), count.to_string()),
        (
            qwen3,
            json!({"mlp_only_layers": [0, 4]}),
            "a list of layers below 4".to_string(),
        ),
        (
            qwen3,
            json!({"mlp_only_layers": [-1]}),
            "a list of layers below 4".to_string(),
        ),
        (
            qwen3,
            json!({"mlp_only_layers": ["0"]}),
            "a list of layers below 4".to_string(),
        ),
        (qwen3, json!({"mlp_only_layers": 3}), "a list".to_string()),
        (
            qwen35,
            json!({"shared_expert_intermediate_size": 0}),
            count.to_string(),
        ),
        (
            glm,
            json!({"n_group": 5}),
            "a divisor of the 64 experts".to_string(),
        ),
        (glm, json!({"n_group": 0}), count.to_string()),
        (
            glm,
            json!({"topk_group": 2}),
            "at most `n_group`, which is 1".to_string(),
        ),
        (glm, json!({"n_shared_experts": -1}), whole.to_string()),
        (glm, json!({"routed_scaling_factor": 0}), above.to_string()),
        (
            glm,
            json!({"first_k_dense_replace": 1.5}),
            whole.to_string(),
        ),
        (
            glm,
            json!({"mlp_layer_types": ["dense", "sparse"]}),
            words.to_string(),
        ),
        (
            glm,
            json!({"mlp_layer_types": ["dense", "sparse", "mixed", "sparse"]}),
            words.to_string(),
        ),
        (
            glm,
            json!({"mlp_layer_types": ["dense", "sparse", 1, "sparse"]}),
            words.to_string(),
        ),
        (
            glm,
            json!({"mlp_layer_types": "sparse"}),
            "a list".to_string(),
        ),
        (gpt_oss, json!({"swiglu_limit": 0}), above.to_string()),
        (gpt_oss, json!({"swiglu_alpha": "1"}), above.to_string()),
    ];
    for (family, changes, expected) in cases {
        let (field, given) = changes
            .as_object()
            .and_then(|all| all.iter().next())
            .expect("a change");
        let text = config(family, changes.clone());
        let says =
            |prefix: &str| format!("config.json: `{prefix}{field}` is {given}: give {expected}");
        assert_eq!(refused(&text), says(""));
        let inner: Value = serde_json::from_str(&text).expect("JSON");
        let nested = json!({"text_config": inner}).to_string();
        assert_eq!(refused(&nested), says("text_config."));
    }
}

/// Values that are wrong only together.
#[test]
fn numbers_of_experts_that_contradict() {
    let refused = |family, changes| refused(&config(family, changes));
    assert_eq!(
        refused("qwen3_moe", json!({"num_experts": 4})),
        "config.json: `num_experts_per_tok` is 8: give at most 4, of which experts are chosen"
    );
    assert_eq!(
        refused(
            "glm4_moe_lite",
            json!({"n_group": 16, "topk_group": 1, "num_experts_per_tok": 5})
        ),
        "config.json: `num_experts_per_tok` is 5: give at most 4, of which experts are chosen"
    );
    assert_eq!(
        refused("glm4_moe_lite", json!({"n_group": 2, "topk_group": 3})),
        "config.json: `topk_group` is 3: give at most `n_group`, which is 2"
    );
    assert_eq!(
        refused("qwen3_moe", json!({"hidden_act": "gelu"})),
        "config.json: `hidden_act` is \"gelu\", which is not supported: give silu"
    );
    assert_eq!(
        refused("gemma3_text", json!({"hidden_activation": "gelu"})),
        "config.json: `hidden_activation` is \"gelu\", which is not supported: give gelu_pytorch_tanh"
    );
}
