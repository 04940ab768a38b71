//! Qwen2, Mistral and Phi-3: windows of layers, biases, and the scaling `longrope`.

use super::*;
use butterfly_ir::model::OwnAttention;

fn layers(fixture: &str, changes: Value) -> Vec<LayerKind> {
    good(&changed(fixture, changes).to_string()).layers
}

fn windows(fixture: &str, changes: Value) -> Vec<Option<u32>> {
    let layers = layers(fixture, changes).into_iter();
    let own = layers.map(|kind| kind.own().expect("softmax attention").window);
    own.collect()
}

#[test]
fn every_layer_of_mistral_and_phi3_has_the_window_or_none() {
    for (fixture, default) in [(MISTRAL, Some(4096)), (PHI3, None)] {
        let few = |window: Value| json!({"num_hidden_layers": 3, "sliding_window": window});
        let read = |window| windows(fixture, few(window));
        assert_eq!(read(json!(20)), [Some(20); 3]);
        assert_eq!(read(json!(null)), [None; 3]);
        assert_eq!(read(json!("absent")), [default; 3]);
        // Sequences have fewer tokens than this.
        assert_eq!(read(json!(u32::MAX)), [None; 3]);
        // A list of layers may only say the same once more.
        let listed = |kind: &str, window: Value| json!({"num_hidden_layers": 2, "layer_types": [kind, kind], "sliding_window": window});
        let sliding = windows(fixture, listed("sliding_attention", json!(8)));
        assert_eq!(sliding, [Some(8); 2]);
        let full = windows(fixture, listed("full_attention", json!(null)));
        assert_eq!(full, [None; 2]);
    }
}

#[test]
fn layers_of_qwen2_have_windows_from_one_on_or_as_listed() {
    let with = |more: Value| {
        let mut changes = json!({"use_sliding_window": true, "num_hidden_layers": 4,
            "max_window_layers": 3, "sliding_window": 64});
        for (name, value) in more.as_object().expect("an object") {
            changes[name] = value.clone();
        }
        windows(QWEN2, changes)
    };
    let (all, w) = (None, Some(64));
    assert_eq!(with(json!({})), [all, all, all, w]);
    assert_eq!(with(json!({"max_window_layers": 0})), [w, w, w, w]);
    assert_eq!(with(json!({"max_window_layers": "absent"})), [all; 4]);
    assert_eq!(with(json!({"use_sliding_window": false})), [all; 4]);
    assert_eq!(with(json!({"sliding_window": null})), [all; 4]);
    let default = with(json!({"sliding_window": "absent"}));
    assert_eq!(default, [all, all, all, Some(4096)]);
    let (f, s) = ("full_attention", "sliding_attention");
    assert_eq!(with(json!({"layer_types": [s, f, f, s]})), [w, all, all, w]);
}

/// Layers with a window are replaced where they are named, or where all layers have one.
#[test]
fn full_attention_is_replaced_and_windows_are_not() {
    let layers = |json: &str, named: Option<Vec<u32>>| {
        let sparsity = Sparsity {
            swapped_layers: named,
            ..Sparsity::from(causal())
        };
        let swapped = swapped(&good(json), &sparsity).expect("layers");
        let layers = swapped.iter().map(|swapped| (swapped.layer, swapped.index));
        layers.collect::<Vec<_>>()
    };
    let config = json!({"use_sliding_window": true, "num_hidden_layers": 4,
        "max_window_layers": 2, "sliding_window": 64});
    let mixed = changed(QWEN2, config).to_string();
    assert_eq!(layers(&mixed, None), [(0, 0), (1, 1)]);
    assert_eq!(layers(&mixed, Some(vec![1, 3])), [(1, 0), (3, 1)]);
}

/// A layer's own attention is `causal`, with the window where there is one; where all layers have
/// one, a pattern replaces all of them.
#[test]
fn own_attention_is_a_pattern() {
    let model = good(MISTRAL);
    let own = model.layers[0].own().expect("softmax attention");
    let text = own.sparsity().pattern.to_string();
    assert_eq!(text, "causal & window(4096)");
    let full = OwnAttention { window: None };
    assert_eq!(full.sparsity().pattern.to_string(), "causal");
    let all = swapped(&model, &Sparsity::from(causal()));
    assert_eq!(all.expect("no layer is named").len(), 32);
}

#[test]
fn biases_are_those_of_the_family() {
    let biases = |fixture, given: Value| {
        let config = changed(fixture, json!({"attention_bias": given}));
        good(&config.to_string()).biases
    };
    for given in [json!("absent"), json!(false), json!(true)] {
        assert_eq!(biases(QWEN2, given), Biases::Inputs);
    }
    for fixture in [MISTRAL, PHI3] {
        for given in [json!("absent"), json!(false)] {
            assert_eq!(biases(fixture, given), Biases::None);
        }
    }
    assert_eq!(biases(LLAMA, json!(true)), Biases::All);
    assert_eq!(biases(LLAMA, json!("absent")), Biases::None);
    assert_eq!(good(GPT2).biases, Biases::All);
}

/// A phi3 config with `longrope` and heads of 16 elements, of which 12 rotate.
fn long(changes: Value) -> Value {
    let mut rope = json!({"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.25, 1.5, 2],
        "long_factor": [1.5, 2, 4.5, 12.25, 31, 62.5]});
    for (name, value) in changes.as_object().expect("an object") {
        rope[name] = value.clone();
    }
    let changes = json!({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 131072, "partial_rotary_factor": 0.75, "rope_scaling": rope});
    changed(PHI3, changes)
}

/// Amplitudes as `_compute_longrope_parameters` of transformers 5.24 gives them.
#[test]
fn longrope_has_factors_and_an_amplitude() {
    let read = |changes| {
        let rope = good(&long(changes).to_string()).rope.expect("it rotates");
        assert_eq!(rope.dims, 12);
        rope.scaling
    };
    let RopeScaling::LongRope {
        short,
        long,
        original_max,
        amplitude,
    } = read(json!({}))
    else {
        panic!("another scaling");
    };
    assert_eq!(short, [1.0, 1.05, 1.1, 1.25, 1.5, 2.0]);
    assert_eq!(long, [1.5, 2.0, 4.5, 12.25, 31.0, 62.5]);
    assert_eq!(original_max, 4096);
    assert!((amplitude - 1.190_238_071_423_808_3).abs() < 1e-12);
    for (given, expected) in [
        (json!({"attention_factor": 1.25}), 1.25),
        (json!({"factor": 16.0}), 1.154_700_538_379_251_7),
        (json!({"factor": 0.5}), 1.0),
        (json!({"type": "su"}), 1.190_238_071_423_808_3),
        (json!({"rope_type": "yarn"}), 1.190_238_071_423_808_3),
    ] {
        let RopeScaling::LongRope { amplitude, .. } = read(given.clone()) else {
            panic!("another scaling");
        };
        assert!((amplitude - expected).abs() < 1e-12, "{given}");
    }
}

#[test]
fn bad_windows_and_factors() {
    let count = "a whole number from 1 to 4294967295";
    let numbers = "a list of 6 numbers above 0";
    let (f, s) = ("full_attention", "sliding_attention");
    let few = |more: Value| {
        let mut changes = json!({"num_hidden_layers": 2});
        for (name, value) in more.as_object().expect("an object") {
            changes[name] = value.clone();
        }
        changes
    };
    let cases = [
        (
            changed(MISTRAL, json!({"sliding_window": 0})),
            format!("`sliding_window` is 0: give {count}"),
        ),
        (
            changed(PHI3, json!({"sliding_window": "4k"})),
            format!("`sliding_window` is \"4k\": give {count}"),
        ),
        (
            changed(MISTRAL, few(json!({"layer_types": [s, f]}))),
            "`layer_types[1]` is \"full_attention\", which is not supported: give \
             sliding_attention: all layers have the window of `sliding_window`, or none if it is \
             null"
                .to_string(),
        ),
        (
            changed(
                MISTRAL,
                few(json!({"layer_types": [s, s], "sliding_window": null})),
            ),
            "`layer_types[0]` is \"sliding_attention\", which is not supported: give \
             full_attention: all layers have the window of `sliding_window`, or none if it is null"
                .to_string(),
        ),
        (
            changed(QWEN2, few(json!({"layer_types": [f, s]}))),
            "`layer_types[1]` is \"sliding_attention\", which is not supported: give \
             full_attention, or a window by `use_sliding_window` and `sliding_window`"
                .to_string(),
        ),
        (
            changed(
                QWEN2,
                few(json!({"layer_types": [f, 3], "use_sliding_window": true})),
            ),
            "`layer_types[1]` is 3: give full_attention or sliding_attention".to_string(),
        ),
        (
            changed(QWEN2, json!({"use_sliding_window": 1})),
            "`use_sliding_window` is 1: give true or false".to_string(),
        ),
        (
            changed(
                QWEN2,
                json!({"use_sliding_window": true, "max_window_layers": -1}),
            ),
            "`max_window_layers` is -1: give a whole number from 0 to 4294967295".to_string(),
        ),
        (
            changed(MISTRAL, json!({"attention_bias": true})),
            "`attention_bias` is true, which is not supported: give false".to_string(),
        ),
        (
            long(json!({"long_factor": [1, 2, 3]})),
            format!("`rope_scaling.long_factor` is [1,2,3]: give {numbers}"),
        ),
        (
            long(json!({"short_factor": [1, 1, 1, 1, 1, 0]})),
            format!("`rope_scaling.short_factor` is [1,1,1,1,1,0]: give {numbers}"),
        ),
        (
            long(json!({"short_factor": null})),
            format!("`rope_scaling.short_factor` is missing: give {numbers}"),
        ),
        (
            long(json!({"attention_factor": -1})),
            "`rope_scaling.attention_factor` is -1: give a number above 0".to_string(),
        ),
        (
            long(json!({"type": "dynamic"})),
            "`rope_scaling.type` is \"dynamic\", which is not supported: give default, linear, \
             llama3 or longrope"
                .to_string(),
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(
            message(&config.to_string()),
            format!("config.json: {expected}")
        );
    }
    let mut one = long(json!({}));
    one["original_max_position_embeddings"] = json!(1);
    assert_eq!(
        message(&one.to_string()),
        "config.json: `original_max_position_embeddings` is 1: give at least 2 tokens"
    );
}
