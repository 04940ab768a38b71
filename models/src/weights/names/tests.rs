use super::*;
use crate::weights::gguf::GgmlType;
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path = butterfly_tests::fixture("gguf").join(name);
    serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON")
}

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    Tensor {
        name: name.to_string(),
        kind: GgmlType::F32,
        shape: shape.to_vec(),
        file: 0,
        bytes: 0..0,
    }
}

fn names(architecture: Architecture) -> Names<'static> {
    Names {
        architecture,
        layers: 2,
        linear: None,
    }
}

/// Against the tables of the PyPI package `gguf`: each tensor has the name it was converted from.
#[test]
fn names_are_those_before_the_conversion() {
    let fixture = fixture("names.json");
    for architecture in Architecture::ALL {
        let table = fixture[architecture.name()].as_object().expect("a table");
        assert!(table.len() > 8);
        for (stored, name) in table {
            let role = names(architecture).of(&tensor(stored, &[4]));
            let Role::Weight(weight) = role else {
                panic!("{stored} of {architecture:?} is {role:?}")
            };
            assert_eq!(weight.name, name.as_str().expect("a name"));
        }
    }
}

/// Of every changed tensor, the values, the order and the shape come back.
#[test]
fn changes_are_undone() {
    let linear = LinearShape {
        k_heads: 2,
        v_heads: 6,
        k_dim: 2,
        v_dim: 3,
        taps: 2,
        tiled: true,
    };
    let names = Names {
        linear: Some(&linear),
        ..names(Architecture::Qwen35)
    };
    let floats =
        |value: &Value| -> Vec<f32> { serde_json::from_value(value.clone()).expect("numbers") };
    let sizes =
        |value: &Value| -> Vec<usize> { serde_json::from_value(value.clone()).expect("sizes") };
    let fixture = fixture("changes.json");
    let all = fixture.as_object().expect("tensors");
    assert_eq!(all.len(), 10);
    for (stored, expected) in all {
        let shape = sizes(&expected["stored_shape"]);
        let Role::Weight(weight) = names.of(&tensor(stored, &shape)) else {
            panic!("{stored} is not known")
        };
        assert_eq!(weight.name, expected["name"].as_str().expect("a name"));
        assert_eq!(weight.shape, sizes(&expected["shape"]), "{stored}");
        let (rows, columns) = (shape[0], shape[1..].iter().product());
        let undone = weight
            .change
            .undo(&floats(&expected["stored"]), rows, columns);
        butterfly_tests::close(&undone, &floats(&expected["values"]), 1e-6, 1e-6)
            .unwrap_or_else(|error| panic!("{stored}: {error}"));
    }
}

#[test]
fn matrices_of_gpt2_are_transposed_and_nothing_else_is() {
    let of = |name, shape: &[usize]| match names(Architecture::Gpt2).of(&tensor(name, shape)) {
        Role::Weight(weight) => weight,
        other => panic!("{name} is {other:?}"),
    };
    let weight = of("blk.0.ffn_up.weight", &[3, 2]);
    assert_eq!(weight.shape, [2, 3]);
    assert_eq!(weight.change.layout, Layout::Transposed);
    // Stored as [out, in].
    let undone = weight.change.undo(&[1., 2., 3., 4., 5., 6.], 3, 2);
    assert_eq!(undone, [1., 3., 5., 2., 4., 6.]);
    for (name, shape) in [
        ("blk.0.ffn_up.bias", &[3][..]),
        ("blk.1.attn_norm.weight", &[2]),
        ("token_embd.weight", &[5, 2]),
        ("position_embd.weight", &[7, 2]),
        ("output.weight", &[5, 2]),
    ] {
        let weight = of(name, shape);
        assert_eq!(
            (weight.shape.as_slice(), weight.change),
            (shape, Change::NONE)
        );
    }
}

/// Whether each tensor's values are one more than the checkpoint's, and its shape there.
#[test]
fn norms_and_gates_of_the_other_families_are_changed() {
    let one = Values::PlusOne;
    for (architecture, stored, shape, values) in [
        (Architecture::Gemma3, "output_norm", &[4][..], one),
        (Architecture::Gemma3, "blk.0.attn_norm", &[4], one),
        (Architecture::Gemma3, "blk.0.attn_k_norm", &[4], one),
        (Architecture::Gemma3, "blk.0.post_attention_norm", &[4], one),
        (Architecture::Gemma3, "blk.0.ffn_norm", &[4], one),
        (Architecture::Gemma3, "blk.0.post_ffw_norm", &[4], one),
        (Architecture::Gemma3, "token_embd", &[5, 4], Values::Same),
        (Architecture::Gemma3, "blk.0.ffn_up", &[6, 4], Values::Same),
        (
            Architecture::Qwen3Moe,
            "blk.0.attn_k_norm",
            &[4],
            Values::Same,
        ),
        (Architecture::Qwen35Moe, "blk.0.attn_k_norm", &[4], one),
        (
            Architecture::Qwen35Moe,
            "blk.0.ssm_norm",
            &[4],
            Values::Same,
        ),
        (
            Architecture::GptOss,
            "blk.0.post_attention_norm",
            &[4],
            Values::Same,
        ),
    ] {
        let stored = format!("{stored}.weight");
        let Role::Weight(weight) = names(architecture).of(&tensor(&stored, shape)) else {
            panic!("{stored} is not known")
        };
        assert_eq!(
            (weight.shape.as_slice(), weight.change.values),
            (shape, values)
        );
        assert_eq!(weight.change.layout, Layout::Same, "{stored}");
    }
    // The gate of the shared expert, with or without its outer dimension.
    for shape in [&[4][..], &[1, 4]] {
        let gate = tensor("blk.0.ffn_gate_inp_shexp.weight", shape);
        let Role::Weight(weight) = names(Architecture::Qwen35Moe).of(&gate) else {
            panic!("not known")
        };
        assert_eq!((weight.shape, weight.change), (vec![1, 4], Change::NONE));
    }
    let stacked = tensor("blk.1.ffn_down_exps.weight", &[8, 4, 3]);
    let Role::Weight(weight) = names(Architecture::GptOss).of(&stacked) else {
        panic!("not known")
    };
    assert_eq!((weight.shape, weight.change), (vec![8, 4, 3], Change::NONE));
}

/// Layers take the two matrices of each head as they are.
#[test]
fn matrices_of_latent_attention_stay_as_they_are() {
    for (stored, shape) in [
        ("blk.1.attn_k_b.weight", &[4, 32, 24][..]),
        ("blk.1.attn_v_b.weight", &[4, 40, 32]),
        ("blk.1.attn_kv_b.weight", &[256, 32]),
        ("blk.1.attn_q_b.weight", &[160, 48]),
        ("blk.1.attn_kv_a_norm.weight", &[32]),
    ] {
        let Role::Weight(weight) = names(Architecture::Deepseek2).of(&tensor(stored, shape)) else {
            panic!("{stored} is not known")
        };
        assert_eq!(
            (weight.shape.as_slice(), weight.change),
            (shape, Change::NONE)
        );
    }
}

#[test]
fn what_is_no_weight_is_said_to_be_none() {
    let of = |architecture, name| names(architecture).of(&tensor(name, &[2]));
    assert_eq!(of(Architecture::Llama, "rope_freqs.weight"), Role::Rotation);
    assert_eq!(
        of(Architecture::Phi3, "rope_factors_long.weight"),
        Role::Rotation
    );
    for name in [
        "",
        "blk.",
        "blk.0",
        "blk.0.",
        "blk.x.attn_q.weight",
        "blk.2.attn_q.weight",
        "blk.99999999999999999999999.attn_q.weight",
        "blk.0.attn_q",
        "blk.0.attn_q.scale",
        "blk.0.attn_qkv.weight",
        "blk.0.ssm_a",
        "blk.0.post_attention_norm.weight",
        "position_embd.weight",
        "rope_factors.weight",
    ] {
        assert_eq!(of(Architecture::Llama, name), Role::Unknown, "{name}");
    }
    for name in [
        "blk.0.ffn_gate_exps.weight",
        "blk.0.attn_sinks.weight",
        "blk.0.attn_k_b.weight",
        "blk.0.exp_probs_b.bias",
    ] {
        assert_eq!(of(Architecture::Qwen3, name), Role::Unknown, "{name}");
    }
    // Layers that predict further tokens.
    for architecture in [
        Architecture::Qwen35,
        Architecture::Qwen35Moe,
        Architecture::Deepseek2,
    ] {
        let Role::Weight(weight) = of(architecture, "blk.2.attn_q.weight") else {
            panic!("not known")
        };
        assert!(weight.name.starts_with("mtp."), "{}", weight.name);
    }
}
