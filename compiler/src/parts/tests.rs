//! Counts by hand, and predictions beside what was measured.

use super::*;
use crate::card::Card;
use crate::config;
use butterfly_ir::{Sm, Target};

const HOPPER: Target = Target::Cuda(Sm {
    version: 90,
    arch_specific: true,
});

const PATTERN: &str = "block 128 causal & (local(1) | partner(causal_shift) | sink(1))";

struct Model {
    config: ModelConfig,
    sizes: ModelSizes,
    stored: BTreeMap<Part, f64>,
    quantised: bool,
}

impl Model {
    /// A config of `tests/fixtures/configs`, with `more` fields.
    fn new(name: &str, more: serde_json::Value) -> Self {
        let root = env!("CARGO_MANIFEST_DIR");
        let file = format!("{root}/../tests/fixtures/configs/{name}.json");
        let text = std::fs::read_to_string(&file).expect("a config");
        let mut object: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for (name, value) in more.as_object().into_iter().flatten() {
            object[name] = value.clone();
        }
        let text = object.to_string();
        let config = config::read(&file, &text).expect("a config");
        Self {
            sizes: config::sizes(&file, &text, &config).expect("sizes"),
            stored: config::stored(&file, &text, &config).expect("storage"),
            config,
            quantised: false,
        }
    }

    /// The attention that layers run: the pattern, or their own.
    fn attention(&self, pattern: Option<&str>) -> Vec<Option<Attending>> {
        let pattern = pattern.map(|text| Sparsity::parse("test", text).expect("a pattern"));
        let mut index = 0;
        let of = |kind: &butterfly_ir::model::LayerKind| {
            let own = kind.own()?;
            index += 1;
            Some(Attending {
                sparsity: pattern.clone().unwrap_or_else(|| own.sparsity()),
                index: index - 1,
            })
        };
        self.config.layers.iter().map(of).collect()
    }

    fn steps(&self, pattern: Option<&str>, call: &Call) -> Vec<Step> {
        let subject = Subject {
            config: &self.config,
            sizes: &self.sizes,
            dtype: self.config.dtype,
            quantised: self.quantised,
            stored: &self.stored,
            attention: &self.attention(pattern),
        };
        count(&subject, call, &|_| None).expect("few rows")
    }

    fn entries(&self, pattern: Option<&str>, call: &Call, card: Card) -> Vec<Entry> {
        let steps = self.steps(pattern, call);
        let made_for = (self.config.dtype, HOPPER);
        predict::predict(&steps, made_for, Some(Device::Card(card)))
    }

    fn milliseconds(&self, pattern: Option<&str>, call: &Call, card: Card) -> f64 {
        let entries = self.entries(pattern, call, card);
        entries.iter().filter_map(|entry| entry.predicted_ms).sum()
    }
}

fn none() -> serde_json::Value {
    serde_json::json!({})
}

fn of(entries: &[Entry], part: Part) -> &Entry {
    let found = entries.iter().find(|entry| entry.part == part);
    found.unwrap_or_else(|| panic!("no {part}"))
}

fn chunk(tokens: u32) -> Call {
    let mut calls = Call::of_prompt(1, [tokens; 3]);
    calls.next().expect("one chunk")
}

/// Elements of the matrices of Qwen3-8B's layers: q, k and v; o; gate and up; down.
const QWEN3_8B: f64 = 36.0 * 4096.0 * (6144.0 + 4096.0 + 24576.0 + 12288.0);

#[test]
fn a_prompt_takes_two_flop_for_each_parameter_and_token() {
    let model = Model::new("qwen3-8b", none());
    let entries = model.entries(None, &chunk(8192), Card::H200);
    let projections = of(&entries, Part::Projections);
    assert_eq!(projections.flop, 2.0 * 8192.0 * QWEN3_8B);
    assert_eq!(projections.kernels, 4 * 36);
    // The last token alone has logits.
    let output = of(&entries, Part::OutputProjection);
    assert_eq!(output.flop, 2.0 * 4096.0 * 151_936.0);
    // 32 heads of 128 elements, products with keys and values.
    let pairs = 8192.0 * 8193.0 / 2.0;
    assert_eq!(
        of(&entries, Part::Attention).flop,
        36.0 * 32.0 * 4.0 * 128.0 * pairs
    );
    // q, k and v are read once and written once, and so are two weights of norms.
    let rows = 2.0 * 2.0 * 6144.0 * 8192.0 + 2.0 * 2.0 * 128.0;
    assert_eq!(of(&entries, Part::Heads).bytes, 36.0 * rows);
    // The product of gate and up writes what is gated, and nothing else has a gate.
    let rows = 8192.0 * (4096.0 + 6144.0 + 2.0 * 4096.0 + 4096.0 + 12288.0 + 12288.0 + 4096.0);
    assert_eq!(projections.bytes, 2.0 * (QWEN3_8B + 36.0 * rows));
    assert!(entries.iter().all(|entry| entry.part != Part::Gates));
    // x and y, their sum and its norm; the first has nothing to add.
    let norms = 72.0 * 12.0 + 6.0;
    assert_eq!(of(&entries, Part::Norms).bytes, 8192.0 * 4096.0 * norms);
}

#[test]
fn a_token_reads_all_weights_and_the_cache() {
    let model = Model::new("qwen3-8b", none());
    let call = Call::after_prompt(1, [8192, 8320]);
    let entries = model.entries(None, &call, Card::H200);
    let rows = 36.0 * (4096.0 + 6144.0 + 2.0 * 4096.0 + 4096.0 + 12288.0 + 12288.0 + 4096.0);
    assert_eq!(
        of(&entries, Part::Projections).bytes,
        2.0 * (QWEN3_8B + rows)
    );
    let head = 4096.0 * 151_936.0;
    let output = of(&entries, Part::OutputProjection);
    assert_eq!(output.bytes, 2.0 * (head + 4096.0 + 151_936.0));
    // Keys and values of 8 heads of 128; q, o, and a log-sum-exp for each head.
    let attention = 8193.0 * 2.0 * 8.0 * 128.0 * 2.0 + 2.0 * 32.0 * 128.0 * 2.0 + 32.0 * 4.0;
    assert_eq!(of(&entries, Part::Attention).bytes, 36.0 * attention);
    let kernels: u64 = entries.iter().map(|entry| entry.kernels).sum();
    assert_eq!(kernels, 36 * 8 + 3);
}

#[test]
fn packed_weights_are_fewer_bytes() {
    let packing = |more| Model::new("qwen3-8b", more).stored;
    assert!(packing(none()).is_empty());
    let four = packing(serde_json::json!({"quantization": {"bits": 4, "group_size": 64}}));
    assert_eq!(four[&Part::Projections], 0.5 + 4.0 / 64.0);
    assert_eq!(four[&Part::OutputProjection], four[&Part::Embedding]);
    let float8 = packing(serde_json::json!({"quantization_config": {"quant_method": "fp8"}}));
    assert_eq!(float8.get(&Part::Projections), Some(&1.0));
    assert_eq!(float8.get(&Part::Embedding), None);
    let microscaled = serde_json::json!({"quantization_config": {"quant_method": "mxfp4"}});
    assert_eq!(
        packing(microscaled).keys().collect::<Vec<_>>(),
        [&Part::Experts]
    );
}

#[test]
fn experts_are_read_if_they_are_chosen() {
    let model = Model::new("qwen3.5-35b-a3b", none());
    let experts = model.sizes.experts.clone().expect("experts");
    let [chosen, size] = [experts.chosen, experts.intermediate].map(f64::from);
    let hidden = f64::from(model.sizes.hidden);
    let layers = model.config.layers.len() as f64;
    let matrices = 3.0 * size * hidden;
    let token = model.entries(None, &Call::after_prompt(1, [100, 200]), Card::H200);
    let of_token = of(&token, Part::Experts);
    // Of a few tokens the expert for every token is one more that is chosen.
    let chosen = chosen + 1.0;
    assert_eq!(of_token.flop, layers * 2.0 * chosen * matrices);
    let weights = layers * chosen * matrices * 2.0;
    assert!(
        (weights..1.01 * weights).contains(&of_token.bytes),
        "{of_token:?}"
    );
    assert!(of_token.lower_bound);
    // A long prompt needs all of them.
    let prompt = model.entries(None, &chunk(4096), Card::H200);
    let all = layers * f64::from(experts.count) * matrices * 2.0;
    assert!(of(&prompt, Part::Experts).bytes > all);
    let linear = model.sizes.linear.expect("linear attention");
    let state = f64::from(linear.v_heads * linear.k_dim * linear.v_dim);
    assert!(of(&token, Part::LinearAttention).bytes > 30.0 * 8.0 * state);
}

#[test]
fn latents_are_absorbed_in_decode_and_expanded_in_prefill() {
    let model = Model::new("glm-4.7-flash", none());
    let layers = model.config.layers.len() as f64;
    let matrices = 20.0 * 512.0 * (192.0 + 256.0);
    let token = model.entries(None, &Call::after_prompt(1, [100, 200]), Card::H200);
    assert_eq!(of(&token, Part::Latents).flop, layers * 2.0 * matrices);
    // One latent of 576 elements for each key, which is the value too.
    let attention = 101.0 * 576.0 * 2.0 + 20.0 * (576.0 + 512.0) * 2.0 + 20.0 * 4.0;
    assert_eq!(of(&token, Part::Attention).bytes, layers * attention);
    let prompt = model.entries(None, &chunk(4096), Card::H200);
    assert_eq!(
        of(&prompt, Part::Latents).flop,
        4096.0 * layers * 2.0 * matrices
    );
}

#[test]
fn a_prompt_is_cut_into_chunks() {
    let calls: Vec<Call> = Call::of_prompt(2, [70, 32, 80]).collect();
    let lengths: Vec<_> = calls.iter().map(|call| [call.q_len, call.kv_len]).collect();
    assert_eq!(lengths, [[32, 32], [32, 64], [6, 70]]);
    assert!(
        calls
            .iter()
            .all(|call| (call.capacity, call.prompt) == (80, 70))
    );
    assert_eq!(Call::of_prompt(1, [0, 32, 80]).count(), 0);
}

/// Every family's layers are counted, in chunks as in decode, whatever is measured.
#[test]
fn all_families_have_steps() {
    for name in [
        "gpt2",
        "llama-3.1-8b",
        "mistral-7b-v0.1",
        "phi-3-mini-4k",
        "qwen2.5-7b",
        "qwen3.5-9b",
    ] {
        let model = Model::new(name, none());
        for call in [chunk(300), Call::after_prompt(1, [300, 400])] {
            for pattern in [None, Some(PATTERN)] {
                for entry in model.entries(pattern, &call, Card::H100) {
                    let Entry {
                        roofline_ms: Some(roofline),
                        predicted_ms: Some(predicted),
                        ..
                    } = entry
                    else {
                        panic!("{name}: {entry:?}");
                    };
                    assert!(0.0 < roofline && roofline <= predicted, "{name}: {entry:?}");
                    assert!(entry.bytes > 0.0 && entry.kernels > 0, "{name}: {entry:?}");
                }
            }
        }
        let steps = model.steps(None, &chunk(300));
        let bare = predict::predict(&steps, (Dtype::Bf16, HOPPER), None);
        assert!(bare.iter().all(|entry| entry.predicted_ms.is_none()));
    }
}

const FLOAT8: &str = r#"{"quantization_config": {"quant_method": "fp8"}}"#;

/// Within 10 % of what is recorded in `bench/results` (`model_nvidia_h200.md`, `packed_nvidia_h200.md`), for work whose rates were measured.
#[test]
fn predictions_are_near_what_was_measured() {
    let near = |what: &str, predicted: f64, measured: f64| {
        let off = predicted / measured - 1.0;
        assert!(
            off.abs() < 0.1,
            "{what}: {predicted} ms, measured {measured}"
        );
    };
    let eight = Model::new("qwen3-8b", none());
    let (prompt, token) = (chunk(8192), Call::after_prompt(1, [8192, 8320]));
    let pattern = Some(PATTERN);
    near(
        "prefill",
        eight.milliseconds(pattern, &prompt, Card::H200),
        183.8,
    );
    near(
        "decode",
        eight.milliseconds(pattern, &token, Card::H200),
        5.13,
    );
    near(
        "dense decode",
        eight.milliseconds(None, &token, Card::H200),
        5.47,
    );
    for (quantised, measured) in [(false, 226.3), (true, 145.2)] {
        let float8 = serde_json::from_str(FLOAT8).expect("JSON");
        let nine = Model {
            quantised,
            ..Model::new("qwen3.5-9b", float8)
        };
        let predicted = nine.milliseconds(pattern, &prompt, Card::H200);
        near("prefill of Qwen3.5-9B in FP8", predicted, measured);
    }
    for (name, packing, quantised, measured) in [
        ("qwen3.5-35b-a3b", FLOAT8, false, [122.3, 2.98]),
        ("qwen3.5-35b-a3b", FLOAT8, true, [91.0, 2.98]),
    ] {
        let packing = serde_json::from_str(packing).expect("JSON");
        let model = Model {
            quantised,
            ..Model::new(name, packing)
        };
        for (call, measured) in [&prompt, &token].into_iter().zip(measured) {
            near(
                name,
                model.milliseconds(pattern, call, Card::H200),
                measured,
            );
        }
    }
    let four = serde_json::json!({"quantization": {"bits": 4, "group_size": 64}});
    let glm = Model::new("glm-4.7-flash", four);
    let predicted = glm.milliseconds(pattern, &prompt, Card::H200);
    near("prefill of GLM-4.7-Flash", predicted, 164.8);
    let decode = |packing, measured| {
        let nine = Model::new("qwen3.5-9b", packing);
        let predicted = nine.milliseconds(pattern, &token, Card::H200);
        near("decode of Qwen3.5-9B", predicted, measured);
    };
    decode(none(), 4.99);
    // All matrices are packed there, as those of random weights are.
    decode(
        serde_json::json!({"quantization_config": {"quant_method": "fp8"}}),
        3.47,
    );
    decode(
        serde_json::json!({"quantization": {"bits": 4, "group_size": 64}}),
        2.40,
    );
}
