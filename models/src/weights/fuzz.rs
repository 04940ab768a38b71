//! Reads mutated files: nothing may panic, and nothing may be allocated that a file only claims.
//!
//! A case is determined by its number. To run more of them, or others:
//!
//! ```sh
//! BUTTERFLY_MUTATIONS=1000000 BUTTERFLY_MUTATIONS_FIRST=0 cargo test -p butterfly-models --lib fuzz
//! ```

use super::architecture::Architecture;
use super::gguf::{Gguf, Value};
use super::names::Names;
use super::{metadata, names::Role};
use butterfly_ir::model::LinearShape;
use butterfly_tests::gguf::{self as files, Layout, Tensor, Value as Stored};

/// Cases without `BUTTERFLY_MUTATIONS`; they take a second or two.
const CASES: u64 = 5_000;

/// Llama 3's divisors of rotary frequencies: of theta 10000, factor 8.
const DIVISORS: [f32; 8] = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.681_483, 8.0];

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn of(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end.max(1)
    }
}

/// Valid files: one with every type, one that begins a model in parts, and one of each kind of layer.
fn seeds() -> Vec<Vec<u8>> {
    let read = |name| {
        let path = butterfly_tests::fixture("gguf").join(name);
        std::fs::read(path).expect("read")
    };
    let mut seeds = vec![read("kinds.gguf"), read("parts-00001-of-00003.gguf")];
    for architecture in Architecture::ALL {
        let name = architecture.name();
        let entries: [(&str, Stored); 22] = [
            ("general.architecture", name.into()),
            ("ARCH.block_count", 2.into()),
            ("ARCH.context_length", 512.into()),
            ("ARCH.embedding_length", 64.into()),
            ("ARCH.feed_forward_length", Stored::Integers(vec![128, 128])),
            ("ARCH.attention.head_count", 4.into()),
            ("ARCH.attention.layer_norm_epsilon", 1e-5.into()),
            ("ARCH.attention.layer_norm_rms_epsilon", 1e-5.into()),
            ("ARCH.attention.key_length_mla", 40.into()),
            ("ARCH.attention.value_length_mla", 40.into()),
            ("ARCH.attention.kv_lora_rank", 32.into()),
            ("ARCH.attention.q_lora_rank", 48.into()),
            ("ARCH.rope.dimension_count", 16.into()),
            ("ARCH.leading_dense_block_count", 1.into()),
            ("ARCH.expert_shared_count", 1.into()),
            ("ARCH.ssm.conv_kernel", 4.into()),
            ("ARCH.ssm.state_size", 16.into()),
            ("ARCH.ssm.group_count", 2.into()),
            ("ARCH.ssm.time_step_rank", 4.into()),
            ("ARCH.ssm.inner_size", 64.into()),
            (
                "tokenizer.ggml.tokens",
                Stored::Texts(vec!["a".into(), "b".into()]),
            ),
            ("tokenizer.ggml.eos_token_id", 1.into()),
        ];
        let renamed = entries.map(|(key, value)| (key.replace("ARCH", name), value));
        let mut entries: Vec<(&str, Stored)> = renamed
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        let experts = [
            "expert_count",
            "expert_used_count",
            "expert_feed_forward_length",
        ];
        let experts = experts.map(|key| format!("{name}.{key}"));
        if architecture.has_experts() {
            let numbers = [8, 2, 32].map(Stored::from);
            entries.extend(experts.iter().map(String::as_str).zip(numbers));
        }
        let tensors = [
            Tensor::floats("token_embd.weight", &[2, 64], &[0.5; 128]),
            Tensor::floats("blk.0.attn_qkv.weight", &[2, 4], &[0.5; 8]),
            Tensor::floats("blk.0.ssm_a", &[4], &[-0.5; 4]),
            Tensor::floats("blk.1.exp_probs_b.bias", &[8], &[0.5; 8]),
            Tensor::floats("rope_freqs.weight", &[8], &DIVISORS),
        ];
        seeds.push(files::bytes(Layout::default(), &entries, &tensors));
    }
    seeds
}

/// Numbers at which readers tend to break.
const NUMBERS: [u64; 12] = [
    0,
    1,
    7,
    255,
    1 << 16,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 60,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

/// Changes a few places of a file; mostly of its begin, where its structure is.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(2) {
        let front = bytes.len().min(1400);
        let reach = if random.below(8) == 0 {
            bytes.len()
        } else {
            front
        };
        let at = random.below(reach);
        let end = (at + random.below(24)).min(bytes.len());
        match random.below(8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 | 3 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => drop(bytes.drain(at..end)),
            5 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            6 if random.below(4) == 0 => bytes.truncate(at),
            _ => {
                let from = random.below(bytes.len().saturating_sub(8));
                let width = 8.min(bytes.len() - at).min(bytes.len() - from);
                let part = bytes[from..from + width].to_vec();
                bytes[at..at + width].copy_from_slice(&part);
            }
        }
    }
}

/// Reads all that can be read of a file. Returns how far that got.
fn read(bytes: &[u8]) -> u32 {
    let said = |error: crate::ModelError| {
        let error = error.to_string();
        assert!(error.contains(".gguf"), "names no file: {error}");
    };
    let gguf = match Gguf::of(bytes) {
        Ok(gguf) => gguf,
        Err(error) => {
            said(error);
            return 0;
        }
    };
    for tensor in gguf.tensors() {
        assert!(gguf.bytes(tensor).len() <= bytes.len());
    }
    let keys = [
        "a.strings",
        "a.integers",
        "a.floats",
        "a.bools",
        "tokenizer.ggml.tokens",
    ];
    for key in keys {
        if let Some(Value::Array(_)) = gguf.metadata(key) {
            let kinds = [
                gguf.strings(key).map(drop),
                gguf.integers(key).map(drop),
                gguf.floats(key).map(drop),
                gguf.flags(key).map(drop),
            ];
            kinds.into_iter().filter_map(Result::err).for_each(said);
        }
    }
    let architecture = match Architecture::of(&gguf) {
        Ok(architecture) => architecture,
        Err(error) => {
            said(error);
            return 1;
        }
    };
    let linear = LinearShape {
        k_heads: 2,
        v_heads: 4,
        k_dim: 16,
        v_dim: 16,
        taps: 4,
        tiled: true,
    };
    let names = Names {
        architecture,
        layers: 2,
        linear: Some(&linear),
    };
    for tensor in gguf.tensors() {
        match names.of(tensor) {
            Role::Weight(weight) => assert!(!weight.name.is_empty()),
            Role::Rotation | Role::Unknown => {}
        }
    }
    match metadata::config(&gguf, architecture) {
        Err(error) => {
            said(error);
            2
        }
        Ok(config) => {
            let json = config.to_string();
            let sizes = butterfly_compiler::config::read("a.gguf", &json)
                .and_then(|config| butterfly_compiler::config::sizes("a.gguf", &json, &config));
            3 + u32::from(sizes.is_ok())
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    }
}

#[test]
fn mutated_files_get_an_answer() {
    let (count, first) = (
        number("BUTTERFLY_MUTATIONS", CASES),
        number("BUTTERFLY_MUTATIONS_FIRST", 0),
    );
    let seeds = seeds();
    let mut reached = [0u64; 5];
    for case in first..first + count {
        let mut random = Random::of(case);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        mutate(&mut random, &mut bytes);
        let read = std::panic::catch_unwind(|| read(&bytes));
        match read {
            Ok(far) => reached[far as usize] += 1,
            Err(_) => panic!("case {case} panics"),
        }
    }
    println!("opened no file, no architecture, no config, no model, a model: {reached:?}");
    // If nearly all ended at the first byte, little would be tested.
    let enough = [reached[0], reached[2], reached[4]];
    assert!(
        count < CASES || enough.iter().all(|n| n * 50 > count),
        "{reached:?}"
    );
}
