//! `butterfly logits`, `generate`, `eval` and `bench` on whole models from folders.

mod command;

use butterfly_tests::{close, fixture, floats};
use command::{bad, butterfly, good, model, text};
use std::fs;
use std::path::Path;

/// A copy of a model folder, to be changed by a test.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    for file in ["config.json", "model.safetensors", "expected.safetensors"] {
        // Not `fs::copy`: the original may be read-only.
        let bytes = fs::read(model(name).join(file)).expect("a fixture");
        fs::write(folder.path().join(file), bytes).expect("written");
    }
    folder
}

fn logits(name: &str, inputs: &str, more: &[&str]) -> (serde_json::Value, Vec<f32>) {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("logits.safetensors");
    let (dir, inputs) = (model(name), model(name).join(inputs));
    let args = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
    let report = good(&[&args[..], &["--output", text(&output)], more].concat());
    (report, floats(&output, "logits"))
}

#[test]
fn logits_match_other_software() {
    for device in ["cpu", "vulkan"] {
        let flags = ["--device", device];
        let (report, got) = logits("qwen3", "expected.safetensors", &flags);
        let want = floats(&model("qwen3").join("expected.safetensors"), "logits");
        close(&got, &want, 2e-4, 0.0).expect("dense");
        assert_eq!(report["layers"][3]["swapped"], false);

        let json = model("qwen3_5").join("sparse_cshift_bs8.json");
        let sparse = "sparse_cshift_bs8.safetensors";
        let want = floats(&model("qwen3_5").join(sparse), "logits");
        for chunk in ["7", "8192"] {
            let more = ["--pattern", text(&json), "--chunk", chunk];
            let (report, got) = logits("qwen3_5", sparse, &[&flags[..], &more].concat());
            close(&got, &want, 1e-3, 0.0).expect("sparse");
            let layers = report["layers"].as_array().expect("layers");
            let swapped = layers.iter().map(|layer| &layer["layer"]);
            assert_eq!(swapped.collect::<Vec<_>>(), [3, 7]);
            assert!(layers.iter().all(|layer| layer["swapped"] == true));
        }
    }
}

/// What --activations would change is not there, and the command says so; other types are refused.
#[test]
fn activations_of_weights_that_are_not_in_fp8() {
    let (dir, inputs) = (model("llama"), model("llama").join("expected.safetensors"));
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("logits.safetensors");
    let args = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
    let args = [&args[..], &["--output", text(&output), "--device", "cpu"]].concat();
    let run = |activations| butterfly(&[&args[..], &["--activations", activations]].concat());
    let ran = run("fp8");
    assert!(ran.status.success());
    let said = String::from_utf8_lossy(&ran.stderr);
    let note = "note: --activations fp8 changes nothing: ";
    assert!(
        said.contains(note) && said.contains("has no weights in FP8"),
        "{said}"
    );
    let kept = run("bf16");
    assert!(kept.status.success() && !String::from_utf8_lossy(&kept.stderr).contains(note));
    let refused = run("int8");
    assert_eq!(refused.status.code(), Some(2));
}

/// Artifacts, which include kernels for layers that keep their attention, give the same logits as
/// kernels made at first use. A missing kernel is an error that names the command which makes it.
#[test]
fn artifacts_replace_the_compiler() {
    let folder = tempfile::tempdir().expect("folder");
    let artifacts = folder.path().join("artifacts");
    let json = model("llama").join("sparse_xor_bs8_layers2_3.json");
    let config = model("llama").join("config.json");
    good(&[
        "compile",
        text(&config),
        "--pattern",
        text(&json),
        "--target",
        "vulkan,cpu",
        "--dtype",
        "f32",
        "-o",
        text(&artifacts),
    ]);
    let inputs = "sparse_xor_bs8_layers2_3.safetensors";
    let want = floats(&model("llama").join(inputs), "logits");
    for device in ["cpu", "vulkan"] {
        let more = ["--device", device, "--artifacts", text(&artifacts)];
        let (report, got) = logits("llama", inputs, &more);
        close(&got, &want, 2e-4, 0.0).expect("logits");
        assert_eq!(report["layers"][0]["swapped"], false);
        assert_eq!(report["layers"][2]["swapped"], true);
        assert_eq!(report["compiled_kernels"], serde_json::json!([]));
    }
    let (report, _) = logits(
        "llama",
        inputs,
        &["--device", "vulkan", "--pattern", text(&json)],
    );
    // Two prefill kernels: of the pattern, and of the layers that keep their attention.
    assert_eq!(report["compiled_kernels"].as_array().map(Vec::len), Some(2));
    let dir = model("llama");
    let inputs = dir.join(inputs);
    let args = ["logits", "--model", text(&dir), "--inputs", text(&inputs)];
    let output = folder.path().join("none.safetensors");
    let more = ["--output", text(&output), "--artifacts", text(&artifacts)];
    let error = bad(&[&args[..], &more, &["--device", "cpu", "--dtype", "bf16"]].concat());
    assert!(error.contains("no cpu kernel"), "{error}");
    assert!(error.contains("butterfly compile"), "{error}");
    assert!(!output.exists());
}

/// Artifacts of a model whose layers have a window hold its kernels, where layers keep it.
#[test]
fn artifacts_hold_kernels_for_windows() {
    let folder = tempfile::tempdir().expect("folder");
    let artifacts = folder.path().join("artifacts");
    let config = model("mistral").join("config.json");
    let compile = |pattern: &str| {
        let args = ["compile", text(&config), "--pattern", pattern];
        let more = ["--target", "vulkan,cpu", "--dtype", "f32"];
        good(&[&args[..], &more, &["-o", text(&artifacts)]].concat());
    };
    let json = model("mistral").join("sparse_xor_bs8_layers1_3.json");
    compile(text(&json));
    let inputs = "sparse_xor_bs8_layers1_3.safetensors";
    let want = floats(&model("mistral").join(inputs), "logits");
    for device in ["cpu", "vulkan"] {
        let more = ["--device", device, "--artifacts", text(&artifacts)];
        let (report, got) = logits("mistral", inputs, &more);
        close(&got, &want, 5e-4, 0.0).expect("logits");
        assert_eq!(report["layers"][0]["window"], 20);
        assert_eq!(report["layers"][1]["swapped"], true);
        assert!(report["layers"][1]["window"].is_null());
        assert_eq!(report["compiled_kernels"], serde_json::json!([]));
    }
    let bench = |more: &[&str]| {
        let args = ["bench", "model", "--random-weights", text(&config)];
        let sizes = ["--prompt-tokens", "300", "--decode", "1", "--chunk", "64"];
        let more = [&args[..], &sizes, &["--device", "cpu"], more].concat();
        more.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let with: Vec<String> = bench(&["--artifacts", text(&artifacts)]);
    let with: Vec<&str> = with.iter().map(String::as_str).collect();
    let rows = good(&with)["rows"].clone();
    // Keys and values of 2 x 24 elements in f32. A layer with a window of 20 keeps 19 tokens, a
    // chunk of 64 and less than a block of 128, in whole blocks; the others keep all 301.
    let token = 2 * 2 * 24 * 4;
    assert_eq!(rows[0]["attention"], "dense");
    assert_eq!(rows[0]["cache_bytes"], 4 * 256 * token);
    assert_eq!(rows[1]["cache_bytes"], (2 * 256 + 2 * 301) * token);

    compile("block 8 causal & (local(1) | sink(1))");
    let error = bad(&with);
    for part in ["no kernels", "causal & window(20)", "compile again"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

/// With the capacity of the whole text, a shorter prompt runs the same stages as the whole text.
#[test]
fn capacity_keeps_stages() {
    let json = model("qwen3").join("sparse_bitrev_bs8.json");
    let whole = "sparse_bitrev_bs8.safetensors";
    let want = floats(&model("qwen3").join(whole), "logits");
    let more = ["--device", "cpu", "--pattern", text(&json)];
    let at = |tokens: &[u32], capacity: &str| {
        let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
        let dir = model("qwen3");
        let args = [
            "generate",
            "--model",
            text(&dir),
            "--tokens",
            &list.join(","),
        ];
        let capacity = [
            "--max-new-tokens",
            "1",
            "--ignore-end",
            "--capacity",
            capacity,
        ];
        let report = good(&[&args[..], &capacity, &more].concat());
        report["tokens"][0].as_u64().expect("a token") as usize
    };
    let bytes = fs::read(model("qwen3").join(whole)).expect("file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let ids = file.tensor("input_ids").expect("tensor").data().to_vec();
    let words = ids.as_chunks::<8>().0.iter();
    let tokens: Vec<u32> = words.map(|b| i64::from_le_bytes(*b) as u32).collect();
    let dir = model("qwen3");
    let list: Vec<String> = (1..=20).map(|i| i.to_string()).collect();
    let list = list.join(",");
    let args = [
        "generate",
        "--model",
        text(&dir),
        "--tokens",
        &list,
        "--max-new-tokens",
        "1",
    ];
    let output = butterfly(&[&args[..], &more].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("stages of the pattern are those of 21 tokens"),
        "{said}"
    );
    // On the border of a block of 8, and inside one.
    for length in [40, 43] {
        let row = &want[(length - 1) * 256..length * 256];
        let best = (0..256).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        assert_eq!(at(&tokens[..length], &tokens.len().to_string()), best);
    }
}

#[test]
fn text_goes_on_and_repeats_by_seed() {
    let folder = copy("llama");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let from = fixture("tokenizer").join(file);
        fs::copy(from, folder.path().join(file)).expect("copied");
    }
    let dir = text(folder.path());
    let base = [
        "generate",
        "--model",
        dir,
        "--device",
        "cpu",
        "--prompt",
        "Blocks attend",
    ];
    let more = ["--max-new-tokens", "12", "--ignore-end"];
    let run = |flags: &[&str]| good(&[&base[..], &more, flags].concat());
    let greedy = run(&[]);
    assert_eq!(greedy["prompt_tokens"], 13);
    assert_eq!(greedy["tokens"].as_array().expect("tokens").len(), 12);
    assert_eq!(greedy["tokens"], run(&["--chunk", "5"])["tokens"]);
    let hot = ["--temperature", "1.5", "--seed"];
    let seeded = |seed| run(&[&hot[..], &[seed]].concat())["tokens"].clone();
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
    // No random number is drawn for the chunks of the prompt.
    let chunked = run(&[&hot[..], &["1", "--chunk", "5"]].concat());
    assert_eq!(seeded("1"), chunked["tokens"]);
    // The byte tokens of "user: Blocks attend<end>\nassistant:".
    assert_eq!(run(&["--chat"])["prompt_tokens"], 6 + 13 + 5 + 1 + 10);
    let streamed = butterfly(&[&base[..], &more].concat());
    let shown = String::from_utf8_lossy(&streamed.stdout).into_owned();
    let expected = greedy["text"].as_str().expect("text");
    assert_eq!(shown, format!("{expected}\n"));

    let document = folder.path().join("text.txt");
    fs::write(
        &document,
        "Some blocks attend to others, and some do not. ".repeat(8),
    )
    .expect("written");
    let plot = folder.path().join("plot.svg");
    let args = [
        "eval",
        "--model",
        dir,
        "--device",
        "cpu",
        "--text",
        text(&document),
    ];
    let pattern = [
        "--pattern",
        "block 16 causal & (local(1) | partner(causal_shift) | sink(1))",
    ];
    let needle = ["--needle", "256", "--depths", "0,1", "--plot", text(&plot)];
    let report = good(&[&args[..], &pattern, &needle].concat());
    assert_eq!(report["predicted"], 47 * 8 - 1);
    assert!(report["kl_divergence"].as_f64().expect("a number") > 0.0);
    let found = report["retrieval"]["by_depth"].as_array();
    assert_eq!(found.expect("needles").len(), 4);
    assert!(fs::read_to_string(plot).expect("a plot").contains("<rect"));
    // The pattern `causal` is dense attention.
    let same = good(&[&args[..], &["--pattern", "causal"]].concat());
    assert!(same["kl_divergence"].as_f64().expect("a number").abs() < 1e-9);
    assert_eq!(same["top1_agreement"], 1.0);
}

#[test]
fn models_and_layers_are_measured() {
    let config = model("qwen3_5").join("config.json");
    let pattern = "block 16 causal & (local(1) | partner(causal_shift) | sink(1))";
    let more = [
        "--pattern",
        pattern,
        "--prompt-tokens",
        "64,70",
        "--decode",
        "3",
    ];
    let flags = [
        &more[..],
        &["--chunk", "32", "--device", "cpu", "--profile"],
    ]
    .concat();
    let report = good(
        &[
            &["bench", "model", "--random-weights", text(&config)],
            &flags[..],
        ]
        .concat(),
    );
    let rows = report["rows"].as_array().expect("rows");
    let kinds: Vec<_> = rows.iter().map(|row| row["attention"].as_str()).collect();
    assert_eq!(
        kinds,
        [
            Some("dense"),
            Some("butterfly"),
            Some("dense"),
            Some("butterfly")
        ]
    );
    for row in rows {
        assert!(row["prefill_tokens_per_second"].as_f64() > Some(0.0));
        assert!(row["decode_milliseconds"].as_f64() > Some(0.0));
        assert!(row["profile"]["linear attention"].as_f64() > Some(0.0));
        assert!(row["decode_profile"]["projections"].as_f64() > Some(0.0));
        // Each part that is measured is counted; for the CPU no times are predicted.
        for (phase, seconds) in [("prefill", "profile"), ("decode", "decode_profile")] {
            let counted = &row["predicted"][phase];
            let parts = counted["parts"].as_array().expect("parts");
            let names: Vec<_> = parts.iter().map(|part| part["part"].as_str()).collect();
            let measured = row[seconds].as_object().expect("seconds");
            let measured: Vec<_> = measured.keys().map(|name| Some(name.as_str())).collect();
            assert_eq!(names, measured, "{phase}");
            assert!(parts.iter().all(|part| part["bytes"].as_f64() > Some(0.0)));
            assert!(counted["predicted_ms"].is_null());
        }
    }
    // As text, a line for each part of prefill and decode.
    let bench = ["bench", "model", "--random-weights", text(&config)];
    let said = butterfly(&[&bench[..], &flags].concat());
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let lines = |start: &str| {
        said.lines()
            .filter(|line| line.trim().starts_with(start))
            .count()
    };
    for start in ["prefill: ", "decode of a token: ", "linear attention "] {
        let each = if start.starts_with("linear") { 2 } else { 1 };
        assert_eq!(lines(start), 4 * each, "{start}:\n{said}");
    }
    // Other patterns and policies, in the same run.
    let dir = tempfile::tempdir().expect("folder");
    let policy = dir.path().join("policy.json");
    good(&[
        "calibrate",
        "--random-weights",
        text(&config),
        "--pattern",
        "block 16 causal & window(16)",
        "--window",
        "128",
        "--device",
        "cpu",
        "-o",
        text(&policy),
    ]);
    let also = "block 16 causal & local(1)";
    let several = ["--also", text(&policy), "--also", also];
    let bench = ["bench", "model", "--random-weights", text(&config)];
    let report = good(&[&bench[..], &flags, &several].concat());
    let rows = report["rows"].as_array().expect("rows");
    let kinds: Vec<_> = rows.iter().map(|row| row["attention"].as_str()).collect();
    let names = ["dense", "butterfly", "policy.json", also].map(Some);
    assert_eq!(kinds, [names, names].concat());
    let only = good(
        &[
            &bench[..],
            &["--device", "cpu", "--no-dense", "--also", also],
            &flags[2..6],
        ]
        .concat(),
    );
    assert_eq!(only["rows"].as_array().map(Vec::len), Some(2));
    let wrong = bad(&[
        &bench[..],
        &["--device", "cpu", "--also", "causal & windw(3)"],
    ]
    .concat());
    assert!(wrong.contains("windw"), "{wrong}");
    let broken = dir.path().join("broken.json");
    fs::write(&broken, r#"{"schema": 1}"#).expect("written");
    let wrong = bad(&[&bench[..], &["--device", "cpu", "--also", text(&broken)]].concat());
    assert!(
        wrong.contains("broken.json: is no policy of schema 1"),
        "{wrong}"
    );
    let both = bad(&[&bench[..], &["--also", also, "--artifacts", "there"]].concat());
    assert!(both.contains("cannot be used with"), "{both}");
    let layer = ["bench", "layer", "--config", text(&config), "--layer", "7"];
    let report = good(&[&layer[..], &flags].concat());
    let ran = &report["rows"][1]["layers"][0];
    let expected: [serde_json::Value; 3] = [7.into(), 1.into(), true.into()];
    assert_eq!(
        ["layer", "index", "swapped"].map(|name| ran[name].clone()),
        expected
    );
    let not = [&layer[..], &flags, &["--swap", "3"]].concat();
    let error = bad(&not);
    assert!(
        error.contains("--layer 7") && error.contains("--swap"),
        "{error}"
    );
    let error = bad(&["bench", "layer", "--config", text(&config), "--layer", "8"]);
    assert!(error.contains("8 layers"), "{error}");
}

#[test]
fn folders_that_are_wrong_say_how() {
    let output = tempfile::tempdir().expect("folder");
    let out = output.path().join("logits.safetensors");
    let logits = |dir: &Path, more: &[&str]| {
        let inputs = model("llama").join("expected.safetensors");
        let args = ["logits", "--model", text(dir), "--inputs", text(&inputs)];
        let error = bad(&[
            &args[..],
            &["--output", text(&out), "--device", "cpu"],
            more,
        ]
        .concat());
        assert!(!out.exists());
        error
    };
    let has = |error: &str, parts: &[&str]| {
        for part in parts {
            assert!(error.contains(part), "no `{part}` in: {error}");
        }
    };
    has(
        &logits(output.path(), &[]),
        &["config.json", "cannot read", "model folder"],
    );

    let folder = copy("llama");
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() - 1000]).expect("written");
    has(
        &logits(folder.path(), &[]),
        &["model.safetensors", "truncated", "download it again"],
    );
    fs::write(&weights, b"nothing").expect("written");
    has(&logits(folder.path(), &[]), &["is no safetensors file"]);
    fs::remove_file(&weights).expect("removed");
    has(
        &logits(folder.path(), &[]),
        &["model.safetensors", "cannot read"],
    );
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "../other.safetensors"}}"#).expect("written");
    has(
        &logits(folder.path(), &[]),
        &["index.json", "outside the folder"],
    );

    // A config with other shapes than the weights.
    let folder = copy("llama");
    let config = folder.path().join("config.json");
    let original = fs::read_to_string(&config).expect("config");
    let change = |from: &str, to: &str| {
        assert!(original.contains(from), "{from}");
        fs::write(&config, original.replace(from, to)).expect("written");
        logits(folder.path(), &[])
    };
    has(
        &change("\"intermediate_size\": 128", "\"intermediate_size\": 120"),
        &[
            "model.layers.0.mlp.gate_proj.weight: has shape [128, 64], expected [120, 64]",
            "12 of",
        ],
    );
    has(
        &change("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5"),
        &["model.layers.4.self_attn.q_proj.weight: missing"],
    );
    has(
        &change("\"rope_type\": \"default\"", "\"rope_type\": \"ntk\""),
        &["rope_type", "ntk", "default, linear, llama3 or yarn"],
    );
    has(
        &change("\"llama\"", "\"mamba\""),
        &["model_type", "mamba", "llama"],
    );
    has(&change("\"silu\"", "\"relu\""), &["hidden_act", "relu"]);
    fs::write(&config, &original).expect("written");

    has(
        &bad(&[
            "generate",
            "--model",
            text(folder.path()),
            "--prompt",
            "Hello",
        ]),
        &["tokenizer.json", "cannot read", "give tokens"],
    );
    has(
        &logits(folder.path(), &["--swap", "9"]),
        &["--swap", "--pattern"],
    );
    has(
        &logits(folder.path(), &["--pattern", "causal", "--swap", "9"]),
        &["swapped layer 9 does not exist", "below 4"],
    );
    has(
        &logits(folder.path(), &["--capacity", "50"]),
        &["--capacity 50", "at least 101"],
    );
    has(
        &logits(folder.path(), &["--capacity", "268435456"]),
        &["GB", "needed", "--capacity"],
    );
}

#[test]
fn long_prompts_are_warned_of() {
    let folder = copy("llama");
    let config = folder.path().join("config.json");
    let original = fs::read_to_string(&config).expect("config");
    fs::write(
        &config,
        original.replace(
            "\"max_position_embeddings\": 512",
            "\"max_position_embeddings\": 64",
        ),
    )
    .expect("written");
    let output = folder.path().join("logits.safetensors");
    let inputs = folder.path().join("expected.safetensors");
    let args = [
        "logits",
        "--model",
        text(folder.path()),
        "--inputs",
        text(&inputs),
    ];
    let output = butterfly(&[&args[..], &["--output", text(&output), "--device", "cpu"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && error.contains("warning: 101 tokens are more than the 64"),
        "{error}"
    );
    // More tokens than GPT-2 has position embeddings.
    let folder = copy("gpt2");
    let many: Vec<String> = (0..130).map(|i| i.to_string()).collect();
    let error = bad(&[
        "generate",
        "--model",
        text(folder.path()),
        "--tokens",
        &many.join(","),
        "--device",
        "cpu",
    ]);
    assert!(error.contains("128 positions"), "{error}");
}
