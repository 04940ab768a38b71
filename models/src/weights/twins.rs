//! Fixture models and their GGUF twins: the same config and the same tensors.

use super::architecture::Architecture;
use super::gguf::{GgmlType, Gguf};
use super::metadata;
use super::names::{Names, Role};
use butterfly_compiler::config;
use butterfly_ir::model::{ModelConfig, ModelSizes};
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

/// The twin of a folder.
fn written(folder: &Path, store: twin::Store<'_>) -> Gguf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("twin-{}-{number}.gguf", std::process::id());
    let path = std::env::temp_dir().join(name);
    twin::twin(folder, &path, store);
    let gguf = Gguf::open(&path).expect("opened");
    std::fs::remove_file(&path).expect("removed");
    gguf
}

/// Compares the config of a folder with that of its twin, and returns the twin's.
fn same_config(folder: &Path, gguf: &Gguf) -> (ModelConfig, ModelSizes) {
    let name = folder.display().to_string();
    let architecture = Architecture::of(gguf).expect("known");
    let json = metadata::config(gguf, architecture)
        .expect("read")
        .to_string();
    let mut model = config::read(&name, &json).expect("a config");
    let sizes = config::sizes(&name, &json, &model).expect("sizes");
    let text = std::fs::read_to_string(folder.join("config.json")).expect("read");
    let expected = config::read(&name, &text).expect("a config");
    let expected_sizes = config::sizes(&name, &text, &expected).expect("sizes");
    if let (Architecture::Llama, Some(rope)) = (architecture, &mut model.rope) {
        assert!(rope.interleaved);
        rope.interleaved = false;
    }
    model.dtype = expected.dtype;
    assert_eq!(model, expected, "{name}");
    assert_eq!(sizes, expected_sizes, "{name}");
    (model, sizes)
}

/// Compares a folder with its twin: all but the rows of q and k in `llama`, which are moved side by
/// side and stay there.
fn compare(folder: &Path, store: twin::Store<'_>) {
    let name = folder.display().to_string();
    let gguf = written(folder, store);
    let (model, sizes) = same_config(folder, &gguf);
    let architecture = Architecture::of(&gguf).expect("known");
    let llama = architecture == Architecture::Llama;
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

/// Of latent attention, the tensors are not those of the checkpoint; all else is.
#[test]
fn configs_of_latent_attention_are_equal() {
    let folder = butterfly_tests::fixture("models/glm4_moe_lite");
    let gguf = written(&folder, &twin::in_bf16);
    same_config(&folder, &gguf);
    let shape = |name: &str| gguf.tensor(name).map(|tensor| tensor.shape.as_slice());
    assert_eq!(shape("blk.0.attn_kv_b.weight"), Some(&[256, 32][..]));
    assert_eq!(shape("blk.1.attn_k_b.weight"), Some(&[4, 32, 24][..]));
    assert_eq!(shape("blk.1.attn_v_b.weight"), Some(&[4, 40, 32][..]));
    assert_eq!(shape("blk.1.exp_probs_b.bias"), Some(&[8][..]));
}
