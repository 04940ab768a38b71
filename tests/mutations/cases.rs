//! The files that are mutated, and the commands that read them.

use crate::mutate;
use butterfly_tests::fixture;
use butterfly_tests::gguf::twin;
use fastrand::Rng;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name of the output of every command, a file or a folder.
pub(crate) const OUTPUT: &str = "out";

type Mutate = fn(&mut Rng, &mut Vec<u8>);
type Files = Vec<(String, Vec<u8>)>;

/// Valid files, the one of them that is mutated, and the commands that read it.
struct Base {
    kind: &'static str,
    name: String,
    files: Files,
    mutated: &'static str,
    mutate: Mutate,
    commands: Vec<Vec<String>>,
}

/// A command, and the files in its folder, one of which may be mutated.
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
    files: Files,
    mutated: &'static str,
}

impl Case {
    /// Writes the files below `folder`.
    pub(crate) fn lay(&self, folder: &Path) {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            let parent = path.parent().expect("below the folder");
            fs::create_dir_all(parent).expect("a folder");
            fs::write(path, bytes).expect("written");
        }
    }

    /// The content of the file that is mutated.
    pub(crate) fn mutated(&self) -> &[u8] {
        let found = self.files.iter().find(|(name, _)| name == self.mutated);
        &found.expect("one of the files").1
    }

    /// Writes the files to `folder`, to be looked at later, and describes the case.
    pub(crate) fn keep(&self, folder: &Path) -> String {
        self.lay(folder);
        format!("{} ({}) in {}", self.kind, self.name, folder.display())
    }

    /// Files in `folder` that are neither inputs nor outputs: leftovers of the command.
    pub(crate) fn left(&self, folder: &Path) -> Vec<PathBuf> {
        let laid = |path: &Path| {
            self.files
                .iter()
                .any(|(name, _)| Path::new(name).starts_with(path))
        };
        // The lock file beside an artifact folder stays: without it, two writers could both hold
        // the lock.
        let lock = format!(".{OUTPUT}.lock");
        let expected = |path: &Path| {
            [OUTPUT, "stdout", "stderr", &lock]
                .iter()
                .any(|name| path == Path::new(name))
                || laid(path)
        };
        let mut left = Vec::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(inside) = folders.pop() {
            for entry in fs::read_dir(inside).expect("readable").flatten() {
                let below = entry.path();
                let name = below.strip_prefix(folder).expect("below");
                if !expected(name) {
                    left.push(name.to_path_buf());
                } else if below.is_dir() && name != Path::new(OUTPUT) {
                    folders.push(below);
                }
            }
        }
        left
    }
}

/// All valid files that are mutated, with their commands.
pub(crate) struct Corpus(Vec<Base>);

impl Corpus {
    pub(crate) fn new() -> Self {
        let mut bases = Vec::new();
        bases.extend(tokenizers());
        bases.extend(tokenizer_configs());
        bases.push(generation_config());
        bases.extend(configs());
        bases.extend(weights());
        bases.extend(packed());
        bases.extend(gguf());
        bases.push(inputs());
        bases.extend(attention_inputs());
        bases.push(index());
        bases.push(manifest());
        bases.extend(patterns());
        if let Ok(kind) = std::env::var("BUTTERFLY_MUTATIONS_KIND") {
            bases.retain(|base| base.kind == kind);
        }
        assert!(!bases.is_empty(), "no such kind");
        Self(bases)
    }

    /// The case of a seed. All kinds are equally frequent.
    pub(crate) fn case(&self, seed: u64) -> Case {
        let mut rng = Rng::with_seed(seed);
        let mut kinds: Vec<_> = self.0.iter().map(|base| base.kind).collect();
        kinds.dedup();
        let kind = kinds[rng.usize(0..kinds.len())];
        let of: Vec<_> = self.0.iter().filter(|base| base.kind == kind).collect();
        let base = of[rng.usize(0..of.len())];
        let mut args = base.commands[rng.usize(0..base.commands.len())].clone();
        if rng.bool() {
            args.push("--json".into());
        }
        let mut files = base.files.clone();
        let (_, bytes) = files
            .iter_mut()
            .find(|(name, _)| name == base.mutated)
            .expect("one of the files");
        // A single change often gets furthest into the program, so it is the most frequent.
        for _ in 0..rng.choice([1, 1, 1, 2, 3]).unwrap_or(1) {
            match rng.u8(0..8) {
                0 => mutate::bytes(&mut rng, bytes),
                _ => (base.mutate)(&mut rng, bytes),
            }
        }
        Case {
            kind,
            name: base.name.clone(),
            args,
            files,
            mutated: base.mutated,
        }
    }

    /// Every base with every command, without mutation.
    pub(crate) fn unharmed(&self) -> impl Iterator<Item = Case> {
        self.0.iter().flat_map(|base| {
            base.commands
                .iter()
                .map(|args| base.with(args, base.files.clone()))
        })
    }

    /// The files in `known/<kind>`, each in place of the mutated file of the first base of that
    /// kind, with every command.
    pub(crate) fn known(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for kind in folders(&here("known")) {
            let name = kind.file_name().unwrap_or_default();
            let base = self.0.iter().find(|base| name == base.kind);
            let base = base.unwrap_or_else(|| panic!("{}: no such kind", kind.display()));
            for file in folders(&kind) {
                let mut files = base.files.clone();
                let bytes = files.iter_mut().find(|(name, _)| name == base.mutated);
                bytes.expect("one of the files").1 = read(&file);
                for args in &base.commands {
                    let name = file.display().to_string();
                    cases.push(Case {
                        name,
                        ..base.with(args, files.clone())
                    });
                }
            }
        }
        assert!(!cases.is_empty(), "no known breakers");
        cases
    }
}

impl Base {
    fn with(&self, args: &[String], files: Files) -> Case {
        Case {
            kind: self.kind,
            name: self.name.clone(),
            args: args.to_vec(),
            files,
            mutated: self.mutated,
        }
    }
}

fn here(path: &str) -> PathBuf {
    fixture("../mutations").join(path)
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).expect("a folder").flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn seed(name: &str) -> Vec<u8> {
    read(&here("seeds").join(name))
}

/// The words of a command line; `{}` stands for a pattern.
fn command(line: &str) -> Vec<String> {
    const PATTERN: &str = "block 16 causal & (local(1) | partner(causal_shift) | sink(1))";
    let words = line.split_whitespace();
    words
        .map(|word| if word == "{}" { PATTERN } else { word }.to_string())
        .collect()
}

fn commands(lines: &[&str]) -> Vec<Vec<String>> {
    lines.iter().map(|line| command(line)).collect()
}

const MODELS: [&str; 8] = [
    "gpt2",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_5_wrapped",
];

/// A model folder `m`, tokens for it in `ids.safetensors`, and a text in `book.txt`.
fn model(name: &str) -> Files {
    let from = fixture("models").join(name);
    let tokenizer = fixture("tokenizer");
    let text = "the and 12 the, and the. ".repeat(6);
    vec![
        ("m/config.json".into(), read(&from.join("config.json"))),
        (
            "m/model.safetensors".into(),
            read(&from.join("model.safetensors")),
        ),
        (
            "m/tokenizer.json".into(),
            read(&tokenizer.join("tokenizer.json")),
        ),
        (
            "m/tokenizer_config.json".into(),
            read(&tokenizer.join("tokenizer_config.json")),
        ),
        ("ids.safetensors".into(), ids()),
        ("book.txt".into(), text.into_bytes()),
    ]
}

/// A safetensors file with `input_ids` of shape `[2, 24]`.
fn ids() -> Vec<u8> {
    let ids: Vec<u8> = (0..48i64)
        .flat_map(|i| (i * 5 % 200).to_le_bytes())
        .collect();
    pack(&[("input_ids", safetensors::Dtype::I64, vec![2, 24], &ids)])
}

fn pack(tensors: &[(&str, safetensors::Dtype, Vec<usize>, &[u8])]) -> Vec<u8> {
    let view = |(name, dtype, shape, data): &(&str, safetensors::Dtype, Vec<usize>, &'_ [u8])| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).expect("fits");
        (
            name.to_string(),
            view.data().to_vec(),
            *dtype,
            shape.clone(),
        )
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views = owned.iter().map(|(name, data, dtype, shape)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).expect("fits");
        (name.as_str(), view)
    });
    safetensors::serialize(views, None).expect("serializes")
}

fn set(files: &mut Files, name: &str, bytes: Vec<u8>) {
    files.retain(|(other, _)| other != name);
    files.push((name.into(), bytes));
}

fn tokenizers() -> impl Iterator<Item = Base> {
    let names = ["bpe", "byte_fallback", "unigram", "wordlevel", "wordpiece"];
    let seeds = names.map(|name| (name, seed(&format!("tokenizer_{name}.json"))));
    let bytes = ("bytes", read(&fixture("tokenizer").join("tokenizer.json")));
    seeds.into_iter().chain([bytes]).map(|(name, tokenizer)| {
        let mut files = model("qwen3");
        set(&mut files, "m/tokenizer.json", tokenizer);
        Base {
            kind: "tokenizer",
            name: name.into(),
            files,
            mutated: "m/tokenizer.json",
            mutate: mutate::json,
            commands: commands(&[
                "generate --model m --prompt-file book.txt --max-new-tokens 4 --device cpu",
                "eval --model m --text book.txt --pattern {} --device cpu",
            ]),
        }
    })
}

fn tokenizer_configs() -> impl Iterator<Item = Base> {
    ["plain", "rich"].into_iter().map(|name| {
        let mut files = model("llama");
        set(&mut files, "m/tokenizer_config.json", seed(&format!("tokenizer_config_{name}.json")));
        Base {
            kind: "tokenizer_config",
            name: name.into(),
            files,
            mutated: "m/tokenizer_config.json",
            mutate: mutate::json,
            commands: commands(&[
                "generate --model m --prompt-file book.txt --chat --system be --max-new-tokens 4 --device cpu",
            ]),
        }
    })
}

fn generation_config() -> Base {
    let mut files = model("qwen3");
    set(
        &mut files,
        "m/generation_config.json",
        seed("generation_config.json"),
    );
    Base {
        kind: "generation_config",
        name: "all".into(),
        files,
        mutated: "m/generation_config.json",
        mutate: mutate::json,
        commands: commands(&["generate --model m --tokens 5,6,7 --max-new-tokens 4 --device cpu"]),
    }
}

/// Configs of small models with weights, and configs of real models without.
fn configs() -> impl Iterator<Item = Base> {
    let small = MODELS.into_iter().map(|name| Base {
        kind: "config",
        name: name.into(),
        files: model(name),
        mutated: "m/config.json",
        mutate: mutate::json,
        commands: commands(&[
            "logits --model m --inputs ids.safetensors --output out --device cpu",
            "generate --model m --tokens 1,2,3 --max-new-tokens 4 --pattern {} --device cpu",
            "compile m/config.json --pattern {} --target cpu -o out",
            "explain m/config.json --pattern {} --target cpu",
        ]),
    });
    let real = folders(&fixture("configs")).into_iter().map(|path| Base {
        kind: "config",
        name: path.file_name().unwrap_or_default().display().to_string(),
        files: vec![("config.json".into(), read(&path))],
        mutated: "config.json",
        mutate: mutate::json,
        commands: commands(&[
            "compile config.json --pattern {} --target cpu -o out",
            "explain config.json --pattern {} --target cpu",
        ]),
    });
    small.chain(real)
}

fn weights() -> impl Iterator<Item = Base> {
    MODELS.into_iter().map(|name| Base {
        kind: "weights",
        name: name.into(),
        files: model(name),
        mutated: "m/model.safetensors",
        mutate: mutate::safetensors,
        commands: commands(&[
            "logits --model m --inputs ids.safetensors --output out --device cpu",
            "generate --model m --tokens 1,2,3 --max-new-tokens 4 --device cpu",
        ]),
    })
}

/// Llama's fixture with packed weights: as MLX stores them, and in 8-bit floats with scales of blocks.
fn packed() -> impl Iterator<Item = Base> {
    type Pack = fn(&str, [usize; 2]) -> Tensors;
    let formats: [(&str, Pack, Value); 2] = [
        ("mlx", affine, json!({ "bits": 4, "group_size": 32 })),
        ("fp8", float8, Value::Null),
    ];
    formats.into_iter().flat_map(|(name, format, settings)| {
        let mut files = model("llama");
        let stored = read(&fixture("models/llama/model.safetensors"));
        let stored = safetensors::SafeTensors::deserialize(&stored).expect("a fixture");
        let mut tensors = Vec::new();
        for (name, view) in stored.iter() {
            match *view.shape() {
                [rows, columns] => tensors.extend(format(name, [rows, columns])),
                _ => tensors.push((
                    name.to_string(),
                    view.dtype(),
                    view.shape().to_vec(),
                    view.data().to_vec(),
                )),
            }
        }
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name.as_str(), *dtype, shape.clone(), &data[..]))
            .collect();
        set(&mut files, "m/model.safetensors", pack(&views));
        let config = read(&fixture("models/llama/config.json"));
        let mut config: Value = serde_json::from_slice(&config).expect("a fixture");
        config["quantization"] = settings;
        set(&mut files, "m/config.json", config.to_string().into_bytes());
        let mutated: [(&str, Mutate); 2] = [
            ("m/model.safetensors", mutate::safetensors),
            ("m/config.json", mutate::json),
        ];
        mutated.map(|(mutated, mutate)| Base {
            kind: "packed",
            name: name.into(),
            files: files.clone(),
            mutated,
            mutate,
            commands: commands(&[
                "logits --model m --inputs ids.safetensors --output out --device cpu",
                "generate --model m --tokens 1,2,3 --max-new-tokens 4 --device cpu",
                "inspect m",
            ]),
        })
    })
}

type Tensors = Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// A weight of 4 bits in groups of 32.
fn affine(name: &str, [rows, columns]: [usize; 2]) -> Tensors {
    let base = name.strip_suffix(".weight").expect("a weight");
    let words = (0..rows * columns / 2).map(|i| (i * 37) as u8).collect();
    let scales = |number: f32| number.to_le_bytes().repeat(rows * columns / 32);
    let groups = vec![rows, columns / 32];
    let words_of = vec![rows, columns / 8];
    vec![
        (name.into(), safetensors::Dtype::U32, words_of, words),
        (
            format!("{base}.scales"),
            safetensors::Dtype::F32,
            groups.clone(),
            scales(0.01),
        ),
        (
            format!("{base}.biases"),
            safetensors::Dtype::F32,
            groups,
            scales(-0.07),
        ),
    ]
}

/// A weight of floats of 8 bits.
fn float8(name: &str, [rows, columns]: [usize; 2]) -> Tensors {
    let codes = (0..rows * columns).map(|i| (i * 37) as u8 & 0xbf).collect();
    let squares = vec![rows.div_ceil(128), columns.div_ceil(128)];
    let scales = 0.04f32.to_le_bytes().repeat(squares.iter().product());
    vec![
        (
            name.into(),
            safetensors::Dtype::F8_E4M3,
            vec![rows, columns],
            codes,
        ),
        (
            format!("{name}_scale_inv"),
            safetensors::Dtype::F32,
            squares,
            scales,
        ),
    ]
}

/// The fixture models as GGUF files. Mostly their front is mutated, where their structure is.
fn gguf() -> impl Iterator<Item = Base> {
    MODELS.into_iter().map(|name| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.gguf");
        twin::twin(&fixture("models").join(name), &path, &twin::in_bf16);
        let mut files = vec![("m.gguf".to_string(), read(&path))];
        files.push(("ids.safetensors".into(), ids()));
        Base {
            kind: "gguf",
            name: name.into(),
            files,
            mutated: "m.gguf",
            mutate: mutate::front,
            commands: commands(&[
                "logits --model m.gguf --inputs ids.safetensors --output out --device cpu",
                "generate --model m.gguf --tokens 1,2,3 --max-new-tokens 4 --device cpu",
                "inspect m.gguf",
            ]),
        }
    })
}

fn inputs() -> Base {
    Base {
        kind: "inputs",
        name: "ids".into(),
        files: model("gpt2"),
        mutated: "ids.safetensors",
        mutate: mutate::safetensors,
        commands: commands(&[
            "logits --model m --inputs ids.safetensors --output out --device cpu",
        ]),
    }
}

fn attention_inputs() -> impl Iterator<Item = Base> {
    ["cshift_n13_s3_ragged", "decode_cshift_n12"]
        .into_iter()
        .map(|name| Base {
            kind: "attention_inputs",
            name: name.into(),
            files: vec![(
                "qkv.safetensors".into(),
                read(&fixture("attention").join(format!("{name}.safetensors"))),
            )],
            mutated: "qkv.safetensors",
            mutate: mutate::safetensors,
            commands: commands(&[
                "attend --pattern {} --inputs qkv.safetensors --output out --device cpu",
            ]),
        })
}

/// The weights of a model in two files, with an index.
fn index() -> Base {
    let mut files = model("qwen3");
    let at = files
        .iter()
        .position(|(name, _)| name == "m/model.safetensors")
        .expect("weights");
    let (_, whole) = files.swap_remove(at);
    let whole = safetensors::SafeTensors::deserialize(&whole).expect("a fixture");
    let mut parts = [Vec::new(), Vec::new()];
    let mut map = serde_json::Map::new();
    let mut names = whole.names();
    names.sort();
    for (i, name) in names.into_iter().enumerate() {
        parts[i % 2].push((name.to_string(), whole.tensor(name).expect("there")));
        map.insert(
            name.to_string(),
            format!("part-{}.safetensors", i % 2).into(),
        );
    }
    for (i, part) in parts.into_iter().enumerate() {
        let bytes = safetensors::serialize(part, None).expect("serializes");
        files.push((format!("m/part-{i}.safetensors"), bytes));
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    files.push((
        "m/model.safetensors.index.json".into(),
        index.to_string().into_bytes(),
    ));
    Base {
        kind: "index",
        name: "two parts".into(),
        files,
        mutated: "m/model.safetensors.index.json",
        mutate: mutate::json,
        commands: commands(&[
            "logits --model m --inputs ids.safetensors --output out --device cpu",
        ]),
    }
}

/// Artifacts of a small model, as `compile` makes them.
fn manifest() -> Base {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = model("qwen3");
    let case = Case {
        kind: "",
        name: String::new(),
        args: Vec::new(),
        files,
        mutated: "",
    };
    case.lay(folder.path());
    let line = "compile m/config.json --pattern {} --target cpu,vulkan --dtype f32 -o made";
    let mut compile = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    let output = compile
        .args(command(line))
        .current_dir(folder.path())
        .output()
        .expect("runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    files = case.files;
    let made = folder.path().join("made");
    files.push((
        "made/manifest.json".into(),
        read(&made.join("manifest.json")),
    ));
    for file in folders(&made.join("kernels")) {
        let name = file.file_name().unwrap_or_default().display().to_string();
        files.push((format!("made/kernels/{name}"), read(&file)));
    }
    Base {
        kind: "manifest",
        name: "qwen3".into(),
        files,
        mutated: "made/manifest.json",
        mutate: mutate::json,
        commands: commands(&[
            "inspect made",
            "verify made",
            "generate --model m --tokens 1,2,3 --max-new-tokens 4 --artifacts made --dtype f32 --device cpu",
        ]),
    }
}

fn patterns() -> impl Iterator<Item = Base> {
    let texts = ["staged.pattern", "algebra.pattern"]
        .map(|name| (name, "p.pattern", mutate::pattern as Mutate));
    let flat = [("flat.json", "p.json", mutate::json as Mutate)];
    texts.into_iter().chain(flat).map(|(name, file, mutate)| {
        let lines = [
            "topology --pattern FILE --seq-len 200 --stage 1",
            "topology --pattern FILE --seq-len 33 --format svg",
            "prove --pattern FILE --seq-len 5000 --layers 6",
            "prove --pattern FILE --seq-len 268435456 --layers 30",
            "attend --pattern FILE --inputs qkv.safetensors --output out --device cpu",
            "compile m/config.json --pattern FILE --target cpu -o out",
            "explain m/config.json --pattern FILE --target cpu",
            "logits --model m --inputs ids.safetensors --output out --pattern FILE --device cpu",
        ];
        // A pattern with differences cannot be proved at that length; the command reports it.
        let lines = lines
            .into_iter()
            .filter(|line| name != "algebra.pattern" || !line.contains("268435456"));
        let mut files = model("qwen3");
        let qkv = fixture("attention").join("cshift_n13_s3_ragged.safetensors");
        files.push(("qkv.safetensors".into(), read(&qkv)));
        files.push((file.into(), seed(name)));
        Base {
            kind: "pattern",
            name: name.into(),
            files,
            mutated: file,
            mutate,
            commands: lines
                .map(|line| command(&line.replace("FILE", file)))
                .collect(),
        }
    })
}
