//! Shared by the tests of models: the fixtures, and running a model on them.

use butterfly::{AttentionBackend, Dtype, Plan, Sparsity};
use butterfly_models::{Checkpoint, Logits, Model, ModelError, Policy, State};
use butterfly_tests::{fixture, floats};
use std::path::{Path, PathBuf};

/// The models, and the fixtures' tolerance for their logits in f32.
pub(crate) const MODELS: [(&str, f32); 14] = [
    ("gpt2", 2e-4),
    ("llama", 2e-4),
    ("mistral", 5e-4),
    ("phi3", 5e-4),
    ("qwen2", 5e-4),
    ("qwen3", 2e-4),
    ("qwen3_5", 1e-3),
    ("qwen3_5_wrapped", 1e-3),
    ("qwen3_moe", 1e-3),
    ("qwen3_5_moe", 1e-3),
    ("qwen3_5_moe_fused_layout", 1e-3),
    ("gemma3", 5e-4),
    ("gpt_oss", 1e-3),
    ("glm4_moe_lite", 1e-3),
];

/// One model with one pattern, and the logits that other software computed.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) expected: Vec<f32>,
    pub(crate) sparsity: Option<Sparsity>,
}

pub(crate) fn folder(model: &str) -> PathBuf {
    fixture("models").join(model)
}

/// The model without a pattern, and with every pattern of the fixtures.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let dir = folder(model);
    let entries = std::fs::read_dir(&dir).expect("fixtures");
    let paths = entries.map(|entry| entry.expect("entry").path());
    let sparse = paths.filter(|path| {
        let name = path
            .file_name()
            .expect("name")
            .to_string_lossy()
            .into_owned();
        name.starts_with("sparse_") && name.ends_with(".json")
    });
    let mut patterns: Vec<Option<PathBuf>> = sparse.map(Some).collect();
    patterns.sort();
    // That one differs from another in how its experts are stored, not in what they compute.
    assert!(patterns.is_empty() == (model == "qwen3_5_moe_fused_layout"));
    patterns.insert(0, None);
    let case = |pattern: Option<PathBuf>| {
        let file = match &pattern {
            None => dir.join("expected.safetensors"),
            Some(json) => json.with_extension("safetensors"),
        };
        let sparsity = pattern.map(|json| {
            let text = std::fs::read_to_string(&json).expect("json");
            let parsed = Sparsity::parse_any(&json.display().to_string(), &text);
            parsed.expect("a pattern").sparsity
        });
        Case {
            name: format!("{model}/{}", file.file_stem().expect("stem").display()),
            tokens: tokens(&file),
            expected: floats(&file, "logits"),
            sparsity,
        }
    };
    patterns.into_iter().map(case).collect()
}

fn tokens(path: &Path) -> Vec<u32> {
    let bytes = std::fs::read(path).expect("file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = file.tensor("input_ids").expect("tensor").data().to_vec();
    let words = data.as_chunks::<8>().0.iter();
    words.map(|b| i64::from_le_bytes(*b) as u32).collect()
}

pub(crate) fn load<B: AttentionBackend>(model: &str, dtype: Dtype, device: &B::Device) -> Model<B> {
    let folder = Checkpoint::open(&folder(model)).expect("a folder");
    let (model, unused) = Model::load(&folder, dtype, device).expect("a model");
    assert_eq!(unused, Vec::<String>::new());
    model
}

pub(crate) fn policy<B: AttentionBackend>(model: &Model<B>, case: &Case) -> Policy {
    match &case.sparsity {
        None => Policy::dense(&model.config, &Plan::dense()).expect("a policy"),
        Some(sparsity) => {
            let plan = Plan::new(sparsity.clone()).expect("a plan");
            Policy::new(&model.config, &plan, sparsity).expect("a policy")
        }
    }
}

/// Chunks of one, some and many tokens, each by themselves; and all in one run, for devices on which runs take long.
pub(crate) const CHUNKS: [&[usize]; 3] = [&[1], &[7], &[64]];
pub(crate) const MIXED: [&[usize]; 1] = [&[7, 1, 1, 64, 1]];

/// A text cut into chunks of these sizes, in turn.
pub(crate) fn cut<'a>(mut tokens: &'a [u32], sizes: &[usize]) -> Vec<&'a [u32]> {
    let mut chunks = Vec::new();
    for size in sizes.iter().cycle() {
        if tokens.is_empty() {
            break;
        }
        let (chunk, rest) = tokens.split_at(tokens.len().min(*size));
        chunks.push(chunk);
        tokens = rest;
    }
    chunks
}

/// The logits of all tokens, with the text cut into chunks of these sizes, in turn.
pub(crate) fn logits<B: AttentionBackend>(
    model: &Model<B>,
    policy: &Policy,
    tokens: &[u32],
    sizes: &[usize],
) -> Result<Vec<f32>, ModelError> {
    let mut state: State<B> = model.state(1, Some(tokens.len()), policy);
    let mut all = Vec::new();
    for chunk in cut(tokens, sizes) {
        let logits = model.forward(chunk, &mut state, policy, Logits::All)?;
        let data = logits.into_data().convert::<f32>();
        all.extend(data.into_vec::<f32>().expect("f32"));
    }
    Ok(all)
}

pub(crate) fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, d| if d <= most { most } else { d })
}
