mod families;
mod latent;

use super::*;
use butterfly_compiler::config;
use butterfly_ir::model::{
    AttentionShape, Family, LayerKind, ModelConfig, ModelSizes, RopeScaling,
};
use butterfly_tests::gguf::{self as files, Tensor, Value as Stored};
use std::path::PathBuf;

/// A file that is removed when it is dropped.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file(metadata: &[(&str, Stored)], tensors: &[Tensor]) -> File {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("metadata-{}-{number}.gguf", std::process::id());
    let path = std::env::temp_dir().join(name);
    files::write(&path, metadata, tensors);
    File(path)
}

type Entry = (&'static str, Stored);

/// The metadata of a small Llama.
fn llama() -> Vec<Entry> {
    vec![
        ("general.architecture", "llama".into()),
        ("llama.block_count", 3.into()),
        ("llama.context_length", 512.into()),
        ("llama.embedding_length", 64.into()),
        ("llama.feed_forward_length", 128.into()),
        ("llama.attention.head_count", 4.into()),
        ("llama.attention.head_count_kv", 2.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5.into()),
        ("llama.rope.freq_base", 500_000.0.into()),
        ("tokenizer.ggml.eos_token_id", 7.into()),
        ("tokenizer.ggml.eot_token_id", 9.into()),
    ]
}

/// The same keys with another architecture's name.
fn of(architecture: &str, own: Vec<Entry>) -> Vec<Entry> {
    let renamed = llama().into_iter().map(|(key, value)| {
        let value = match key {
            "general.architecture" => architecture.into(),
            _ => value,
        };
        let key = key.replace("llama.", &format!("{architecture}."));
        (&*key.leak(), value)
    });
    renamed.chain(own).collect()
}

fn with(mut metadata: Vec<Entry>, key: &'static str, value: Stored) -> Vec<Entry> {
    metadata.retain(|(other, _)| *other != key);
    metadata.push((key, value));
    metadata
}

fn embedding() -> Tensor {
    Tensor::floats("token_embd.weight", &[11, 64], &[0.5; 11 * 64])
}

fn read(metadata: &[Entry], tensors: &[Tensor]) -> Result<(ModelConfig, ModelSizes), String> {
    let file = file(metadata, tensors);
    let gguf = Gguf::open(&file.0).map_err(|error| error.to_string())?;
    let architecture = Architecture::of(&gguf).map_err(|error| error.to_string())?;
    let json = super::config(&gguf, architecture).map_err(|error| error.to_string())?;
    let (name, json) = (file.0.display().to_string(), json.to_string());
    let read = config::read(&name, &json).map_err(|error| error.to_string())?;
    let sizes = config::sizes(&name, &json, &read).map_err(|error| error.to_string())?;
    Ok((read, sizes))
}

fn refused(metadata: Vec<Entry>, tensors: &[Tensor]) -> String {
    read(&metadata, tensors).expect_err("refused")
}

#[test]
fn a_llama_is_read() {
    let (config, sizes) = read(&llama(), &[embedding()]).expect("read");
    assert_eq!(config.family, Family::Llama);
    assert_eq!(config.layers, [LayerKind::FullAttention; 3]);
    let heads = AttentionShape::Gqa {
        q_heads: 4,
        kv_heads: 2,
        head_dim: 16,
    };
    assert_eq!(config.attention, heads);
    // Exactly what a config.json says, not the nearest f32.
    assert_eq!(config.norm_eps, 1e-5);
    assert_eq!(config.max_positions, 512);
    assert!(!config.qk_norm);
    let rope = config.rope.expect("rotated");
    assert_eq!((rope.theta, rope.dims), (500_000.0, 16));
    assert_eq!(rope.scaling, RopeScaling::Default);
    // The conversion moves what is rotated together side by side.
    assert!(rope.interleaved);
    assert_eq!((sizes.hidden, sizes.intermediate), (64, 128));
    assert_eq!((sizes.vocabulary, sizes.tied), (11, true));
    assert_eq!(sizes.ends, [7, 9]);
    assert_eq!(config.dtype, butterfly_ir::Dtype::F32);

    let output = Tensor::floats("output.weight", &[11, 64], &[0.0; 11 * 64]);
    let (_, sizes) = read(&llama(), &[embedding(), output]).expect("read");
    assert!(!sizes.tied);

    let bf16 = Tensor {
        kind: 30,
        bytes: vec![0; 2 * 11 * 64],
        ..embedding()
    };
    let (config, _) = read(&llama(), std::slice::from_ref(&bf16)).expect("read");
    assert_eq!(config.dtype, butterfly_ir::Dtype::Bf16);
    let packed = Tensor {
        kind: 8,
        bytes: vec![0; 34 * 11 * 2],
        ..embedding()
    };
    let norm = Tensor::floats("output_norm.weight", &[64], &[1.0; 64]);
    let (config, _) = read(&llama(), &[packed, norm]).expect("read");
    assert_eq!(config.dtype, butterfly_ir::Dtype::F16);
}

#[test]
fn scalings_of_rotary_frequencies_are_read() {
    let scaled = |entries: Vec<Entry>, tensors: &[Tensor]| {
        let metadata = [llama(), entries].concat();
        let tensors = [&[embedding()], tensors].concat();
        read(&metadata, &tensors).map(|(config, _)| config.rope.expect("rotated").scaling)
    };
    let linear = scaled(vec![("llama.rope.scaling.factor", 4.0.into())], &[]);
    assert_eq!(linear, Ok(RopeScaling::Linear { factor: 4.0 }));
    let older = scaled(vec![("llama.rope.scale_linear", 4.0.into())], &[]);
    assert_eq!(older, Ok(RopeScaling::Linear { factor: 4.0 }));
    let none = vec![
        ("llama.rope.scaling.type", "none".into()),
        ("llama.rope.scaling.factor", 4.0.into()),
    ];
    assert_eq!(scaled(none, &[]), Ok(RopeScaling::Default));
    let other = scaled(vec![("llama.rope.scaling.type", "longrope".into())], &[]);
    let error = other.expect_err("refused");
    assert!(
        error.contains("`llama.rope.scaling.type` is `longrope`"),
        "{error}"
    );

    // As conversion/llama.py writes them for the theta of Llama 3.2 and heads of 16, factor 32.
    let divisors = [1.0, 1.0, 1.0, 1.0, 3.292_262_8, 32.0, 32.0, 32.0];
    let tensor = |values: &[f32]| Tensor::floats("rope_freqs.weight", &[values.len()], values);
    assert_eq!(
        scaled(vec![], &[tensor(&divisors)]),
        Ok(RopeScaling::Llama3 {
            factor: 32.0,
            low: 1.0,
            high: 4.0,
            original_max: 8192
        })
    );
    assert_eq!(
        scaled(vec![], &[tensor(&[1.0; 8])]),
        Ok(RopeScaling::Default)
    );
    for (values, expected) in [
        (&[1.0; 7][..], "is F32 [7], expected F32 [8]"),
        (&[f32::NAN; 8], "divides a rotary frequency by NaN"),
        (&[0.0; 8], "divides a rotary frequency by 0"),
        (
            &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0],
            "not those of Llama 3",
        ),
    ] {
        let error = scaled(vec![], &[tensor(values)]).expect_err("refused");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn other_architectures_are_read() {
    let (config, _) = read(
        &of("qwen3", vec![("qwen3.attention.key_length", 32.into())]),
        &[embedding()],
    )
    .expect("read");
    assert_eq!(config.family, Family::Qwen3);
    assert!(config.qk_norm && !config.rope.expect("rotated").interleaved);
    let AttentionShape::Gqa { head_dim: 32, .. } = config.attention else {
        panic!("{:?}", config.attention)
    };

    let own = vec![
        ("qwen35.attention.key_length", 32.into()),
        ("qwen35.rope.dimension_count", 8.into()),
        ("qwen35.ssm.conv_kernel", 4.into()),
        ("qwen35.ssm.state_size", 16.into()),
        ("qwen35.ssm.group_count", 2.into()),
        ("qwen35.ssm.time_step_rank", 4.into()),
        ("qwen35.ssm.inner_size", 64.into()),
        ("qwen35.nextn_predict_layers", 1.into()),
        ("qwen35.full_attention_interval", 2.into()),
    ];
    let (config, sizes) = read(&of("qwen35", own.clone()), &[embedding()]).expect("read");
    let kinds = [LayerKind::LinearAttention, LayerKind::FullAttention];
    assert_eq!(config.layers, kinds);
    assert_eq!(config.rope.expect("rotated").dims, 8);
    let linear = sizes.linear.expect("linear layers");
    assert_eq!((linear.k_heads, linear.v_heads), (2, 4));
    assert_eq!((linear.k_dim, linear.v_dim, linear.taps), (16, 16, 4));
    let listed = (
        "qwen35.attention.recurrent_layers",
        Stored::Bools(vec![false, true, false]),
    );
    let (config, _) =
        read(&of("qwen35", [own, vec![listed]].concat()), &[embedding()]).expect("read");
    assert_eq!(config.layers, [kinds[1], kinds[0]]);

    let own = vec![("gpt2.attention.layer_norm_epsilon", 1e-5.into())];
    let (config, sizes) = read(&of("gpt2", own), &[embedding()]).expect("read");
    assert_eq!((config.family, config.norm_eps), (Family::Gpt2, 1e-5));
    assert_eq!((config.max_positions, sizes.intermediate), (512, 128));
    assert!(sizes.tied);
}

/// The fields of architectures whose families the compiler reads elsewhere.
#[test]
fn fields_are_spelled_as_in_config_json() {
    let json = |metadata: &[Entry], tensors: &[Tensor]| {
        let file = file(metadata, tensors);
        let gguf = Gguf::open(&file.0).expect("opened");
        super::config(&gguf, Architecture::of(&gguf).expect("known")).expect("read")
    };
    let bias = |name| Tensor::floats(name, &[64], &[0.0; 64]);
    let biases = [bias("blk.0.attn_q.bias"), bias("blk.0.ffn_gate.bias")];
    for (tensors, expected) in [(&biases[..], true), (&[], false)] {
        let llama = json(&llama(), &[&[embedding()], tensors].concat());
        assert_eq!(llama["attention_bias"], expected);
        assert_eq!(llama["mlp_bias"], expected);
    }
    let window = ("llama.attention.sliding_window", 20.into());
    let mistral = json(&[llama(), vec![window]].concat(), &[embedding()]);
    assert_eq!(mistral["model_type"], "mistral");
    assert_eq!(
        (&mistral["sliding_window"], &mistral["rope_interleave"]),
        (&json!(20), &json!(true))
    );
    let own = vec![
        ("phi3.attention.sliding_window", 0.into()),
        ("phi3.rope.dimension_count", 12.into()),
    ];
    let phi3 = json(&of("phi3", own), &[embedding()]);
    assert_eq!(
        (&phi3["model_type"], &phi3["sliding_window"]),
        (&json!("phi3"), &json!(null))
    );
    assert_eq!(phi3["rope_parameters"]["partial_rotary_factor"], 0.75);
    assert_eq!(phi3.get("rope_interleave"), None);
    let own = vec![
        ("phi3.rope.scaling.original_context_length", 128.into()),
        ("phi3.rope.scaling.attn_factor", 1.19.into()),
    ];
    let factors = |name, x| Tensor::floats(name, &[8], &[x; 8]);
    let long = factors("rope_factors_long.weight", 4.1);
    let short = factors("rope_factors_short.weight", 1.0);
    let phi3 = json(&of("phi3", own), &[embedding(), long, short]);
    assert_eq!(phi3["original_max_position_embeddings"], 128);
    let rope = &phi3["rope_parameters"];
    assert_eq!(rope["rope_type"], "longrope");
    assert_eq!(rope["attention_factor"], 1.19);
    assert_eq!(rope["long_factor"], json!(vec![4.1; 8]));
    assert_eq!(rope["short_factor"], json!(vec![1.0; 8]));
    let qwen2 = json(&of("qwen2", vec![]), &[embedding()]);
    assert_eq!(
        (&qwen2["model_type"], &qwen2["num_key_value_heads"]),
        (&json!("qwen2"), &json!(2))
    );
    assert_eq!(
        (&qwen2["head_dim"], &qwen2["rms_norm_eps"]),
        (&json!(16), &json!(1e-5))
    );
}

#[test]
fn what_is_wrong_is_named() {
    let tensors = [embedding()];
    for missing in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let mut metadata = llama();
        metadata.retain(|(key, _)| *key != missing);
        let error = refused(metadata, &tensors);
        assert!(error.contains(&format!("has no `{missing}`")), "{error}");
        assert!(error.contains(".gguf: "), "{error}");
    }
    for (key, value, expected) in [
        (
            "general.architecture",
            "mamba".into(),
            "is `mamba`, which does not run; those that do are llama, qwen2",
        ),
        (
            "general.architecture",
            3.into(),
            "`general.architecture` is 3 (u32), expected a string",
        ),
        (
            "general.type",
            "adapter".into(),
            "`general.type` is `adapter`",
        ),
        (
            "llama.block_count",
            "3".into(),
            "`llama.block_count` is string, expected a whole number",
        ),
        (
            "llama.block_count",
            Stored::I32(-1),
            "`llama.block_count` is -1 (i32)",
        ),
        ("llama.block_count", 0.into(), "`llama.block_count` is 0"),
        (
            "llama.block_count",
            4_000_000_000.into(),
            "num_hidden_layers",
        ),
        (
            "llama.attention.head_count",
            7.into(),
            "`llama.attention.key_length` is missing",
        ),
        (
            "llama.attention.head_count",
            Stored::Integers(vec![4, 4, 2]),
            "`llama.attention.head_count` is not the same",
        ),
        (
            "llama.attention.head_count",
            Stored::Integers(vec![]),
            "`llama.attention.head_count` is not the same",
        ),
        (
            "llama.attention.value_length",
            8.into(),
            "`llama.attention.value_length` is other than",
        ),
        (
            "llama.attention.scale",
            0.5.into(),
            "`llama.attention.scale` is 0.5",
        ),
        (
            "llama.attention.causal",
            Stored::Bool(false),
            "`llama.attention.causal` is false",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            f32::NAN.into(),
            "is NaN (f32), expected a finite number",
        ),
        (
            "llama.rope.freq_base",
            (-1.0).into(),
            "`llama.rope.freq_base` is -1",
        ),
        (
            "llama.rope.dimension_count",
            8.into(),
            "`llama.rope.dimension_count` is 8",
        ),
        (
            "llama.rope.dimension_count",
            17.into(),
            "`llama.rope.dimension_count` is 17",
        ),
        ("llama.expert_count", 8.into(), "`llama.expert_count` is 8"),
        (
            "tokenizer.ggml.eos_token_id",
            "a".into(),
            "`tokenizer.ggml.eos_token_id` is string",
        ),
    ] {
        let error = refused(with(llama(), key, value), &tensors);
        assert!(error.contains(expected), "{error}");
    }
    let arrays = with(
        llama(),
        "llama.attention.head_count",
        Stored::Integers(vec![4, 4, 4]),
    );
    assert!(read(&arrays, &tensors).is_ok());
    let long = Tensor::floats("rope_factors_long.weight", &[8], &[1.0; 8]);
    let short = Tensor::floats("rope_factors_short.weight", &[8], &[1.0; 8]);
    let error = refused(llama(), &[embedding(), long.clone()]);
    assert!(error.contains("has only one of the tensors"), "{error}");
    let error = refused(llama(), &[embedding(), long, short]);
    assert!(error.contains("LongRoPE"), "{error}");
    // Without an embedding, the tokens are counted.
    let tokens = Stored::Texts(vec!["a".into(), "b".into()]);
    let (_, sizes) = read(&with(llama(), "tokenizer.ggml.tokens", tokens), &[]).expect("read");
    assert_eq!(sizes.vocabulary, 2);
    assert!(refused(llama(), &[]).contains("has no `tokenizer.ggml.tokens`"));
}
