//! Fixture models and their GGUF twins: the same config and the same tensors.

use super::architecture::Architecture;
use super::gguf::{GgmlType, Gguf};
use super::metadata;
use super::names::{Names, Role};
use butterfly_compiler::config;
use butterfly_tests::gguf::twin;
use std::collections::BTreeMap;
use std::path::Path;

fn floats(gguf: &Gguf, tensor: &super::gguf::Tensor) -> Vec<f32> {
    let bytes = gguf.bytes(tensor);
    let words = bytes.as_chunks::<4>().0.iter();
    let halves = bytes.as_chunks::<2>().0.iter();
    match tensor.kind {
        GgmlType::F32 => words.map(|b| f32::from_le_bytes(*b)).collect(),
        GgmlType::Bf16 => halves
            .map(|b| half::bf16::from_le_bytes(*b).to_f32())
            .collect(),
        other => panic!("{other:?} is not written here"),
    }
}

/// Compares a folder with its twin: all but the rows of q and k in `llama`, which are moved side by
/// side and stay there.
fn compare(folder: &Path, store: twin::Store<'_>) {
    let name = folder.display().to_string();
    let path = std::env::temp_dir().join(format!("twin-{}.gguf", std::process::id()));
    twin::twin(folder, &path, store);
    let gguf = Gguf::open(&path).expect("opened");
    std::fs::remove_file(&path).expect("removed");

    let architecture = Architecture::of(&gguf).expect("known");
    let json = metadata::config(&gguf, architecture)
        .expect("read")
        .to_string();
    let mut model = config::read(&name, &json).expect("a config");
    let sizes = config::sizes(&name, &json, &model).expect("sizes");
    let text = std::fs::read_to_string(folder.join("config.json")).expect("read");
    let expected = config::read(&name, &text).expect("a config");
    let expected_sizes = config::sizes(&name, &text, &expected).expect("sizes");
    let llama = architecture == Architecture::Llama;
    if let Some(rope) = &mut model.rope {
        assert_eq!(rope.interleaved, llama);
        rope.interleaved = false;
    }
    model.dtype = expected.dtype;
    assert_eq!(model, expected, "{name}");
    assert_eq!(sizes, expected_sizes, "{name}");

    let names = Names {
        architecture,
        layers: model.layers.len(),
        linear: sizes.linear.as_ref(),
    };
    let file = folder.join("model.safetensors");
    let bytes = std::fs::read(&file).expect("read");
    let stored = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let shapes: BTreeMap<String, Vec<usize>> = stored
        .iter()
        .map(|(name, view)| (name.to_string(), view.shape().to_vec()))
        .collect();
    let mut seen = 0;
    for tensor in gguf.tensors() {
        let Role::Weight(weight) = names.of(tensor) else {
            panic!("{name}: {} is not known", tensor.name)
        };
        assert_eq!(
            shapes.get(&weight.name),
            Some(&weight.shape),
            "{}",
            weight.name
        );
        seen += 1;
        let rotated = weight.name.contains("q_proj") || weight.name.contains("k_proj");
        if llama && rotated {
            continue;
        }
        let (rows, columns) = (tensor.shape[0], tensor.shape[1..].iter().product());
        let undone = weight.change.undo(&floats(&gguf, tensor), rows, columns);
        let expected = butterfly_tests::floats(&file, &weight.name);
        // Values that were changed are rounded to f32 once there and once back.
        butterfly_tests::close(&undone, &expected, 2e-7, 1e-6)
            .unwrap_or_else(|error| panic!("{name}: {}: {error}", weight.name));
    }
    assert_eq!(seen, shapes.len(), "{name}");
}

#[test]
fn twins_are_equal() {
    for name in ["gpt2", "llama", "qwen3", "qwen3_5"] {
        let folder = butterfly_tests::fixture("models").join(name);
        compare(&folder, &twin::in_f32);
    }
    let folder = butterfly_tests::fixture("models/qwen3_5");
    compare(&folder, &twin::in_bf16);
}
