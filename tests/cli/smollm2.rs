//! SmolLM2-135M-Instruct, a model that people hold, from its GGUF file: tokens and logits against other
//! implementations (`tests/fixtures/smollm2/make.py`), and what it answers.
//!
//! The file has 98 MB and is not in the repository: `scripts/setup --model` fetches it.

use butterfly_tests::fixture;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The model's file; without it, a line that says that the test is skipped.
fn model() -> Option<PathBuf> {
    let path = std::env::var_os("BUTTERFLY_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!(
            "skipped: BUTTERFLY_SMOLLM2 is not set; `scripts/setup --model` fetches the file"
        );
    }
    path
}

fn butterfly(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_butterfly"));
    command.args(args).output().expect("it runs")
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn expected() -> Value {
    let text = std::fs::read_to_string(fixture("smollm2/expected.json")).expect("read");
    serde_json::from_str(&text).expect("JSON")
}

fn numbers(list: &Value) -> impl Iterator<Item = f64> {
    list.as_array()
        .expect("a list")
        .iter()
        .map(|x| x.as_f64().expect("a number"))
}

#[test]
fn it_knows_the_capital_of_france() {
    let Some(model) = model() else {
        return;
    };
    let model = model.to_str().expect("UTF-8");
    let question = "What is the capital of France?";
    let args = [
        "generate", "-m", model, "-p", question, "--chat", "-n", "16", "--json",
    ];
    let report = json(&butterfly(&[&args[..], &["--device", "cpu"]].concat()));
    let text = report["text"].as_str().expect("a text");
    assert!(text.contains("Paris"), "{text}");
}

#[test]
fn its_tokens_are_those_of_other_software() {
    let Some(model) = model() else {
        return;
    };
    let chat = butterfly_models::Chat::open(&model).expect("a tokenizer");
    let expected = expected();
    let texts = expected["texts"].as_array().expect("a list").iter();
    for (text, ids) in texts.zip(expected["ids"].as_array().expect("a list")) {
        let text = text.as_str().expect("a text");
        let got = chat.encode(text, false).expect("tokens");
        assert!(
            numbers(ids).eq(got.iter().map(|id| f64::from(*id))),
            "{text:?}: {got:?}"
        );
    }
}

fn logits(model: &Path, device: &str) {
    let expected = expected();
    let dir = tempfile::tempdir().expect("a folder");
    let [inputs, output] = ["inputs", "output"].map(|name| dir.path().join(name));
    let ids: Vec<i64> = numbers(&expected["ids"][0]).map(|id| id as i64).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let shape = vec![1, ids.len()];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, shape, &bytes);
    let view = view.expect("a tensor");
    safetensors::serialize_to_file([("input_ids", view)], None, &inputs).expect("written");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_string();
    let (model, inputs) = (text(model), text(&inputs));
    let args = ["logits", "--model", &model, "--inputs", &inputs, "--output"];
    let to = text(&output);
    let report = json(&butterfly(
        &[&args[..], &[&to, "--device", device, "--json"]].concat(),
    ));
    let width = report["vocabulary"].as_u64().expect("a number") as usize;
    let got = butterfly_tests::floats(&output, "logits");
    let most = 2e-4 * expected["deviation"].as_f64().expect("a number");
    let vocabulary: Vec<usize> = numbers(&expected["vocabulary"])
        .map(|i| i as usize)
        .collect();
    let rows = expected["logits"].as_array().expect("a list").iter();
    for (at, (row, got)) in rows.zip(got.chunks(width)).enumerate() {
        for (id, want) in vocabulary.iter().zip(numbers(row)) {
            let off = (f64::from(got[*id]) - want).abs();
            assert!(off <= most, "{device} {at} {id}: {}, not {want}", got[*id]);
        }
    }
    assert_eq!(got.len(), ids.len() * width);
}

#[test]
fn its_logits_are_those_of_other_software() {
    let Some(model) = model() else {
        return;
    };
    logits(&model, "cpu");
    logits(&model, "vulkan");
}
