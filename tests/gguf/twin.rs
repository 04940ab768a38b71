//! A fixture model as a GGUF file: what llama.cpp's conversion would make of it.
//!
//! In:  a Hugging Face folder of one `model.safetensors` in f32 or bf16, and how its matrices are to be
//! stored. Out: a file with the metadata and tensors of ggml-org/llama.cpp, `conversion/*.py`, without a
//! tokenizer. Names are those of the PyPI package `gguf` (`fixtures/gguf/names.json`).

mod experts;
mod latent;

use super::{Tensor, Value, write};
use serde_json::Value as Json;
use std::path::Path;

/// How a matrix, or one for each expert, is stored: from its name in the file, its shape and its elements to
/// the number of its ggml type and the bytes of its blocks. What is F32 in all files is not asked for: vectors,
/// biases and the matrices of [`ALWAYS_F32`].
pub type Store<'a> = &'a dyn Fn(&str, &[usize], &[f32]) -> (u32, Vec<u8>);

/// How the names of matrices end that conversions store as F32 whatever the others are.
pub const ALWAYS_F32: [&str; 4] = [
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "ssm_conv1d.weight",
    "position_embd.weight",
];

/// A tensor of a checkpoint.
struct Weight {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Matrices as F32.
pub fn in_f32(_: &str, _: &[usize], values: &[f32]) -> (u32, Vec<u8>) {
    (0, values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// Matrices as BF16, cut off after 16 bits: of models that are stored in bf16, exactly.
pub fn in_bf16(_: &str, _: &[usize], values: &[f32]) -> (u32, Vec<u8>) {
    let upper = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
    (30, values.iter().flat_map(upper).collect())
}

/// Writes the twin of a model.
///
/// # Panics
/// If the folder is no model of an architecture that is converted here, or the file cannot be written.
pub fn twin(folder: &Path, file: &Path, store: Store<'_>) {
    let (metadata, tensors) = parts(folder, store);
    let metadata: Vec<(&str, Value)> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    write(file, &metadata, &tensors);
}

/// The metadata and tensors of a model's twin.
///
/// # Panics
/// As [`twin`].
pub fn parts(folder: &Path, store: Store<'_>) -> (Vec<(String, Value)>, Vec<Tensor>) {
    let config = json(&folder.join("config.json"));
    let config = match config.get("text_config") {
        Some(inner) => inner.clone(),
        None => config,
    };
    let architecture = match config["model_type"].as_str() {
        Some("llama" | "mistral") => "llama",
        Some("qwen3_moe") => "qwen3moe",
        Some("qwen3_5" | "qwen3_5_text") => "qwen35",
        Some("qwen3_5_moe" | "qwen3_5_moe_text") => "qwen35moe",
        Some("gemma3" | "gemma3_text") => "gemma3",
        Some("gpt_oss") => "gpt-oss",
        Some("glm4_moe_lite") => "deepseek2",
        Some(same @ ("gpt2" | "qwen2" | "qwen3" | "phi3")) => same,
        other => panic!("{other:?} is not converted here"),
    };
    let names = json(&crate::fixture("gguf/names.json"))[architecture].clone();
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("model.safetensors");
    let stored = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let weights = stored.iter().map(|(name, view)| Weight {
        name: name.to_string(),
        shape: view.shape().to_vec(),
        values: crate::floats(&path, name),
    });
    let mut tensors = Vec::new();
    let weights = experts::stacked(architecture, weights.collect()).into_iter();
    for weight in weights.flat_map(|weight| latent::apart(&config, weight)) {
        let Some(new) = renamed(&weight.name, &names) else {
            continue;
        };
        let (shape, values) = converted(architecture, &config, weight);
        let ends = |end: &&str| new.ends_with(*end);
        let always = shape.len() == 1 || new.ends_with(".bias") || ALWAYS_F32.iter().any(ends);
        let (kind, bytes) = match always {
            true => in_f32(&new, &shape, &values),
            false => store(&new, &shape, &values),
        };
        tensors.push(Tensor {
            name: new,
            shape,
            kind,
            bytes,
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors.extend(divisors(&config));
    (metadata(architecture, &config), tensors)
}

fn json(path: &Path) -> Json {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The name in the file; `None` for tensors that are left out.
fn renamed(name: &str, names: &Json) -> Option<String> {
    let name = name.replace("model.language_model.", "model.");
    let parts: Vec<&str> = name.split('.').collect();
    let number = parts.iter().position(|part| part.parse::<u32>().is_ok());
    let layer = number.map(|at| parts[at].to_string());
    // The table has the names of layer 1.
    let mut first: Vec<&str> = parts;
    if let Some(at) = number {
        first[at] = "1";
    }
    let first = first.join(".");
    let mut table = names.as_object().expect("names").iter();
    let (new, _) = table.find(|(_, old)| **old == first.as_str())?;
    Some(match layer {
        None => new.clone(),
        Some(layer) => new.replacen("blk.1.", &format!("blk.{layer}."), 1),
    })
}

/// What the conversion of an architecture does to a tensor: its shape and elements then.
fn converted(architecture: &str, config: &Json, weight: Weight) -> (Vec<usize>, Vec<f32>) {
    let Weight {
        name,
        shape,
        mut values,
    } = weight;
    let size = |field: &str| config[field].as_u64().map(|n| n as usize);
    let ends = |parts: &[&str]| parts.iter().any(|part| name.ends_with(part));
    match architecture {
        "llama"
            if ends(&[
                "q_proj.weight",
                "k_proj.weight",
                "q_proj.bias",
                "k_proj.bias",
            ]) =>
        {
            let heads = size("num_attention_heads").expect("heads");
            let heads = match name.contains("q_proj") {
                true => heads,
                false => size("num_key_value_heads").unwrap_or(heads),
            };
            // [heads, 2, D / 2, columns] → [heads, D / 2, 2, columns]
            let half = shape[0] / heads / 2;
            let columns = values.len() / shape[0];
            let moved = swapped(&values, [heads, 2, half, columns]);
            (shape, moved)
        }
        "gpt2" if ends(&["c_attn.weight", "c_proj.weight", "c_fc.weight"]) => {
            let moved = swapped(&values, [1, shape[0], shape[1], 1]);
            (vec![shape[1], shape[0]], moved)
        }
        "gemma3" if ends(&["norm.weight"]) => {
            values.iter_mut().for_each(|x| *x += 1.0);
            (shape, values)
        }
        "qwen35" | "qwen35moe" => {
            if ends(&[".A_log"]) {
                values.iter_mut().for_each(|x| *x = -x.exp());
            } else if ends(&["norm.weight"]) && !ends(&["linear_attn.norm.weight"]) {
                values.iter_mut().for_each(|x| *x += 1.0);
            }
            match ends(&[".shared_expert_gate.weight"]) {
                // llama-quantize writes it so.
                true => (vec![values.len()], values),
                false => tiled(&name, config, shape, values),
            }
        }
        _ => (shape, values),
    }
}

/// `[a, b, c, d]` → `[a, c, b, d]`.
fn swapped(values: &[f32], [a, b, c, d]: [usize; 4]) -> Vec<f32> {
    assert_eq!(values.len(), a * b * c * d);
    let mut out = Vec::with_capacity(values.len());
    for i in 0..a {
        for k in 0..c {
            for j in 0..b {
                let at = ((i * b + j) * c + k) * d;
                out.extend(&values[at..at + d]);
            }
        }
    }
    out
}

/// The v heads of linear attention, from groups that share a k head to rounds over all k heads.
fn tiled(name: &str, config: &Json, shape: Vec<usize>, values: Vec<f32>) -> (Vec<usize>, Vec<f32>) {
    let size = |field: &str| config[field].as_u64().expect("a size") as usize;
    let Some((_, what)) = name.split_once("linear_attn.") else {
        return (shape, values);
    };
    let (k_heads, v_heads) = (size("linear_num_key_heads"), size("linear_num_value_heads"));
    let (k_dim, v_dim) = (size("linear_key_head_dim"), size("linear_value_head_dim"));
    let group = v_heads / k_heads;
    let columns: usize = shape[1..].iter().product();
    let rows = |dim: usize, first: usize| {
        let (head, tail) = values.split_at(first * columns);
        let moved = swapped(tail, [1, k_heads, group, dim * columns]);
        [head, &moved].concat()
    };
    let moved = match what {
        "in_proj_qkv.weight" | "conv1d.weight" => rows(v_dim, 2 * k_heads * k_dim),
        "in_proj_z.weight" => rows(v_dim, 0),
        "in_proj_a.weight" | "in_proj_b.weight" | "A_log" | "dt_bias" => rows(1, 0),
        "out_proj.weight" => swapped(&values, [shape[0], k_heads, group, v_dim]),
        _ => values.clone(),
    };
    let shape = match what {
        "conv1d.weight" => vec![shape[0], shape[2]],
        _ => shape,
    };
    (shape, moved)
}

/// The tensor of Llama 3's divisors, where a config has them.
fn divisors(config: &Json) -> Option<Tensor> {
    let rope = &config["rope_parameters"];
    if rope["rope_type"] != "llama3" {
        return None;
    }
    let number = |field: &str| rope[field].as_f64().expect("a number");
    let heads = config["num_attention_heads"].as_f64().expect("heads");
    let hidden = config["hidden_size"].as_f64().expect("a size");
    let dims = config["head_dim"].as_f64().unwrap_or(hidden / heads);
    let (factor, low, high) = (
        number("factor"),
        number("low_freq_factor"),
        number("high_freq_factor"),
    );
    let original = number("original_max_position_embeddings");
    let divisor = |i: usize| {
        let frequency = number("rope_theta").powf(-2.0 * i as f64 / dims);
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor as f32
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        }
    };
    let values: Vec<f32> = (0..dims as usize / 2).map(divisor).collect();
    Some(Tensor::floats(
        "rope_freqs.weight",
        &[values.len()],
        &values,
    ))
}

fn metadata(architecture: &str, config: &Json) -> Vec<(String, Value)> {
    let mut out: Vec<(String, Value)> = vec![
        ("general.architecture".into(), architecture.into()),
        ("general.type".into(), "model".into()),
    ];
    let mut set = |key: &str, value: Option<Value>| {
        out.extend(value.map(|value| (format!("{architecture}.{key}"), value)));
    };
    let whole = |field: &str| config[field].as_u64().map(|n| Value::U32(n as u32));
    let float = |value: &Json| value.as_f64().map(|x| Value::F32(x as f32));
    let size = |field: &str| config[field].as_u64().expect("a size") as u32;
    if architecture == "gpt2" {
        set("block_count", whole("n_layer"));
        set("context_length", whole("n_positions"));
        set("embedding_length", whole("n_embd"));
        set("feed_forward_length", Some((4 * size("n_embd")).into()));
        set("attention.head_count", whole("n_head"));
        let epsilon = float(&config["layer_norm_epsilon"]);
        set("attention.layer_norm_epsilon", epsilon);
        return out;
    }
    set("block_count", whole("num_hidden_layers"));
    set("context_length", whole("max_position_embeddings"));
    set("embedding_length", whole("hidden_size"));
    set("feed_forward_length", whole("intermediate_size"));
    set("attention.head_count", whole("num_attention_heads"));
    let epsilon = float(&config["rms_norm_eps"]);
    set("attention.layer_norm_rms_epsilon", epsilon);
    let of_latents = architecture == "deepseek2";
    if of_latents {
        for (key, value) in latent::metadata(config) {
            set(key, value);
        }
    } else {
        set("attention.head_count_kv", whole("num_key_value_heads"));
        set("attention.key_length", whole("head_dim"));
        set("attention.value_length", whole("head_dim"));
    }
    let all = &config["rope_parameters"];
    // Gemma 3 has two.
    let rope = all.get("full_attention").unwrap_or(all);
    set("rope.freq_base", float(&rope["rope_theta"]));
    let windows = float(&all["sliding_attention"]["rope_theta"]);
    set("rope.freq_base_swa", windows);
    if rope["rope_type"] == "linear" {
        set("rope.scaling.type", Some("linear".into()));
        set("rope.scaling.factor", float(&rope["factor"]));
    }
    if rope["rope_type"] == "yarn" {
        set("rope.scaling.type", Some("yarn".into()));
        set("rope.scaling.factor", float(&rope["factor"]));
        let original = rope["original_max_position_embeddings"].as_u64();
        let original = original.map(|tokens| Value::U32(tokens as u32));
        set("rope.scaling.original_context_length", original);
        set("rope.scaling.yarn_beta_fast", float(&rope["beta_fast"]));
        set("rope.scaling.yarn_beta_slow", float(&rope["beta_slow"]));
    }
    let usual = size("hidden_size") / size("num_attention_heads");
    let head_dim = config["head_dim"].as_u64().map_or(usual, |n| n as u32);
    let share = rope["partial_rotary_factor"].as_f64().unwrap_or(1.0);
    let rotated = (f64::from(head_dim) * share) as u32;
    let rotated = (!of_latents).then_some(Value::U32(rotated));
    set("rope.dimension_count", rotated);
    if ["phi3", "llama", "gemma3", "gpt-oss"].contains(&architecture) {
        // The conversion leaves out Mistral's, and llama.cpp sees all tokens then.
        set("attention.sliding_window", whole("sliding_window"));
    }
    if architecture == "phi3" {
        let original = whole("original_max_position_embeddings");
        set("rope.scaling.original_context_length", original);
    }
    if architecture == "gemma3" {
        // The conversion leaves out both: released models have what llama.cpp takes for granted.
        let pattern = interval(config).expect("kinds of layers");
        set("attention.sliding_window_pattern", Some(pattern.into()));
        let scalar = config["query_pre_attn_scalar"].as_f64().expect("a number");
        let scale = scalar.sqrt().recip() as f32;
        set("attention.scale", Some(scale.into()));
    }
    if ["qwen35", "qwen35moe"].contains(&architecture) {
        let (heads, dim) = (
            size("linear_num_value_heads"),
            size("linear_value_head_dim"),
        );
        set("ssm.conv_kernel", whole("linear_conv_kernel_dim"));
        set("ssm.state_size", whole("linear_key_head_dim"));
        set("ssm.group_count", whole("linear_num_key_heads"));
        set("ssm.time_step_rank", Some(heads.into()));
        set("ssm.inner_size", Some((heads * dim).into()));
        let interval = interval(config).unwrap_or(4);
        set("full_attention_interval", Some(interval.into()));
    }
    if ["qwen3moe", "qwen35moe", "gpt-oss"].contains(&architecture) {
        let count = whole("num_experts").or(whole("num_local_experts"));
        set("expert_count", count);
        set("expert_used_count", whole("num_experts_per_tok"));
        let wide = match architecture {
            "gpt-oss" => "intermediate_size",
            _ => "moe_intermediate_size",
        };
        set("expert_feed_forward_length", whole(wide));
        let shared = whole("shared_expert_intermediate_size");
        set("expert_shared_feed_forward_length", shared);
    }
    out
}

/// The number of the first layer with full attention, counted from 1: it and its multiples have it.
fn interval(config: &Json) -> Option<u32> {
    let kinds = config["layer_types"].as_array()?;
    let first = kinds.iter().position(|kind| kind == "full_attention")?;
    Some(first as u32 + 1)
}
