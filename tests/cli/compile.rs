//! `butterfly compile` on the configs of nine models.

use butterfly_tests::fixture;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

const PATTERN: &str = "causal & (local(1) | partner(causal_shift) | sink(1))";

fn butterfly(threads: &str, args: &[&str]) -> Output {
    // Without NVRTC, only texts are made: it has its own test, and would take most of the time.
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command
        .args(args)
        .env("RAYON_NUM_THREADS", threads)
        .env_remove("VIRTUAL_ENV")
        .env_remove("BUTTERFLY_NVRTC")
        .output()
        .expect("runs")
}

/// The content of every file below `dir`, by path.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in [dir.to_path_buf(), dir.join("kernels")] {
        for entry in std::fs::read_dir(&folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                files.insert(
                    path.strip_prefix(dir).expect("below").display().to_string(),
                    std::fs::read(&path).expect("file"),
                );
            }
        }
    }
    files
}

fn compile(threads: &str, config: &Path, dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let paths = [
        config.to_str().expect("utf-8"),
        dir.to_str().expect("utf-8"),
    ];
    let run = butterfly(
        threads,
        &["compile", paths[0], "--pattern", PATTERN, "-o", paths[1]],
    );
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    files(dir)
}

/// Compiles a model by two threads and by one, and nested in another config, into folders of `root`:
/// the kernels are the same.
fn twice_and_nested(config: &Path, root: &Path) {
    let named = config.display();
    let once = compile("2", config, &root.join("once"));
    assert_eq!(once, compile("1", config, &root.join("twice")), "{named}");
    let inner: serde_json::Value =
        serde_json::from_slice(&std::fs::read(config).expect("config")).expect("json");
    let outer = root.join(config.file_name().expect("name"));
    let nested = serde_json::json!({ "model_type": inner["model_type"], "text_config": inner });
    std::fs::write(&outer, nested.to_string()).expect("written");
    let nested = compile("2", &outer, &root.join("nested"));
    let kernels = |files: &BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
        files
            .iter()
            .filter(|(path, _)| *path != "manifest.json")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    assert_eq!(kernels(&once), kernels(&nested), "{named}");
}

#[test]
fn nine_models_twice_and_nested_give_the_same_kernels() {
    let root = tempfile::tempdir().expect("root");
    let configs = std::fs::read_dir(fixture("configs")).expect("configs");
    let configs = configs.map(|entry| entry.expect("entry").path());
    let configs: Vec<PathBuf> = configs.collect();
    assert_eq!(configs.len(), 9);
    let folder = |config: &Path| root.path().join(config.file_stem().expect("a name"));
    // Two models at a time: a single thread makes a third of the kernels.
    let queue = Mutex::new(configs.iter());
    let work = || {
        while let Some(config) = queue.lock().ok().and_then(|mut queue| queue.next()) {
            let folder = folder(config);
            std::fs::create_dir(&folder).expect("a folder");
            twice_and_nested(config, &folder);
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let once = folder(&configs[0]).join("once");
    let verify = butterfly("2", &["verify", "--json", once.to_str().expect("utf-8")]);
    let report: serde_json::Value = serde_json::from_slice(&verify.stdout).expect("object");
    assert_eq!(
        (verify.status.code(), &report["same"]),
        (Some(0), &report["files"]),
        "{report}"
    );
}

#[test]
fn with_nvrtc_the_binaries_are_the_same_twice_and_their_registers_are_known() {
    let root = tempfile::tempdir().expect("root");
    let config = fixture("configs/qwen3-8b.json");
    let on = |threads: &str, dir: &str| {
        let dir = root.path().join(dir);
        let run = Command::new(env!("CARGO_BIN_EXE_butterfly"))
            .arg("compile")
            .arg(&config)
            .args([
                "--pattern",
                PATTERN,
                "--target",
                "cuda:sm_80,cuda:sm_90a",
                "-o",
            ])
            .arg(&dir)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .expect("runs");
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
        files(&dir)
    };
    let once = on("2", "once");
    let cubins = once.keys().filter(|path| path.ends_with(".cubin")).count();
    assert_eq!(
        cubins, 5,
        "NVRTC is needed: scripts/setup installs it, scripts/test names it"
    );
    assert_eq!(once, on("1", "twice"));
    let manifest: serde_json::Value =
        serde_json::from_slice(&once["manifest.json"]).expect("manifest");
    // The matrix product for linear layers on Hopper.
    assert_eq!(manifest["products"][0]["product"]["dtype"], "bf16");
    for kernel in manifest["kernels"].as_array().expect("kernels") {
        let registers = kernel["registers"].as_u64().expect("registers");
        assert!((16..=255).contains(&registers), "{registers}");
        assert!(kernel["spills"].as_u64().expect("spills") <= 80);
    }
}

/// Folders for Hopper hold the kernels of a model's linear attention, for both orders of v heads, which are listed, made
/// again with the same bytes, and kept when others are added.
#[test]
fn artifacts_hold_delta_rules() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    let dir = dir.to_str().expect("utf-8");
    let said = |args: &[&str]| {
        let run = butterfly("2", args);
        let error = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{args:?}: {error}");
        String::from_utf8(run.stdout).expect("utf-8")
    };
    let rules = |config: &str, more: &[&str]| {
        let config = fixture("configs").join(config);
        let config = config.to_str().expect("utf-8");
        let args = ["compile", config, "--pattern", PATTERN, "-o", dir];
        said(&[&args[..], more].concat());
        let manifest: serde_json::Value =
            serde_json::from_str(&said(&["inspect", dir, "--json"])).expect("object");
        let rules = manifest["delta_rules"].as_array().cloned();
        let of = |entry: &serde_json::Value| {
            let rule = &entry["rule"];
            let [dtype, k, v, tiled] =
                ["dtype", "k_heads", "v_heads", "tiled"].map(|name| &rule[name]);
            format!("{dtype} {k}/{v} {tiled}")
        };
        let rules = rules.unwrap_or_default();
        rules.iter().map(of).collect::<Vec<_>>()
    };
    let hopper = ["--target", "cuda:sm_90a"];
    let with = |more: &[&'static str]| [&hopper[..], more].concat();
    let name = "qwen3.5-9b.json";
    let bf16 = [r#""bf16" 16/32 false"#, r#""bf16" 16/32 true"#];
    let f16 = [r#""f16" 16/32 false"#, r#""f16" 16/32 true"#];
    assert_eq!(rules(name, &with(&["--dtype", "bf16"])), bf16);
    let report: serde_json::Value =
        serde_json::from_str(&said(&["verify", dir, "--json"])).expect("object");
    assert_eq!(report["different"].as_array().map(Vec::len), Some(0));
    let both = rules(name, &with(&["--dtype", "f16", "--add"]));
    assert_eq!(both, [f16, bf16].concat());
    assert!(said(&["inspect", dir]).contains("butterfly_delta_walk threads 160"));
    let none: [&str; 0] = [];
    assert_eq!(rules(name, &with(&["--dtype", "f32"])), none);
    assert_eq!(rules(name, &["--target", "cuda:sm_80"]), none);
    assert_eq!(rules("qwen3-8b.json", &hopper), none);
}

/// Folders for Hopper hold the kernels of a model's experts, for weights as the config says that they are stored, which
/// are listed, made again with the same bytes, and kept when others are added.
#[test]
fn artifacts_hold_products_with_experts() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    let dir = dir.to_str().expect("utf-8");
    let said = |args: &[&str]| {
        let run = butterfly("2", args);
        let error = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{args:?}: {error}");
        String::from_utf8(run.stdout).expect("utf-8")
    };
    let read = std::fs::read_to_string(fixture("configs/qwen3-8b.json")).expect("a config");
    let grouped = |fields: serde_json::Value, more: &[&str]| {
        let mut config: serde_json::Value = serde_json::from_str(&read).expect("an object");
        config["model_type"] = "qwen3_moe".into();
        config["moe_intermediate_size"] = 768.into();
        for (name, value) in fields.as_object().expect("fields") {
            config[name] = value.clone();
        }
        let path = root.path().join("config.json");
        std::fs::write(&path, config.to_string()).expect("written");
        let path = path.to_str().expect("utf-8");
        let args = ["compile", path, "--pattern", PATTERN, "-o", dir];
        said(&[&args[..], more].concat());
        let manifest: serde_json::Value =
            serde_json::from_str(&said(&["inspect", dir, "--json"])).expect("object");
        let grouped = manifest["grouped"].as_array().cloned();
        let of = |entry: &serde_json::Value| {
            let grouped = &entry["grouped"];
            let [dtype, format, columns] =
                ["dtype", "format", "columns"].map(|name| &grouped[name]);
            format!("{dtype} {format} {columns}")
        };
        let grouped = grouped.unwrap_or_default();
        grouped.iter().map(of).collect::<Vec<_>>()
    };
    let bf16 = ["--target", "cuda:sm_90a", "--dtype", "bf16"];
    let plain = || serde_json::json!({});
    let dense = [r#""bf16" "dense" 768"#, r#""bf16" "dense" 4096"#];
    assert_eq!(grouped(plain(), &bf16), dense);
    let report: serde_json::Value =
        serde_json::from_str(&said(&["verify", dir, "--json"])).expect("object");
    assert_eq!(report["different"].as_array().map(Vec::len), Some(0));
    assert!(
        said(&["inspect", dir]).contains("bf16 dense K 768\n    butterfly_grouped threads 512")
    );
    let f16 = ["--target", "cuda:sm_90a", "--dtype", "f16", "--add"];
    let of_f16 = [r#""f16" "dense" 768"#, r#""f16" "dense" 4096"#];
    assert_eq!(grouped(plain(), &f16), [of_f16, dense].concat());

    let affine = serde_json::json!({"quantization": {"bits": 4, "group_size": 64}});
    let format = r#"{"affine4":{"group":64,"scales":"bf16"}}"#;
    let made = [768, 4096].map(|columns| format!(r#""bf16" {format} {columns}"#));
    assert_eq!(grouped(affine, &bf16), made);
    let method = |name: &str| serde_json::json!({"quantization_config": {"quant_method": name}});
    assert_eq!(grouped(method("mxfp4"), &bf16).len(), 2);
    assert_eq!(grouped(method("fp8"), &bf16).len(), 4);
    let none: [&str; 0] = [];
    assert_eq!(grouped(method("awq"), &bf16), none);
    let f32 = ["--target", "cuda:sm_90a", "--dtype", "f32"];
    assert_eq!(grouped(plain(), &f32), none);
    assert_eq!(grouped(plain(), &["--target", "cuda:sm_80"]), none);
}

/// A `stage` in the pattern's header holds in the plan, the proof and the generated module, as in
/// every other command.
#[test]
fn a_stage_in_the_header_is_that_of_every_layer() {
    let root = tempfile::tempdir().expect("root");
    let config = fixture("configs/gpt2.json");
    let pattern = format!("block 128 stage 2 {PATTERN}");
    let dir = root.path().join("artifacts");
    let (config, dir) = (
        config.to_str().expect("utf-8"),
        dir.to_str().expect("utf-8"),
    );
    let object = |args: &[&str]| -> serde_json::Value {
        let run = butterfly("2", &[args, &["--json", "--pattern", &pattern]].concat());
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{said}");
        serde_json::from_slice(&run.stdout).expect("object")
    };
    object(&["compile", config, "--target", "cpu", "-o", dir]);
    let manifest = std::fs::read(Path::new(dir).join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 12);
    assert!(layers.iter().all(|layer| layer["index"] == 2), "{layers:?}");
    let proof = object(&["prove", "--seq-len", "1024", "--layers", "12"]);
    assert_eq!(manifest["capacity"], 1024);
    assert_eq!(manifest["proof"], proof);
    let rows = |more: &[&str]| object(&[&["topology", "--seq-len", "1024"], more].concat());
    let of_layer = rows(&["--layer", "7", "--layers", "12"]);
    assert_eq!((&of_layer["stage"], &of_layer), (&2.into(), &rows(&[])));
    assert_eq!(of_layer, rows(&["--stage", "2"]));
    let explained = object(&["explain", config, "--layer", "5", "--target", "cpu"]);
    assert_eq!(explained["stage"], 2);
    let bench = [
        "bench",
        "attention",
        "--device",
        "cpu",
        "--seq-len",
        "1024",
        "--repeats",
        "1",
    ];
    let degree =
        |more: &[&str]| object(&[&bench[..], more].concat())["rows"][0]["mean_degree"].clone();
    assert_eq!(degree(&[]), degree(&["--stage", "2"]));
    assert_ne!(degree(&[]), degree(&["--stage", "0"]));
}

#[test]
fn bad_configs_and_patterns() {
    let root = tempfile::tempdir().expect("root");
    let (config, dir) = (
        root.path().join("config.json"),
        root.path().join("artifacts"),
    );
    let refuses = |content: &str, pattern: &str, parts: &[&str]| {
        std::fs::write(&config, content).expect("written");
        let paths = [
            config.to_str().expect("utf-8"),
            dir.to_str().expect("utf-8"),
        ];
        let run = butterfly(
            "2",
            &["compile", paths[0], "--pattern", pattern, "-o", paths[1]],
        );
        let message = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{message}");
        for part in parts {
            assert!(message.contains(part), "should say {part:?}:\n{message}");
        }
        assert!(!dir.exists(), "a failed run left artifacts");
    };
    let llama = std::fs::read_to_string(fixture("configs/llama-3.1-8b.json")).expect("config");
    refuses(
        &llama.replace("\"num_attention_heads\": 32,", ""),
        PATTERN,
        &["config.json", "num_attention_heads"],
    );
    refuses(
        &llama.replace("\"model_type\": \"llama\"", "\"model_type\": \"mamba\""),
        PATTERN,
        &["mamba", "qwen3"],
    );
    refuses(&llama[..200], PATTERN, &["config.json", "line"]);
    refuses(
        &llama,
        "causal & sink(0)",
        &["query 0", "attends to no key", "^^^^^^^"],
    );
    refuses(&llama, "causal & (local(1) | partner(zigzag))", &["zigzag"]);
    refuses(&llama, "block 0 causal", &["at least 1"]);
}

/// `--verify` adds a pass, which `--timings` lists; debug builds always run it.
#[test]
fn plans_are_verified() {
    let root = tempfile::tempdir().expect("root");
    let (config, dir) = (fixture("configs/qwen3-8b.json"), root.path().join("out"));
    let paths = [&config, &dir].map(|path| path.to_str().expect("utf-8"));
    let args = ["compile", paths[0], "--pattern", PATTERN, "-o", paths[1]];
    let more = ["--target", "cpu", "--verify", "--timings"];
    let run = butterfly("2", &[&args[..], &more].concat());
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let mut lines = said.lines().map(str::trim_start);
    assert!(lines.any(|line| line.starts_with("verify ")), "{said}");
}
