//! Every command on the models that have experts, windows in some of their layers, or latent attention.

mod byte_model;
mod command;

use butterfly_tests::{close, floats};
use command::{bad, butterfly, good, model, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const PATTERN: &str = "block 16 causal & (local(1) | partner(causal_shift) | sink(1))";

/// The models, one pattern of each, the tolerance of its logits, and the layers that a pattern replaces by itself.
const MODELS: [(&str, &str, f32, &[u64]); 5] = [
    ("qwen3_moe", "sparse_benes_bs16", 1e-3, &[0, 1, 2, 3]),
    ("qwen3_5_moe", "sparse_cshift_bs16", 1e-3, &[1, 3]),
    ("gemma3", "sparse_cshift_bs8_layers2_5", 5e-4, &[2, 5]),
    ("gpt_oss", "sparse_cshift_bs8_layers1_3", 1e-3, &[1, 3]),
    (
        "glm4_moe_lite",
        "sparse_benes_bs16_layers1_2_3",
        1e-3,
        &[0, 1, 2, 3],
    ),
];

/// Kernels that were compiled ahead of time, from the config alone, give the logits of other software; without
/// layers in the pattern, it replaces those with full attention.
#[test]
fn compiled_ahead_of_time() {
    for (name, pattern, tolerance, layers) in MODELS {
        let folder = tempfile::tempdir().expect("folder");
        let [artifacts, output] = ["artifacts", "l.safetensors"].map(|f| folder.path().join(f));
        let (config, json) = (
            model(name).join("config.json"),
            model(name).join(format!("{pattern}.json")),
        );
        let args = ["compile", text(&config), "--pattern", text(&json)];
        let more = ["--target", "cpu,vulkan", "--dtype", "f32"];
        good(&[&args[..], &more, &["-o", text(&artifacts)]].concat());
        let inputs = model(name).join(format!("{pattern}.safetensors"));
        let dir = model(name);
        let args = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
        let run = |more: &[&str]| {
            good(
                &[
                    &args[..],
                    &["--output", text(&output), "--device", "cpu"],
                    more,
                ]
                .concat(),
            )
        };
        let report = run(&["--artifacts", text(&artifacts)]);
        assert_eq!(report["compiled_kernels"], serde_json::json!([]), "{name}");
        close(
            &floats(&output, "logits"),
            &floats(&inputs, "logits"),
            tolerance,
            0.0,
        )
        .expect(name);
        let report = run(&["--pattern", PATTERN]);
        let of_layers = report["layers"].as_array().expect("layers");
        let swapped = of_layers.iter().filter(|layer| layer["swapped"] == true);
        let swapped: Vec<u64> = swapped
            .filter_map(|layer| layer["layer"].as_u64())
            .collect();
        assert_eq!(swapped, layers, "{name}");
    }
}

/// What is said about a model before it runs: of the first layer that a pattern replaces, and what its files hold.
#[test]
fn described_before_they_run() {
    let explained = [
        "qwen3_moe layer 0, prefill",
        "qwen3_5_moe layer 1, prefill",
        "rope 0..32 theta 1000000",
        "yarn 8",
        "latent attention, absorbed: queries of a sparse pattern",
    ];
    let held = [
        "8 experts of 24, 2 chosen for a token; dense layers: 0",
        "8 experts of 24, 2 chosen for a token, a shared one of 32",
        "4 of attention to the last 16 tokens, 2 of full attention",
        "8 experts of 40, 2 chosen for a token",
        "4 q heads, latent of 32",
    ];
    for ((name, _, _, layers), (explained, held)) in
        MODELS.into_iter().zip(explained.into_iter().zip(held))
    {
        let config = model(name).join("config.json");
        let args = [
            "explain",
            text(&config),
            "--pattern",
            PATTERN,
            "--seq-len",
            "256",
        ];
        let said = butterfly(&args);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let first = format!(" layer {}, prefill", layers[0]);
        assert!(
            said.contains(explained) && said.contains(&first),
            "{name}: {said}"
        );
        let said = butterfly(&["inspect", text(&model(name))]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.contains(held) && said.contains("missing: 0\nextra: 0"),
            "{name}: {said}"
        );
    }
}

/// Measured with random weights: time by part, and how often each expert was chosen.
#[test]
fn measured_with_random_weights() {
    for (name, _, _, _) in MODELS {
        let config = model(name).join("config.json");
        let sizes = ["--prompt-tokens", "70", "--decode", "2", "--chunk", "32"];
        let args = [
            "bench",
            "model",
            "--random-weights",
            text(&config),
            "--profile",
        ];
        let more = ["--pattern", PATTERN, "--device", "cpu"];
        let report = good(&[&args[..], &sizes, &more].concat());
        let json: Value =
            serde_json::from_str(&fs::read_to_string(&config).expect("read")).expect("JSON");
        let json = json.get("text_config").unwrap_or(&json);
        let count = json["num_experts"]
            .as_u64()
            .or(json["num_local_experts"].as_u64())
            .or(json["n_routed_experts"].as_u64());
        for row in report["rows"].as_array().expect("rows") {
            let loads = row["expert_load"].as_object();
            let Some(count) = count else {
                assert!(loads.is_none(), "{name} has no experts");
                continue;
            };
            let chosen = json["num_experts_per_tok"].as_u64().expect("a number");
            for (layer, load) in loads.expect("loads") {
                let load = load.as_array().expect("numbers").iter();
                let load: Vec<u64> = load.filter_map(Value::as_u64).collect();
                assert_eq!(load.len() as u64, count, "{name}, layer {layer}");
                assert_eq!(
                    load.iter().sum::<u64>(),
                    70 * chosen,
                    "{name}, layer {layer}"
                );
            }
            assert!(row["profile"]["experts"].as_f64() > Some(0.0), "{name}");
        }
    }
}

/// A policy that is calibrated for a model, by head, runs in it; it is refused for others.
#[test]
fn calibrated() {
    let folder = tempfile::tempdir().expect("folder");
    let mut earlier: Option<PathBuf> = None;
    for (name, _, _, layers) in MODELS {
        let (config, policy) = (
            model(name).join("config.json"),
            folder.path().join(format!("{name}.json")),
        );
        let args = [
            "calibrate",
            "--random-weights",
            text(&config),
            "--device",
            "cpu",
        ];
        let more = ["--pattern", PATTERN, "--window", "128", "--share", "0.5"];
        let report = good(&[&args[..], &more, &["-o", text(&policy)]].concat());
        let damage = report["damage"]
            .as_array()
            .expect("rows")
            .iter()
            .enumerate();
        let measured = damage.filter(|(_, row)| row.as_array().is_some_and(|row| !row.is_empty()));
        let measured: Vec<u64> = measured.map(|(layer, _)| layer as u64).collect();
        assert_eq!(measured, layers, "{name}");
        let inputs = model(name).join("expected.safetensors");
        let output = folder.path().join("logits.safetensors");
        let dir = model(name);
        let run = |policy: &Path| {
            let args = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
            let more = [
                "--policy",
                text(policy),
                "--device",
                "cpu",
                "--output",
                text(&output),
            ];
            [&args[..], &more]
                .concat()
                .into_iter()
                .map(String::from)
                .collect::<Vec<_>>()
        };
        let own = run(&policy);
        let report = good(&own.iter().map(String::as_str).collect::<Vec<_>>());
        for layer in report["layers"].as_array().expect("layers") {
            let replaced = layers.contains(&layer["layer"].as_u64().expect("a number"));
            assert_eq!(layer["swapped"], replaced, "{name}: {layer}");
        }
        if let Some(other) = earlier.replace(policy) {
            let other = run(&other);
            let error = bad(&other.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(error.contains("was calibrated for"), "{error}");
        }
    }
}

/// A layer that is measured alone has the experts, or the dense part, that it has in the model.
#[test]
fn layers_measured_alone() {
    let config = model("glm4_moe_lite").join("config.json");
    for (layer, has_experts) in [("0", false), ("1", true), ("3", true)] {
        let args = [
            "bench",
            "layer",
            "--config",
            text(&config),
            "--layer",
            layer,
        ];
        let more = [
            "--prompt-tokens",
            "40",
            "--decode",
            "1",
            "--profile",
            "--device",
            "cpu",
        ];
        let report = good(&[&args[..], &more].concat());
        let experts = report["rows"][0]["profile"]["experts"].as_f64();
        assert_eq!(experts.is_some(), has_experts, "layer {layer}: {report}");
    }
}

/// Dense attention beside a policy, and beside a pattern that takes nothing from the layers that it replaces.
#[test]
fn evaluated_beside_dense() {
    for (name, _, _, layers) in MODELS {
        let folder = byte_model::folder_of(name);
        let [file, policy] = ["text.txt", "half.json"].map(|f| folder.path().join(f));
        let words = "Some blocks attend to others, and some do not. ".repeat(20);
        fs::write(&file, words).expect("written");
        let [dir, file, policy] = [folder.path(), &file, &policy].map(text);
        let given = ["--model", dir, "--text", file, "--device", "cpu"];
        let run = |command: &str, more: &[&str]| good(&[&[command][..], &given, more].concat());
        let sizes = ["--window", "128", "--tail", "16"];
        let more = ["--pattern", PATTERN, "-o", policy];
        run("calibrate", &[&sizes[..], &more].concat());

        let sizes = ["--window", "256", "--needle", "200", "--depths", "0.5"];
        let more = ["--policy", policy, "--pattern", "causal"];
        let report = run("eval", &[&sizes[..], &more].concat());
        let number = |value: &Value| value.as_f64().expect("a number");
        // Every token but the first of each of four windows.
        assert_eq!(report["predicted"], 940 - 4, "{name}");
        let dense = number(&report["dense_perplexity"]);
        assert!(dense.is_finite() && dense > 1.0, "{name}: {dense}");
        let policies = report["policies"].as_array().expect("policies");
        let names = policies.iter().map(|policy| policy["name"].as_str());
        assert!(names.eq(["half", "pattern 2"].map(Some)), "{policies:?}");
        for policy in policies {
            let of_layers = policy["layers"].as_array().expect("layers").iter();
            let swapped = of_layers.filter(|layer| layer["swapped"] == true);
            let swapped = swapped.filter_map(|layer| layer["layer"].as_u64());
            assert_eq!(swapped.collect::<Vec<_>>(), layers, "{name}");
            let (got, ratio) = (&policy["perplexity"], &policy["perplexity_ratio"]);
            assert!((number(ratio) - number(got) / dense).abs() < 1e-9, "{name}");
        }
        let differs = |policy: &Value| number(&policy["kl_divergence"]);
        assert!(differs(&policies[0]) > 1e-4, "{name}: {policies:?}");
        assert!(differs(&policies[1]).abs() < 1e-4, "{name}: {policies:?}");
        let rows = report["retrieval"]["by_length"].as_array().expect("rows");
        let asked = rows.iter().map(|row| row["attention"].as_str());
        let all = ["dense", "half", "pattern 2"].map(Some);
        assert!(asked.eq(all), "{name}: {rows:?}");
        assert!(rows.iter().all(|row| row["tokens"] == 200), "{name}");
    }
}

/// What a folder or a config has wrong is said with its name.
#[test]
fn what_does_not_fit_is_said() {
    let run = |name: &str, from: &str, to: &str| {
        let folder = tempfile::tempdir().expect("folder");
        for file in ["config.json", "model.safetensors", "expected.safetensors"] {
            let bytes = fs::read(model(name).join(file)).expect("a fixture");
            fs::write(folder.path().join(file), bytes).expect("written");
        }
        let config = folder.path().join("config.json");
        let json = fs::read_to_string(&config).expect("read");
        assert!(json.contains(from), "{name}: no {from}");
        fs::write(&config, json.replace(from, to)).expect("written");
        let [inputs, output] =
            ["expected.safetensors", "out.safetensors"].map(|f| folder.path().join(f));
        let args = [
            "logits",
            "--model",
            text(folder.path()),
            "--inputs",
            text(&inputs),
        ];
        let error = bad(&[&args[..], &["--output", text(&output), "--device", "cpu"]].concat());
        assert!(!output.exists(), "{name}: {to}");
        error
    };
    let has = |error: String, parts: &[&str]| {
        for part in parts {
            assert!(error.contains(part), "no `{part}` in: {error}");
        }
    };
    // More experts than there are tensors of, and fewer.
    for name in ["qwen3_moe", "qwen3_5_moe", "gpt_oss", "glm4_moe_lite"] {
        let config = fs::read_to_string(model(name).join("config.json")).expect("read");
        let names = ["num_experts", "num_local_experts", "n_routed_experts"];
        let field = names
            .iter()
            .find(|field| config.contains(&format!("\"{field}\"")));
        let field = field.expect("a number of experts");
        let from = format!("\"{field}\": 8");
        for other in [4, 12] {
            let error = run(name, &from, &format!("\"{field}\": {other}"));
            has(error, &["experts"]);
        }
        has(
            run(name, &from, &format!("\"{field}\": 0")),
            &["config.json", field],
        );
    }
    has(
        run(
            "gpt_oss",
            "\"rope_type\": \"yarn\"",
            "\"rope_type\": \"spiral\"",
        ),
        &["config.json", "rope_type", "spiral"],
    );
    has(
        run("gemma3", "\"sliding_attention\"", "\"circular_attention\""),
        &["config.json", "circular_attention"],
    );
    has(
        run("gemma3", "\"head_dim\": 32", "\"head_dim\": 36"),
        &["config.json", "head_dim"],
    );
    // Patterns tell apart the q heads of latent attention, of which there are four.
    let config = model("glm4_moe_lite").join("config.json");
    let pattern = "causal & per_head { 4 => local(0); else => all }";
    let output = tempfile::tempdir().expect("folder");
    let artifacts = output.path().join("artifacts");
    let compile = [
        "compile",
        text(&config),
        "--target",
        "cpu",
        "--pattern",
        pattern,
    ];
    let error = bad(&[&compile[..], &["-o", text(&artifacts)]].concat());
    has(error, &["head 4", "the model has 4"]);
    assert!(!artifacts.exists());
}
