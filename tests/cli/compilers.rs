//! Attention from artifacts calls no compiler, and runs exactly the kernels of the folder. CubeCL's
//! compilation log is the evidence.

use std::path::Path;
use std::process::Command;

const PATTERN: &str = "causal & (local(1) | partner(causal_shift) | sink(1))";

fn butterfly(arguments: &[&str], log: Option<&Path>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command.args(arguments);
    if let Some(log) = log {
        command.env("CUBECL_DEBUG_LOG", log);
    }
    let run = command.output().expect("runs");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{arguments:?}: {said}");
}

/// Runs attention from artifacts. Gives the kernel texts in CubeCL's log, which it passed to a
/// compiler or to the device, and the folder's kernel files with `extension`.
fn texts(target: &str, device: &str, dtype: &str, extension: &str) -> (Vec<String>, Vec<Vec<u8>>) {
    let root = tempfile::tempdir().expect("root");
    let path = |name: &str| root.path().join(name);
    let inputs = path("inputs.safetensors");
    let halves = |heads: usize| vec![0u8; heads * 300 * 32 * if dtype == "f32" { 4 } else { 2 }];
    let (q, kv) = (halves(4), halves(2));
    let kind = match dtype {
        "f32" => safetensors::Dtype::F32,
        _ => safetensors::Dtype::BF16,
    };
    let views = [("q", 4, &q), ("k", 2, &kv), ("v", 2, &kv)].map(|(name, heads, bytes)| {
        let view = safetensors::tensor::TensorView::new(kind, vec![1, heads, 300, 32], bytes);
        (name, view.expect("a view"))
    });
    let whole = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(&inputs, whole).expect("written");
    let config = path("config.json");
    let model = serde_json::json!({
        "model_type": "llama", "dtype": "float32", "num_hidden_layers": 1,
        "max_position_embeddings": 4096, "hidden_size": 128, "intermediate_size": 64,
        "vocab_size": 64, "rms_norm_eps": 1e-6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32,
    });
    std::fs::write(&config, model.to_string()).expect("config");
    let text = |path: &Path| path.to_str().expect("utf-8").to_string();
    let (artifacts, log) = (path("artifacts"), path("log"));
    let folder = text(&artifacts);
    butterfly(
        &[
            "compile",
            &text(&config),
            "--pattern",
            PATTERN,
            "--dtype",
            dtype,
            "--target",
            target,
            "-o",
            &folder,
        ],
        None,
    );
    butterfly(
        &[
            "attend",
            "--pattern",
            PATTERN,
            "--stage",
            "0",
            "--inputs",
            &text(&inputs),
            "--output",
            &text(&path("o.safetensors")),
            "--artifacts",
            &folder,
            "--device",
            device,
        ],
        Some(&log),
    );
    let logged = std::fs::read_to_string(&log).unwrap_or_default();
    let texts = logged
        .split("[START_KERNEL_COMPILATION]")
        .skip(1)
        .map(|part| {
            let (_, text) = part.split_once("\nsource:\n```").expect("a source");
            let (_, text) = text.split_once('\n').expect("its language");
            text.split_once("\n```\n[END_KERNEL_COMPILATION]")
                .expect("its end")
                .0
                .to_string()
        });
    let texts = texts.collect();
    let files = std::fs::read_dir(artifacts.join("kernels")).expect("kernels");
    let files = files.map(|file| file.expect("a file").path());
    let files = files.filter(|file| file.extension().is_some_and(|e| e == extension));
    (
        texts,
        files
            .map(|file| std::fs::read(file).expect("a kernel"))
            .collect(),
    )
}

/// WGSL is passed to the graphics library as it is in the folder.
#[test]
fn webgpu_runs_the_text_of_the_folder() {
    let (texts, kernels) = texts("webgpu", "webgpu", "f32", "wgsl");
    assert_eq!(texts.len(), 1, "one kernel");
    let digests: Vec<_> = kernels.iter().map(|kernel| blake3::hash(kernel)).collect();
    assert!(
        digests.contains(&blake3::hash(texts[0].as_bytes())),
        "{}",
        texts[0]
    );
}

/// SPIR-V is binary, so the logged text is empty, and nothing else is passed to a compiler.
#[test]
fn vulkan_calls_no_compiler() {
    let (texts, kernels) = texts("vulkan", "vulkan", "f32", "spv");
    assert_eq!((texts.as_slice(), kernels.len()), (&[String::new()][..], 2));
}

/// Cubins come from CubeCL's cache, so nothing is logged at all.
#[test]
#[ignore = "needs an NVIDIA GPU and NVRTC: cargo test -p butterfly-cli --test compilers -- --ignored cuda"]
fn cuda_calls_no_compiler() {
    let (texts, kernels) = texts("cuda:sm_80,cuda:sm_90a", "cuda", "bf16", "cubin");
    assert_eq!((texts.as_slice(), kernels.len()), (&[][..], 5));
}
