//! The configs of nine models, and their older spellings; `bad` has configs that are refused,
//! `experts`, `logits`, `rotations` and `windows` what sets some families apart.

mod bad;
mod experts;
mod logits;
mod rotations;
mod windows;

use super::{read, swapped};
use butterfly_ir::model::{
    AttentionShape, Biases, Family, Form, KernelShape, LayerKind, ModelConfig, Rope, RopeScaling,
};
use butterfly_ir::{Dtype, Sparsity, StageBy, build::causal};
use serde_json::{Value, json};

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../../tests/fixtures/configs/", $name))
    };
}

const GPT2: &str = fixture!("gpt2.json");
const LLAMA: &str = fixture!("llama-3.1-8b.json");
const QWEN3: &str = fixture!("qwen3-8b.json");
const QWEN35: &str = fixture!("qwen3.5-9b.json");
const QWEN35_MOE: &str = fixture!("qwen3.5-35b-a3b.json");
const GLM: &str = fixture!("glm-4.7-flash.json");
const QWEN2: &str = fixture!("qwen2.5-7b.json");
const MISTRAL: &str = fixture!("mistral-7b-v0.1.json");
const PHI3: &str = fixture!("phi-3-mini-4k.json");
const ALL: [&str; 9] = [
    GPT2, LLAMA, QWEN3, QWEN35, QWEN35_MOE, GLM, QWEN2, MISTRAL, PHI3,
];

fn good(json: &str) -> ModelConfig {
    read("config.json", json).unwrap_or_else(|error| panic!("{error}"))
}

fn message(json: &str) -> String {
    read("config.json", json)
        .expect_err("the config is bad")
        .to_string()
}

/// The fixture with `changes` put over it; a change to `"absent"` removes the field.
fn changed(fixture: &str, changes: Value) -> Value {
    let mut config: Value = serde_json::from_str(fixture).expect("fixtures are JSON");
    let object = config.as_object_mut().expect("fixtures are objects");
    for (field, value) in changes.as_object().expect("changes are an object") {
        match value == "absent" {
            true => object.remove(field),
            false => object.insert(field.clone(), value.clone()),
        };
    }
    config
}

fn gqa(q_heads: u32, kv_heads: u32, head_dim: u32) -> AttentionShape {
    AttentionShape::Gqa {
        q_heads,
        kv_heads,
        head_dim,
    }
}

fn plain_rope(theta: f64, dims: u32) -> Rope {
    Rope {
        theta,
        dims,
        interleaved: false,
        scaling: RopeScaling::Default,
    }
}

fn hybrid(layers: usize) -> Vec<LayerKind> {
    let kind = |layer| match layer % 4 {
        3 => LayerKind::FullAttention,
        _ => LayerKind::LinearAttention,
    };
    (0..layers).map(kind).collect()
}

#[test]
fn nine_models() {
    let gpt2 = ModelConfig {
        family: Family::Gpt2,
        dtype: Dtype::F32,
        layers: vec![LayerKind::FullAttention; 12],
        attention: gqa(12, 12, 64),
        rope: None,
        window_rope: None,
        logit_scale: None,
        softcap: None,
        sinks: false,
        qk_norm: false,
        norm_eps: 1e-5,
        output_gate: false,
        biases: Biases::All,
        max_positions: 1024,
    };
    let llama = ModelConfig {
        family: Family::Llama,
        dtype: Dtype::Bf16,
        layers: vec![LayerKind::FullAttention; 32],
        attention: gqa(32, 8, 128),
        rope: Some(Rope {
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low: 1.0,
                high: 4.0,
                original_max: 8192,
            },
            ..plain_rope(500_000.0, 128)
        }),
        biases: Biases::None,
        max_positions: 131_072,
        ..gpt2.clone()
    };
    let qwen3 = ModelConfig {
        family: Family::Qwen3,
        layers: vec![LayerKind::FullAttention; 36],
        rope: Some(plain_rope(10_000.0, 128)),
        qk_norm: true,
        norm_eps: 1e-6,
        max_positions: 40_960,
        ..llama.clone()
    };
    let qwen35 = ModelConfig {
        family: Family::Qwen35,
        layers: hybrid(32),
        attention: gqa(16, 4, 256),
        rope: Some(plain_rope(10_000.0, 64)),
        output_gate: true,
        max_positions: 32_768,
        ..qwen3.clone()
    };
    let qwen35_moe = ModelConfig {
        family: Family::Qwen35Moe,
        layers: hybrid(40),
        attention: gqa(16, 2, 256),
        ..qwen35.clone()
    };
    let glm = ModelConfig {
        family: Family::Glm4MoeLite,
        layers: vec![LayerKind::FullAttention; 47],
        attention: AttentionShape::Mla {
            q_heads: 20,
            q_lora_rank: Some(768),
            kv_lora_rank: 512,
            nope_dim: 192,
            rope_dim: 64,
            v_dim: 256,
        },
        rope: Some(Rope {
            interleaved: true,
            ..plain_rope(10_000.0, 64)
        }),
        max_positions: 202_752,
        ..llama.clone()
    };
    let qwen2 = ModelConfig {
        family: Family::Qwen2,
        layers: vec![LayerKind::FullAttention; 28],
        attention: gqa(28, 4, 128),
        rope: Some(plain_rope(1_000_000.0, 128)),
        norm_eps: 1e-6,
        biases: Biases::Inputs,
        max_positions: 32_768,
        ..llama.clone()
    };
    let mistral = ModelConfig {
        family: Family::Mistral,
        layers: vec![LayerKind::WindowAttention { window: 4096 }; 32],
        rope: Some(plain_rope(10_000.0, 128)),
        max_positions: 32_768,
        ..llama.clone()
    };
    let phi3 = ModelConfig {
        family: Family::Phi3,
        layers: vec![LayerKind::WindowAttention { window: 2047 }; 32],
        attention: gqa(32, 32, 96),
        rope: Some(plain_rope(10_000.0, 96)),
        max_positions: 4096,
        ..llama.clone()
    };
    let expected = [
        gpt2, llama, qwen3, qwen35, qwen35_moe, glm, qwen2, mistral, phi3,
    ];
    for (json, expected) in ALL.into_iter().zip(expected) {
        assert_eq!(good(json), expected);
    }
}

#[test]
fn nested_under_text_config() {
    for json in ALL {
        let inner: Value = serde_json::from_str(json).expect("fixtures are JSON");
        let nested = json!({"model_type": "outer", "text_config": inner});
        assert_eq!(good(&nested.to_string()), good(json));
    }
    let inner = changed(QWEN35, json!({"model_type": "absent", "dtype": "absent"}));
    let nested = json!({"model_type": "qwen3_5", "torch_dtype": "bfloat16", "text_config": inner});
    assert_eq!(good(&nested.to_string()), good(QWEN35));
}

#[test]
fn other_spellings() {
    let cases = [
        (
            LLAMA,
            json!({"rope_parameters": "absent", "rope_theta": 500000.0, "dtype": "absent",
                "torch_dtype": "bfloat16", "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192}}),
        ),
        (LLAMA, json!({"head_dim": "absent"})),
        (LLAMA, json!({"head_dim": null, "attention_bias": "absent"})),
        (
            QWEN3,
            json!({"rope_parameters": "absent", "rope_theta": 10000, "rope_scaling": null,
                "layer_types": "absent", "head_dim": "absent", "rms_norm_eps": "absent"}),
        ),
        (
            QWEN35,
            json!({"model_type": "qwen3_5", "layer_types": "absent", "head_dim": "absent",
                "num_key_value_heads": "absent", "rope_parameters": {"rope_theta": 10000.0,
                "mrope_section": [11, 11, 10], "mrope_interleaved": true}}),
        ),
        (
            QWEN35_MOE,
            json!({"model_type": "qwen3_5_moe", "layer_types": "absent", "head_dim": "absent",
                "num_key_value_heads": "absent", "full_attention_interval": 4,
                "rope_parameters": "absent", "partial_rotary_factor": 0.25}),
        ),
        (
            GLM,
            json!({"kv_lora_rank": "absent", "q_lora_rank": "absent", "rope_interleave": "absent",
                "num_key_value_heads": "absent", "rope_parameters": "absent",
                "partial_rotary_factor": 1.0}),
        ),
        (
            GPT2,
            json!({"dtype": "absent", "layer_norm_epsilon": "absent"}),
        ),
    ];
    for (json, changes) in cases {
        assert_eq!(
            good(&changed(json, changes.clone()).to_string()),
            good(json),
            "{changes}"
        );
    }
}

#[test]
fn values_without_a_fixture() {
    let kv = changed(LLAMA, json!({"num_key_value_heads": "absent"}));
    assert_eq!(good(&kv.to_string()).attention, gqa(32, 32, 128));
    let kv = changed(QWEN35, json!({"num_key_value_heads": null}));
    assert_eq!(good(&kv.to_string()).attention, gqa(16, 16, 256));
    let linear = changed(
        LLAMA,
        json!({"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2}}),
    );
    let rope = good(&linear.to_string()).rope.expect("llama rotates");
    assert_eq!(
        (rope.theta, rope.scaling),
        (10_000.0, RopeScaling::Linear { factor: 2.0 })
    );
    let direct = changed(GLM, json!({"q_lora_rank": null}));
    let attention = good(&direct.to_string()).attention;
    assert!(matches!(
        attention,
        AttentionShape::Mla {
            q_lora_rank: None,
            ..
        }
    ));
    let every_third = changed(
        QWEN35,
        json!({"layer_types": "absent", "num_hidden_layers": 7, "full_attention_interval": 3}),
    );
    let full = swapped(&good(&every_third.to_string()), &Sparsity::from(causal()));
    let full = full.expect("no layer is named");
    assert_eq!(full.iter().map(|l| l.layer).collect::<Vec<_>>(), [2, 5]);
}

#[test]
fn kernel_shapes() {
    let shape = |json, form| good(json).attention.kernel_shape(form);
    let llama = KernelShape {
        q_heads: 32,
        kv_heads: 8,
        head_dim: 128,
        v_head_dim: 128,
        group: 4,
        scale: 1.0 / 128f64.sqrt(),
    };
    assert_eq!(shape(LLAMA, Form::Expanded), llama);
    assert_eq!(shape(LLAMA, Form::Absorbed), llama);
    assert_eq!(shape(GPT2, Form::Absorbed).scale, 0.125);
    let expanded = KernelShape {
        q_heads: 20,
        kv_heads: 20,
        head_dim: 256,
        v_head_dim: 256,
        group: 1,
        scale: 0.0625,
    };
    assert_eq!(shape(GLM, Form::Expanded), expanded);
    let absorbed = KernelShape {
        kv_heads: 1,
        head_dim: 576,
        v_head_dim: 512,
        group: 20,
        ..expanded
    };
    assert_eq!(shape(GLM, Form::Absorbed), absorbed);
}

#[test]
fn swapped_layers() {
    let pairs = |json, swapped_layers: Option<Vec<u32>>, stage_by| {
        let sparsity = Sparsity {
            swapped_layers,
            stage_by,
            ..Sparsity::from(causal())
        };
        swapped(&good(json), &sparsity)
            .map(|layers| {
                layers
                    .iter()
                    .map(|l| (l.layer, l.index))
                    .collect::<Vec<_>>()
            })
            .map_err(|error| error.to_string())
    };
    let by_position = (0..8).map(|i| (4 * i + 3, i)).collect();
    let by_layer = (0..8).map(|i| (4 * i + 3, 4 * i + 3)).collect();
    assert_eq!(pairs(QWEN35, None, StageBy::SwappedIndex), Ok(by_position));
    assert_eq!(pairs(QWEN35, None, StageBy::LayerIndex), Ok(by_layer));
    assert_eq!(
        pairs(GPT2, Some(vec![2, 5]), StageBy::SwappedIndex),
        Ok(vec![(2, 0), (5, 1)])
    );
    assert_eq!(
        pairs(GPT2, Some(vec![2, 5]), StageBy::LayerIndex),
        Ok(vec![(2, 2), (5, 5)])
    );
    assert_eq!(pairs(GPT2, Some(vec![]), StageBy::LayerIndex), Ok(vec![]));
    // A stage in the pattern's header holds for every layer.
    let fixed = Sparsity {
        stage: Some(2),
        stage_by: StageBy::LayerIndex,
        ..Sparsity::from(causal())
    };
    let layers = swapped(&good(QWEN35), &fixed).expect("layers");
    assert!(layers.iter().all(|layer| layer.index == 2), "{layers:?}");
    assert_eq!(
        pairs(GPT2, Some(vec![2, 12]), StageBy::LayerIndex),
        Err("swapped layer 12 does not exist: give layers below 12".to_string())
    );
    assert_eq!(
        pairs(QWEN35, Some(vec![3, 4]), StageBy::LayerIndex),
        Err(
            "swapped layer 4 is linear attention: give full-attention layers only \
             (3, 7, 11, 15, 19, 23, 27, 31)"
                .to_string()
        )
    );
}
