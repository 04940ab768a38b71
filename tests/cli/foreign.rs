//! Models of kinds that are not read: each is refused by one line, which names the file and says
//! what to do.

use butterfly_tests::fixture;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn generate(model: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command.env_remove("RUST_BACKTRACE");
    command.args(["generate", "--device", "cpu", "--tokens", "1,2", "-n", "1"]);
    command.arg("-m").arg(model).output().expect("runs")
}

/// The message of a model that is refused: one line, exit code 2.
fn refused(model: &Path) -> String {
    let output = generate(model);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty());
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    error
}

/// A model folder, with its weights or without.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for name in files {
        let bytes = fs::read(fixture("models/llama").join(name)).expect("a fixture");
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    folder
}

#[test]
fn files_of_other_kinds() {
    let cases: [(&str, &[&str]); 15] = [
        (
            "pytorch_model.bin",
            &[
                "pickle",
                "save_pretrained(\"converted\", safe_serialization=True)",
            ],
        ),
        (
            "pytorch_model-00001-of-00002.bin",
            &["pickle", "safe_serialization=True"],
        ),
        ("model.pt", &["pickle", "safe_serialization=True"]),
        ("model.pth", &["pickle", "safe_serialization=True"]),
        ("last.ckpt", &["pickle", "safe_serialization=True"]),
        (
            "consolidated.00.pth",
            &["Meta", "convert_llama_weights_to_hf"],
        ),
        ("consolidated.safetensors", &["model.safetensors"]),
        (
            "model-00002-of-00002.safetensors",
            &["model.safetensors.index.json", "missing"],
        ),
        ("model.onnx", &["ONNX", "exported from"]),
        ("tf_model.h5", &["TensorFlow", "from_tf=True"]),
        ("flax_model.msgpack", &["Flax", "from_flax=True"]),
        ("model.nemo", &["NeMo", "checkpoint_converters"]),
        ("weights.npz", &["NumPy", "mlx_lm.convert"]),
        ("adapter_config.json", &["adapter", "merge_and_unload"]),
        ("model.Q4_K_M.gguf", &["give the file itself"]),
    ];
    for (name, parts) in cases {
        // A config does not help, and is not asked for either.
        for files in [&["config.json"][..], &[]] {
            let folder = folder(files);
            let file = folder.path().join(name);
            fs::write(&file, "{}").expect("written");
            let said = refused(folder.path());
            let start = format!("error: {}: ", file.display());
            assert!(said.starts_with(&start), "{said}");
            for part in parts {
                assert!(said.contains(part), "no `{part}` in: {said}");
            }
            // The file itself, in the place of its folder.
            if !name.ends_with(".gguf") && !name.ends_with(".json") {
                let said = refused(&file);
                assert!(said.starts_with(&start), "{said}");
            }
        }
        // Beside safetensors, other files are nobody's business.
        let folder = folder(&["config.json", "model.safetensors"]);
        fs::write(folder.path().join(name), "{}").expect("written");
        let output = generate(folder.path());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {error}");
    }
}

#[test]
fn an_adapter_names_its_model() {
    let folder = folder(&[]);
    let config = folder.path().join("adapter_config.json");
    let adapter = json!({"base_model_name_or_path": "someone/model", "peft_type": "LORA"});
    fs::write(&config, adapter.to_string()).expect("written");
    fs::write(folder.path().join("adapter_model.safetensors"), "").expect("written");
    let said = refused(folder.path());
    assert!(said.contains("an adapter of \"someone/model\""), "{said}");
}

#[test]
fn a_file_of_a_folder() {
    let said = refused(&fixture("models/llama/model.safetensors"));
    assert!(said.contains("is a file; give its folder"), "{said}");
}

#[test]
fn packings_that_are_not_read() {
    let folder = folder(&["config.json", "model.safetensors"]);
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).expect("config");
    let with = |field: &str, value: Value| {
        let mut object: Value = serde_json::from_str(&text).expect("JSON");
        object[field] = value;
        fs::write(&config, object.to_string()).expect("written");
    };
    for method in ["gptq", "awq", "bitsandbytes", "compressed-tensors"] {
        let packing = json!({"quant_method": method, "bits": 4});
        for (field, value) in [
            ("quantization_config", packing.clone()),
            ("text_config", json!({"quantization_config": packing})),
        ] {
            with(field, value);
            let said = refused(folder.path());
            let start = format!(
                "error: {}: `quantization_config.quant_method` is {method}",
                config.display()
            );
            assert!(said.starts_with(&start), "{said}");
            assert!(
                said.contains("bf16 or f16") && said.contains("GGUF"),
                "{said}"
            );
        }
    }
    with("quantization_config", json!(null));
    let output = generate(folder.path());
    assert!(output.status.success());
}
