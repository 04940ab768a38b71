//! Weights, configs and tokens that do not fit together, and weights that are not finite.

use butterfly_tests::{close, fixture, floats};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the command with 2 GiB of address space, far less than any size that the tests ask for.
fn butterfly(args: &[&str]) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -v 2097152; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_butterfly"))
        .args(args)
        .output()
        .expect("runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The messages of a command that must end with `code`.
fn ends(code: i32, args: &[&str]) -> String {
    let output = butterfly(args);
    let error = said(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(!error.contains("panicked"), "{args:?}: {error}");
    error
}

fn has(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// Tensors by name: type, shape and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).expect("file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.tensors().into_iter();
    tensors
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        let view = TensorView::new(*dtype, shape.clone(), data).expect("a view");
        (name, view)
    });
    let bytes = safetensors::serialize(views, None).expect("a file");
    fs::write(path, bytes).expect("written");
}

/// A copy of a model folder, to be changed by a test.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for file in ["config.json", "model.safetensors", "expected.safetensors"] {
            // Not `fs::copy`: the original may be read-only.
            let bytes = fs::read(fixture("models").join(name).join(file)).expect("a fixture");
            fs::write(folder.path().join(file), bytes).expect("written");
        }
        Self(folder)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn config(&self, from: &str, to: &str) -> &Self {
        let path = self.path("config.json");
        let config = fs::read_to_string(&path).expect("config");
        assert!(config.contains(from), "{from}");
        fs::write(&path, config.replace(from, to)).expect("written");
        self
    }

    fn change(&self, file: &str, change: impl FnOnce(&mut Tensors)) -> &Self {
        let path = self.path(file);
        let mut all = tensors(&path);
        change(&mut all);
        write(&path, &all);
        self
    }

    /// Runs `butterfly logits`, which must end with `code`; gives its messages.
    fn logits(&self, code: i32, more: &[&str]) -> String {
        let [inputs, output] = ["expected.safetensors", "out.safetensors"].map(|f| self.path(f));
        let args = [
            "logits",
            "--model",
            text(self.0.path()),
            "--inputs",
            text(&inputs),
        ];
        let output = ["--device", "cpu", "--output", text(&output)];
        ends(code, &[&args[..], &output, more].concat())
    }

    /// Whether the logits are those of the fixture.
    fn as_expected(&self) -> bool {
        let want = floats(&self.path("expected.safetensors"), "logits");
        close(
            &floats(&self.path("out.safetensors"), "logits"),
            &want,
            2e-4,
            0.0,
        )
        .is_ok()
    }

    fn generate(&self, code: i32, more: &[&str]) -> String {
        let args = [
            "generate",
            "--model",
            text(self.0.path()),
            "--device",
            "cpu",
        ];
        ends(
            code,
            &[&args[..], &["--tokens", "1,2,3", "--ignore-end"], more].concat(),
        )
    }
}

/// Sets element `at` of a tensor.
fn set(tensors: &mut Tensors, name: &str, at: usize, x: f32) {
    let (dtype, _, bytes) = tensors.get_mut(name).expect(name);
    match dtype {
        Dtype::F32 => bytes[4 * at..4 * at + 4].copy_from_slice(&x.to_le_bytes()),
        Dtype::BF16 => bytes[2 * at..2 * at + 2].copy_from_slice(&x.to_le_bytes()[2..]),
        other => panic!("{name} is {other:?}"),
    }
}

const GATE: &str = "model.layers.1.mlp.gate_proj.weight";

#[test]
fn numbers_that_are_not_finite_are_said() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let copy = Copy::of("llama");
        copy.change("model.safetensors", |all| set(all, GATE, 64 + 5, value));
        let weights = format!("weights `{GATE}` hold 1 numbers");
        let place = format!("({shown}) at [1, 5]");
        let parts = [
            "logits are not finite",
            &weights,
            &place,
            "download the weights again",
        ];
        has(&copy.logits(1, &[]), &parts);
        // The output is written all the same, with the logits that are not finite.
        let written = floats(&copy.path("out.safetensors"), "logits");
        assert!(written.iter().any(|x| !x.is_finite()));
        has(&copy.generate(1, &[]), &parts);

        let args = [
            "generate",
            "--model",
            text(copy.0.path()),
            "--device",
            "cpu",
        ];
        let output = butterfly(&[&args[..], &["--tokens", "1,2", "--json"]].concat());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["tokens"], serde_json::json!([]));
        has(report["not_finite"].as_str().expect("text"), &parts);

        let args = [
            "bench",
            "model",
            "--model",
            text(copy.0.path()),
            "--device",
            "cpu",
        ];
        let more = ["--prompt-tokens", "16", "--decode", "2"];
        has(&ends(1, &[&args[..], &more].concat()), &parts);

        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(fixture("tokenizer").join(file), copy.path(file)).expect("copied");
        }
        let document = copy.path("text.txt");
        fs::write(&document, "Some blocks attend to others.").expect("written");
        let args = ["eval", "--model", text(copy.0.path()), "--device", "cpu"];
        let more = ["--text", text(&document), "--needle", "128"];
        has(&ends(1, &[&args[..], &more].concat()), &parts);
    }
}

/// Finite weights can make activations exceed the range of an element type.
#[test]
fn numbers_beyond_a_type_are_said() {
    let copy = Copy::of("llama");
    copy.change("model.safetensors", |all| set(all, GATE, 3, 1e30));
    let parts = [&format!("weights `{GATE}` hold 1 numbers that f16 cannot hold")[..]];
    has(&copy.logits(1, &["--dtype", "f16"]), &parts);

    // A bias is rounded as matrices are.
    let copy = Copy::of("gpt2");
    let bias = "transformer.h.0.mlp.c_fc.bias";
    copy.change("model.safetensors", |all| set(all, bias, 3, 1e30));
    let parts = [&format!("weights `{bias}` hold 1 numbers that f16 cannot hold")[..]];
    has(&copy.logits(1, &["--dtype", "f16"]), &parts);

    let copy = Copy::of("llama");
    copy.change("model.safetensors", |all| {
        (0..64).for_each(|i| set(all, "model.norm.weight", i, 6e4));
        (0..64 * 256).for_each(|i| set(all, "lm_head.weight", i, 6e4));
    });
    let parts = [
        "the weights are finite",
        "range of f16",
        "--dtype bf16 or f32",
    ];
    has(&copy.logits(1, &["--dtype", "f16"]), &parts);
}

const TIED: [&str; 2] = [
    "\"tie_word_embeddings\": false",
    "\"tie_word_embeddings\": true",
];

/// As in transformers 5: two different matrices are not tied, whatever the config says; if there is
/// only one, it serves as both under either name.
#[test]
fn weights_decide_what_is_tied() {
    let copy = Copy::of("llama");
    copy.config(TIED[0], TIED[1]);
    let error = copy.logits(0, &[]);
    has(
        &error,
        &[
            "config.json",
            "`tie_word_embeddings`",
            "lm_head.weight differs",
        ],
    );
    assert!(copy.as_expected());

    let embedding = "model.embed_tokens.weight";
    let equal = Copy::of("llama");
    equal.change("model.safetensors", |all| {
        let matrix = all[embedding].clone();
        all.insert("lm_head.weight".into(), matrix);
    });
    equal.logits(0, &[]);
    let want = floats(&equal.path("out.safetensors"), "logits");
    let again = |copy: &Copy| {
        let error = copy.logits(0, &[]);
        assert!(!error.contains("tie_word_embeddings"), "{error}");
        let got = floats(&copy.path("out.safetensors"), "logits");
        close(&got, &want, 0.0, 0.0).expect("the same");
    };
    again(equal.config(TIED[0], TIED[1]));
    // The same values, stored in another type.
    again(equal.change("model.safetensors", |all| {
        let (dtype, shape, bytes) = all[embedding].clone();
        assert_eq!(dtype, Dtype::BF16);
        let halves = bytes.as_chunks::<2>().0.iter();
        let wide = halves.flat_map(|[low, high]| [0, 0, *low, *high]).collect();
        all.insert("lm_head.weight".into(), (Dtype::F32, shape, wide));
    }));
    again(equal.change("model.safetensors", |all| {
        all.remove(embedding).expect("there");
    }));
    let untied = equal.config(TIED[1], TIED[0]);
    has(
        &untied.logits(2, &[]),
        &["model.embed_tokens.weight: missing"],
    );
}

#[test]
fn masks_hide_nothing_or_are_refused() {
    let copy = Copy::of("llama");
    let plain = copy.logits(0, &[]);
    has(
        &plain,
        &["only `input_ids` and `attention_mask` are read, not logits"],
    );
    let ones = |shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let bytes = (0..count).flat_map(|_| 1i64.to_le_bytes()).collect();
        (Dtype::I64, shape.to_vec(), bytes)
    };
    let shape = tensors(&copy.path("expected.safetensors"))["input_ids"]
        .1
        .clone();
    let [rows, length] = shape[..] else {
        panic!("{shape:?}")
    };
    let with = |mask| {
        copy.change("expected.safetensors", |all| {
            all.insert("attention_mask".into(), mask);
        })
    };
    with(ones(&shape)).logits(0, &[]);
    assert!(copy.as_expected());
    fs::remove_file(copy.path("out.safetensors")).expect("written");

    let mut padded = ones(&shape);
    padded.2[8 * 3] = 0;
    let error = with(padded).logits(2, &[]);
    has(
        &error,
        &[
            "expected.safetensors",
            "`attention_mask` hides token 3 of sequence 0",
            "padding",
        ],
    );
    let error = with(ones(&[rows, length + 1])).logits(2, &[]);
    has(&error, &["`attention_mask` has shape", "`input_ids`"]);
    let mut flags = vec![1; rows * length];
    with((Dtype::BOOL, shape.clone(), flags.clone())).logits(0, &[]);
    flags[length - 1] = 0;
    with((Dtype::BOOL, shape.clone(), flags)).logits(2, &[]);
}

#[test]
fn files_hold_their_tensors_and_no_more() {
    let copy = Copy::of("llama");
    let path = copy.path("model.safetensors");
    let bytes = fs::read(&path).expect("weights");
    fs::write(&path, [&bytes[..], &[0; 7]].concat()).expect("written");
    has(
        &copy.logits(2, &[]),
        &["model.safetensors", "7 bytes after its tensors"],
    );
    fs::write(&path, &bytes[..bytes.len() - 10]).expect("written");
    has(
        &copy.logits(2, &[]),
        &["is truncated", "10 bytes before its end"],
    );
}

#[test]
fn the_index_decides() {
    let copy = Copy::of("llama");
    let all = tensors(&copy.path("model.safetensors"));
    fs::remove_file(copy.path("model.safetensors")).expect("there");
    let (mut first, mut second) = (all.clone(), all.clone());
    let last = "model.layers.3.mlp.up_proj.weight";
    first.remove(last);
    // This tensor is in both shards, with other values in the second.
    second.get_mut(GATE).expect("there").2.fill(0x77);
    let index = |of: &dyn Fn(&str) -> &'static str| {
        let map: BTreeMap<&String, &str> = all.keys().map(|name| (name, of(name))).collect();
        let text = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
        fs::write(copy.path("model.safetensors.index.json"), text).expect("written");
    };
    write(&copy.path("one.safetensors"), &first);
    index(&|_| "one.safetensors");
    let error = copy.logits(2, &[]);
    has(
        &error,
        &["index.json", last, "one.safetensors", "no such tensor"],
    );
    index(&|name| {
        if name == last {
            "two.safetensors"
        } else {
            "one.safetensors"
        }
    });
    let error = copy.logits(2, &[]);
    has(
        &error,
        &[
            "two.safetensors",
            "cannot read",
            "index.json names this file",
        ],
    );
    write(&copy.path("two.safetensors"), &second);
    copy.logits(0, &[]);
    assert!(copy.as_expected());
    for outside in ["../one.safetensors", "/one.safetensors", ".."] {
        index(&|_| outside);
        has(
            &copy.logits(2, &[]),
            &["index.json", outside, "outside the folder"],
        );
    }
    let path = copy.path("model.safetensors.index.json");
    fs::write(&path, "{\"weight_map\": {}}").expect("written");
    has(&copy.logits(2, &[]), &["index.json", "names no tensors"]);
}

/// Each of these configs would take gigabytes if memory were allocated before shapes are compared.
#[test]
fn shapes_are_compared_before_memory_is_taken() {
    for (model, from, to, parts) in [
        (
            "gpt2",
            "\"n_positions\": 128",
            "\"n_positions\": 100000000",
            "wpe.weight",
        ),
        (
            "gpt2",
            "\"vocab_size\": 256",
            "\"vocab_size\": 100000000",
            "wte.weight",
        ),
        ("gpt2", "\"n_embd\": 64", "\"n_embd\": 416", "wte.weight"),
        (
            "gpt2",
            "\"n_layer\": 2",
            "\"n_layer\": 4096",
            "h.2.ln_1.weight: missing",
        ),
        (
            "gpt2",
            "\"n_inner\": null",
            "\"n_inner\": 4294967295",
            "mlp.c_fc.weight",
        ),
        (
            "llama",
            "\"vocab_size\": 256",
            "\"vocab_size\": 4294967295",
            "embed_tokens.weight",
        ),
        (
            "llama",
            "\"hidden_size\": 64",
            "\"hidden_size\": 1073741824",
            "embed_tokens.weight",
        ),
        (
            "llama",
            "\"intermediate_size\": 128",
            "\"intermediate_size\": 4294967295",
            "gate_proj",
        ),
        (
            "llama",
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 65536",
            "q_proj",
        ),
        (
            "qwen3_5",
            "\"linear_num_value_heads\": 4",
            "\"linear_num_value_heads\": 65536",
            "linear_attn",
        ),
    ] {
        let copy = Copy::of(model);
        let error = copy.config(from, to).logits(2, &[]);
        has(&error, &["config.json", parts]);
        assert!(!copy.path("out.safetensors").exists());
    }
}

/// GGUF files that are broken, each by one change to a file that is read.
#[test]
fn gguf_files_that_are_broken_are_refused() {
    use butterfly_tests::gguf::twin;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    twin::twin(&fixture("models/llama"), &path, &twin::in_bf16);
    let whole = fs::read(&path).expect("a file");
    let args = [
        "generate",
        "-m",
        text(&path),
        "--tokens",
        "1,2",
        "-n",
        "2",
        "--device",
        "cpu",
    ];
    ends(0, &args);
    let name = whole
        .windows(10)
        .position(|part| part == b"output_nor")
        .expect("a name");
    let changed = |change: &dyn Fn(&mut Vec<u8>), parts: &[&str]| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&path, bytes).expect("written");
        let error = ends(2, &args);
        has(&error, &["model.gguf"]);
        has(&error, parts);
    };
    changed(&|bytes| bytes.truncate(bytes.len() / 2), &["tensor"]);
    changed(
        &|bytes| bytes.truncate(24),
        &["39", "fit into the rest of the file"],
    );
    changed(&|bytes| bytes[0] = b'X', &["GGUF"]);
    changed(&|bytes| bytes[4] = 9, &["version"]);
    // The number of tensors, then that of metadata.
    changed(&|bytes| bytes[15] = 16, &["tensors"]);
    changed(&|bytes| bytes[23] = 16, &["metadata"]);
    // The name of a tensor that the model needs.
    changed(&|bytes| bytes[name] = b'p', &["model.norm.weight: missing"]);
    changed(&Vec::clear, &[]);
}

/// A packed weight whose scale is NaN.
#[test]
fn scales_that_are_not_finite_are_said() {
    use butterfly_tests::gguf::twin;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    // Q8_0: blocks of 32 elements, of which each begins with an f16.
    let store = |name: &str, _: &[usize], values: &[f32]| {
        let scale = match name {
            "blk.1.ffn_down.weight" => [0x00, 0x7e],
            _ => [0x00, 0x20],
        };
        let block = |_| scale.into_iter().chain([1; 32]);
        (8, (0..values.len() / 32).flat_map(block).collect())
    };
    twin::twin(&fixture("models/llama"), &path, &store);
    let args = [
        "generate",
        "-m",
        text(&path),
        "--tokens",
        "1,2",
        "-n",
        "2",
        "--device",
        "cpu",
    ];
    let error = ends(1, &args);
    has(
        &error,
        &["model.layers.1.mlp.down_proj.weight", "not finite"],
    );
}
