//! `butterfly attend` on tensors computed by other software.

use butterfly_tests::{close, fixture, floats};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The JSON file of every case in `tests/fixtures/attention`.
fn cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture("attention")).expect("fixtures");
    let paths = entries.map(|entry| entry.expect("entry").path());
    let mut cases: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    cases.sort();
    assert_eq!(cases.len(), 13, "fixtures are missing");
    cases
}

fn attend(case: &Path, inputs: &Path, output: &Path, more: &[&str]) -> serde_json::Value {
    let run = Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .args(["attend", "--json", "--check", "--pattern"])
        .arg(case)
        .arg("--inputs")
        .arg(inputs)
        .arg("--output")
        .arg(output)
        .args(more)
        .output()
        .expect("runs");
    assert!(
        run.status.success(),
        "{}: {}",
        case.display(),
        String::from_utf8_lossy(&run.stderr)
    );
    serde_json::from_slice(&run.stdout).expect("one JSON object")
}

/// Absolute and relative tolerance.
type Within = (f32, f32);

/// The element type of the inputs, and the tolerances of o and lse.
struct Precision {
    dtype: &'static str,
    o: Within,
    lse: Within,
}

const F32: Precision = Precision {
    dtype: "f32",
    o: (2e-5, 1e-5),
    lse: (2e-5, 1e-5),
};

const BF16: Precision = Precision {
    dtype: "bf16",
    o: (3e-2, 2e-2),
    lse: (1e-4, 0.0),
};

/// Runs every case on `device`, with kernels from a folder compiled for `target` if one is
/// given, and compares o and lse.
fn within_tolerance(device: &str, precision: &Precision, target: Option<&str>) {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("o.safetensors");
    let kernels = folder.path().join("artifacts");
    for case in cases() {
        let name = case.display();
        let expected = case.with_extension("safetensors");
        let inputs = inputs(&case, precision, folder.path());
        let expected_lse = exact_lse(&case, precision, folder.path());
        let mut more = vec!["--device", device];
        if let Some(target) = target {
            compile(&case, &kernels, precision, target);
            more.extend(["--artifacts", kernels.to_str().expect("utf-8")]);
        }
        let report = attend(&case, &inputs, &output, &more);
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&case).expect("case")).expect("json");
        assert_eq!(report["stage"], meta["stage"], "{name}");
        assert_eq!(
            (&report["device"], &report["dtype"]),
            (&device.into(), &precision.dtype.into())
        );
        assert_eq!(
            report["kernel"].is_string(),
            target.is_some() || device != "cpu"
        );
        for (tensor, want, (atol, rtol)) in [
            ("o", floats(&expected, "o"), precision.o),
            ("lse", expected_lse, precision.lse),
        ] {
            close(&floats(&output, tensor), &want, atol, rtol)
                .unwrap_or_else(|error| panic!("{name} {tensor}: {error}"));
        }
    }
}

/// q, k and v of `case` in the element type of `precision`.
fn inputs(case: &Path, precision: &Precision, folder: &Path) -> PathBuf {
    let from = case.with_extension("safetensors");
    match precision.dtype {
        "f32" => from,
        _ => rounded(
            &from,
            &folder.join("rounded.safetensors"),
            safetensors::Dtype::BF16,
        ),
    }
}

/// The log-sum-exps to expect: for f32 those of the fixture, else those that the f32 kernel
/// computes from the rounded inputs. The fixture's would not do, since rounding the keys changes
/// them by more than a missing key does.
fn exact_lse(case: &Path, precision: &Precision, folder: &Path) -> Vec<f32> {
    let from = case.with_extension("safetensors");
    if precision.dtype == "f32" {
        return floats(&from, "lse");
    }
    let wide = rounded(
        &from,
        &folder.join("wide.safetensors"),
        safetensors::Dtype::F32,
    );
    let output = folder.join("exact.safetensors");
    attend(case, &wide, &output, &["--device", "cpu"]);
    floats(&output, "lse")
}

/// q, k and v of `from` rounded to bf16, written as `dtype`.
fn rounded(from: &Path, to: &Path, dtype: safetensors::Dtype) -> PathBuf {
    let bytes = std::fs::read(from).expect("file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = ["q", "k", "v"].map(|name| {
        let shape = file.tensor(name).expect("tensor").shape().to_vec();
        let halves = floats(from, name).into_iter().map(half::bf16::from_f32);
        let bytes: Vec<u8> = match dtype {
            safetensors::Dtype::F32 => halves.flat_map(|x| x.to_f32().to_le_bytes()).collect(),
            _ => halves.flat_map(half::bf16::to_le_bytes).collect(),
        };
        (name, shape, bytes)
    });
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes);
        (*name, view.expect("a view"))
    });
    let whole = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(to, whole).expect("written");
    to.to_path_buf()
}

/// Copies the tensors of `from`, and adds a vector `sinks` in f32.
fn with_sinks(from: &Path, to: &Path, sinks: &[f32]) {
    let bytes = std::fs::read(from).expect("file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let bytes: Vec<u8> = sinks.iter().flat_map(|x| x.to_le_bytes()).collect();
    let dtype = safetensors::Dtype::F32;
    let vector = safetensors::tensor::TensorView::new(dtype, vec![sinks.len()], &bytes);
    let mut views = file.tensors();
    views.push(("sinks".into(), vector.expect("a view")));
    let whole = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(to, whole).expect("written");
}

/// A sink logit takes a share of the weights of a query, whatever its keys: `o` becomes smaller by
/// the factor `exp(lse - lse')`, where lse' includes the sink.
fn sinks_fade(device: &str, precision: &Precision) {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    for case in cases().into_iter().step_by(3) {
        let expected = case.with_extension("safetensors");
        let meta: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&case).expect("case")).expect("json");
        let heads = meta["q_heads"].as_u64().expect("a number") as usize;
        let sinks: Vec<f32> = (0..heads).map(|head| head as f32 * 0.7 - 1.0).collect();
        let inputs = inputs(&case, precision, folder.path());
        let exact = exact_lse(&case, precision, folder.path());
        with_sinks(&inputs, &path("inputs"), &sinks);
        attend(
            &case,
            &path("inputs"),
            &path("o"),
            &["--device", device, "--sinks"],
        );
        let (o, lse) = (floats(&expected, "o"), floats(&expected, "lse"));
        let dim = o.len() / lse.len();
        let q_len = meta["query_len"].as_u64().expect("a number") as usize;
        let counted = |lse: &[f32]| -> Vec<f32> {
            let with_sink = |(i, lse): (usize, &f32)| {
                let sink = sinks[i / q_len % heads];
                let top = lse.max(sink);
                top + ((lse - top).exp() + (sink - top).exp()).ln()
            };
            lse.iter().enumerate().map(with_sink).collect()
        };
        let (exact, counted) = (counted(&exact), counted(&lse));
        let faded: Vec<f32> = (o.iter().enumerate())
            .map(|(i, x)| x * (lse[i / dim] - counted[i / dim]).exp())
            .collect();
        for (name, want, within) in [("o", faded, precision.o), ("lse", exact, precision.lse)] {
            close(&floats(&path("o"), name), &want, within.0, within.1)
                .unwrap_or_else(|error| panic!("{} {name}: {error}", case.display()));
        }
        // A softcap far above the logits changes little.
        let high = ["--device", device, "--softcap", "1000"];
        attend(&case, &inputs, &path("o"), &high);
        close(
            &floats(&path("o"), "o"),
            &o,
            precision.o.0.max(1e-3),
            precision.o.1,
        )
        .unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    }
}

#[test]
fn softcap_and_sinks_on_the_cpu() {
    sinks_fade("cpu", &F32);
}

#[test]
fn softcap_and_sinks_on_vulkan() {
    sinks_fade("vulkan", &F32);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-cli --test attention -- --ignored cuda"]
fn softcap_and_sinks_on_cuda() {
    for precision in [&F32, &BF16] {
        sinks_fade("cuda", precision);
    }
}

/// Compiles artifacts for a model of one layer with the shapes of `case`.
fn compile(case: &Path, kernels: &Path, precision: &Precision, target: &str) {
    let meta: serde_json::Value =
        serde_json::from_slice(&std::fs::read(case).expect("case")).expect("json");
    let config = kernels.with_extension("json");
    let model = serde_json::json!({
        "model_type": "llama", "dtype": "float32", "num_hidden_layers": 1, "max_position_embeddings": 4096,
        "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "num_attention_heads": meta["q_heads"], "num_key_value_heads": meta["kv_heads"],
        "head_dim": meta["head_dim"],
    });
    std::fs::write(&config, model.to_string()).expect("config");
    // The fixture may name layers that a model of one layer does not have.
    let mut pattern = meta.clone();
    pattern
        .as_object_mut()
        .expect("object")
        .remove("swapped_layers");
    let path = kernels.with_extension("pattern.json");
    std::fs::write(&path, pattern.to_string()).expect("pattern");
    let run = Command::new(env!("CARGO_BIN_EXE_butterfly"))
        .arg("compile")
        .arg(&config)
        .arg("--pattern")
        .arg(&path)
        .args(["--dtype", precision.dtype, "--target", target, "-o"])
        .arg(kernels)
        .output()
        .expect("runs");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[test]
fn cpu() {
    within_tolerance("cpu", &F32, None);
    within_tolerance("cpu", &F32, Some("cpu"));
}

#[test]
fn cpu_in_bf16() {
    within_tolerance("cpu", &BF16, None);
    within_tolerance("cpu", &BF16, Some("cpu"));
}

#[test]
fn vulkan() {
    within_tolerance("vulkan", &F32, None);
    within_tolerance("vulkan", &F32, Some("vulkan"));
}

#[test]
fn webgpu() {
    within_tolerance("webgpu", &F32, None);
    within_tolerance("webgpu", &F32, Some("webgpu"));
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-cli --test attention -- --ignored"]
fn cuda() {
    for precision in [&F32, &BF16] {
        within_tolerance("cuda", precision, None);
        within_tolerance("cuda", precision, Some("cuda:sm_80,cuda:sm_90a,cpu"));
    }
    // On newer devices the driver compiles the PTX of the sm_80 kernels.
    within_tolerance("cuda", &BF16, Some("cuda:sm_80,cpu"));
}

#[test]
fn threads_do_not_change_a_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let (one, three) = (folder.path().join("1"), folder.path().join("3"));
    for case in cases().iter().take(4) {
        let inputs = case.with_extension("safetensors");
        let on = |threads, output: &Path| {
            attend(
                case,
                &inputs,
                output,
                &["--device", "cpu", "--threads", threads],
            );
            std::fs::read(output).expect("output")
        };
        assert_eq!(on("1", &one), on("3", &three));
    }
}
