//! Models whose weights are packed, beside ones with the same weights unpacked, in f32.

use crate::formats::{Random, affine, random, unpacked};
use crate::latents;
use butterfly::Dtype;
use butterfly::ops::Packed;
use butterfly_tests::gguf::{self, Tensor, twin};
pub(crate) use safetensors::tensor::Dtype as Stored;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;

/// A model with rows of 256 elements and more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    Llama,
    /// Qwen3 with experts.
    Experts,
    /// GLM-4.7-Flash: a layer without experts, and one with them.
    Latent,
}

/// Number of experts.
pub(crate) const EXPERTS: usize = 5;

/// A folder of a model whose weights are one.
pub(crate) fn ones(dir: &Path, shape: Shape) {
    let own = match shape {
        Shape::Llama => r#""model_type": "llama""#,
        Shape::Experts => {
            r#""model_type": "qwen3_moe", "head_dim": 64, "num_experts": 5, "num_experts_per_tok": 2,
            "moe_intermediate_size": 256, "norm_topk_prob": true"#
        }
        Shape::Latent => {
            r#""model_type": "glm4_moe_lite", "first_k_dense_replace": 1, "n_routed_experts": 5,
            "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 256, "norm_topk_prob": true,
            "routed_scaling_factor": 1.8, "q_lora_rank": 256, "kv_lora_rank": 128, "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 64, "v_head_dim": 128"#
        }
    };
    let kv_heads = match shape {
        Shape::Llama | Shape::Experts => 2,
        Shape::Latent => 4,
    };
    let config = format!(
        r#"{{{own}, "dtype": "float32", "num_hidden_layers": 2,
        "max_position_embeddings": 512, "hidden_size": 256, "intermediate_size": 512,
        "vocab_size": 260, "rms_norm_eps": 1e-5, "num_attention_heads": 4,
        "num_key_value_heads": {kv_heads}, "tie_word_embeddings": false}}"#
    );
    std::fs::write(dir.join("config.json"), config).expect("written");
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let ones = 1.0f32.to_le_bytes().repeat(shape.iter().product());
        tensors.insert(name, (Stored::F32, shape.to_vec(), ones));
    };
    for layer in 0..2 {
        let at = format!("model.layers.{layer}");
        let attention: &[(&str, usize, usize)] = match shape {
            Shape::Llama | Shape::Experts => &[
                ("self_attn.q_proj", 256, 256),
                ("self_attn.k_proj", 128, 256),
                ("self_attn.v_proj", 128, 256),
                ("self_attn.o_proj", 256, 256),
            ],
            Shape::Latent => &[
                ("self_attn.q_a_proj", 256, 256),
                ("self_attn.q_b_proj", 512, 256),
                ("self_attn.kv_a_proj_with_mqa", 192, 256),
                ("self_attn.kv_b_proj", 768, 128),
                ("self_attn.o_proj", 256, 512),
            ],
        };
        let norms: &[(&str, usize)] = match shape {
            Shape::Llama => &[],
            Shape::Experts => &[("q_norm", 64), ("k_norm", 64)],
            Shape::Latent => &[("q_a_layernorm", 256), ("kv_a_layernorm", 128)],
        };
        for &(name, length) in norms {
            add(format!("{at}.self_attn.{name}.weight"), &[length]);
        }
        for &(name, rows, columns) in attention {
            add(format!("{at}.{name}.weight"), &[rows, columns]);
        }
        let mut mlp = |at: &str, wide: usize| {
            for name in ["gate_proj", "up_proj"] {
                add(format!("{at}.{name}.weight"), &[wide, 256]);
            }
            add(format!("{at}.down_proj.weight"), &[256, wide]);
        };
        let dense = match shape {
            Shape::Llama => true,
            Shape::Experts => false,
            Shape::Latent => layer == 0,
        };
        if dense {
            mlp(&format!("{at}.mlp"), 512);
        } else {
            for expert in 0..EXPERTS {
                mlp(&format!("{at}.mlp.experts.{expert}"), 256);
            }
            if shape == Shape::Latent {
                mlp(&format!("{at}.mlp.shared_experts"), 256);
                let correction = format!("{at}.mlp.gate.e_score_correction_bias");
                add(correction, &[EXPERTS]);
            }
            add(format!("{at}.mlp.gate.weight"), &[EXPERTS, 256]);
        }
        add(format!("{at}.input_layernorm.weight"), &[256]);
        add(format!("{at}.post_attention_layernorm.weight"), &[256]);
    }
    add("model.norm.weight".into(), &[256]);
    add("model.embed_tokens.weight".into(), &[260, 256]);
    add("lm_head.weight".into(), &[260, 256]);
    save(dir, &tensors);
}

pub(crate) type Tensors = BTreeMap<String, (Stored, Vec<usize>, Vec<u8>)>;

pub(crate) fn save(dir: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor");
        (name.clone(), view)
    });
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).expect("written");
}

pub(crate) fn read(dir: &Path) -> Tensors {
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.iter().map(|(name, view)| {
        let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (name.to_string(), tensor)
    });
    tensors.collect()
}

pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A GGUF file in a format, and one with the same weights in F32.
pub(crate) fn gguf_twins(dir: &Path, packed: Packed, kind: u32, shape: Shape) {
    let folder = dir.join("ones");
    std::fs::create_dir_all(&folder).expect("a folder");
    ones(&folder, shape);
    let (metadata, mut tensors) = twin::parts(&folder, &twin::in_f32);
    let mut plain: Vec<Tensor> = tensors.clone();
    let mut numbers = Random(7);
    for (tensor, plain) in tensors.iter_mut().zip(&mut plain) {
        // Experts are matrices one below another.
        let (rows, columns) = match *tensor.shape.as_slice() {
            [rows, columns] => (rows, columns),
            [experts, rows, columns] => (experts * rows, columns),
            _ => continue,
        };
        if tensor.name.contains("ffn_gate_inp") {
            // Routers are stored as floats.
            let floats = (0..rows * columns).map(|_| numbers.float() * 0.1);
            plain.bytes = bytes(&floats.collect::<Vec<f32>>());
            tensor.bytes.clone_from(&plain.bytes);
            continue;
        }
        // As llama-quantize: rows without whole blocks get a type with smaller ones.
        let (packed, kind) = match columns.is_multiple_of(packed.block().0) {
            true => (packed, kind),
            false => (Packed::Q8_0, 8),
        };
        let stored = random(packed, [rows, columns], &mut numbers);
        plain.bytes = bytes(&unpacked(packed, [rows, columns], &stored));
        tensor.kind = kind;
        tensor.bytes = stored.into_iter().next().expect("one tensor");
    }
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    gguf::write(&dir.join("packed.gguf"), &metadata, &tensors);
    gguf::write(&dir.join("plain.gguf"), &metadata, &plain);
}

/// A folder in a format, and one with the same weights in F32. In the packed one, the first layer's k
/// keeps its floats, and with integers its v has 8 bits, and so have routers; the weight of latents is whole in the
/// first layer, as older versions of mlx-lm have it, and in the second in matrices of each head.
pub(crate) fn folder_twins(dir: &Path, packed: Packed, shape: Shape) {
    let [packed_dir, plain_dir] = ["packed", "plain"].map(|name| dir.join(name));
    for dir in [&packed_dir, &plain_dir] {
        std::fs::create_dir_all(dir).expect("a folder");
        ones(dir, shape);
    }
    let mut tensors = read(&packed_dir);
    let mut plain = tensors.clone();
    let mut numbers = Random(11);
    for (name, (_, shape, values)) in &mut plain {
        let &[rows, columns] = shape.as_slice() else {
            continue;
        };
        let router = name.contains("mlp.gate.");
        let packed = match packed {
            Packed::Affine { group, scales, .. }
                if router || name.contains("layers.0.self_attn.v_proj") =>
            {
                affine(8, group, scales)
            }
            _ => packed,
        };
        let float8 = matches!(packed, Packed::Float8 { .. });
        if name.contains("layers.0.self_attn.k_proj") || router && float8 {
            let floats = (0..rows * columns).map(|_| numbers.float() * 0.1);
            *values = bytes(&floats.collect::<Vec<f32>>());
            tensors.insert(name.clone(), (Stored::F32, shape.clone(), values.clone()));
            continue;
        }
        // FP8 checkpoints keep embeddings and the output projection in bf16.
        if float8 && !name.contains("layers") {
            let floats = (0..rows * columns).map(|_| half::bf16::from_f32(numbers.float() * 0.1));
            let floats: Vec<half::bf16> = floats.collect();
            *values = floats
                .iter()
                .flat_map(|x| x.to_f32().to_le_bytes())
                .collect();
            let halves = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.insert(name.clone(), (Stored::BF16, shape.clone(), halves));
            continue;
        }
        if !float8
            && let Some(at) = name.strip_suffix(".kv_b_proj.weight")
            && at.contains("layers.1.")
        {
            tensors.remove(name);
            let (apart, whole) = latents::packed(at, packed, &mut numbers);
            tensors.extend(apart);
            *values = bytes(&whole);
            continue;
        }
        let stored = random(packed, [rows, columns], &mut numbers);
        *values = bytes(&unpacked(packed, [rows, columns], &stored));
        tensors.extend(named(name, packed, &[rows, columns], stored));
    }
    if matches!(packed, Packed::Affine { .. }) {
        tensors = stacked(tensors);
    }
    save(&packed_dir, &tensors);
    save(&plain_dir, &plain);
}

/// The tensors of a packed weight, or of several one below another, whose elements have this shape.
pub(crate) fn named(name: &str, packed: Packed, shape: &[usize], stored: Vec<Vec<u8>>) -> Tensors {
    let base = name.strip_suffix(".weight").expect("a weight");
    let (columns, above) = shape.split_last().expect("a matrix");
    let rows = |length: usize| [above, &[length]].concat();
    let dtype = |dtype: Dtype| match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::F16 => Stored::F16,
        Dtype::Bf16 => Stored::BF16,
    };
    let parts = match packed {
        Packed::Affine {
            bits,
            group,
            scales,
        } => {
            let groups = rows(columns / group as usize);
            let words = rows(columns * bits as usize / 32);
            vec![
                (name.to_string(), Stored::U32, words),
                (format!("{base}.scales"), dtype(scales), groups.clone()),
                (format!("{base}.biases"), dtype(scales), groups),
            ]
        }
        Packed::Float8 { scales, .. } => {
            let squares = shape.iter().map(|length| length.div_ceil(128)).collect();
            vec![
                (name.to_string(), Stored::F8_E4M3, shape.to_vec()),
                (format!("{name}_scale_inv"), dtype(scales), squares),
            ]
        }
        other => panic!("{other} is no format of folders"),
    };
    assert_eq!(parts.len(), stored.len());
    let tensors = parts.into_iter().zip(stored);
    tensors
        .map(|((name, dtype, shape), bytes)| (name, (dtype, shape, bytes)))
        .collect()
}

/// The tensors of all experts one below another, as MLX has them.
pub(crate) fn stacked(tensors: Tensors) -> Tensors {
    let mut all = Tensors::new();
    // In the order of names, which is that of the experts.
    for (name, (dtype, shape, bytes)) in tensors {
        let Some((at, rest)) = name.split_once(".experts.") else {
            all.insert(name, (dtype, shape, bytes));
            continue;
        };
        let (_, name) = rest.split_once('.').expect("a number");
        let shape = [&[0], shape.as_slice()].concat();
        let stack = all.entry(format!("{at}.switch_mlp.{name}"));
        let (_, shape, joined) = stack.or_insert((dtype, shape, Vec::new()));
        shape[0] += 1;
        joined.extend(bytes);
    }
    all
}

/// gpt-oss with experts in MXFP4, and with the same weights as floats, which are stored transposed.
pub(crate) fn gpt_oss_twins(dir: &Path) {
    const HIDDEN: usize = 64;
    const WIDE: usize = 96;
    let config = r#"{"model_type": "gpt_oss", "dtype": "float32", "num_hidden_layers": 2,
        "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 260,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 5,
        "num_experts_per_tok": 2, "sliding_window": 16, "rope_theta": 10000.0,
        "quantization_config": {"quant_method": "mxfp4"}}"#;
    let mut numbers = Random(5);
    let mut shared = Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: f32, plus: f32| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| numbers.float() * scale + plus).collect();
        shared.insert(name, (Stored::F32, shape.to_vec(), bytes(&values)));
    };
    for layer in 0..2 {
        let at = format!("model.layers.{layer}");
        for (name, rows, columns) in [
            ("self_attn.q_proj", 64, HIDDEN),
            ("self_attn.k_proj", 32, HIDDEN),
            ("self_attn.v_proj", 32, HIDDEN),
            ("self_attn.o_proj", HIDDEN, 64),
            ("mlp.router", EXPERTS, HIDDEN),
        ] {
            add(format!("{at}.{name}.weight"), &[rows, columns], 0.2, 0.0);
            add(format!("{at}.{name}.bias"), &[rows], 0.1, 0.0);
        }
        add(format!("{at}.self_attn.sinks"), &[4], 1.0, 0.0);
        for (name, width) in [("gate_up_proj", 2 * WIDE), ("down_proj", HIDDEN)] {
            let name = format!("{at}.mlp.experts.{name}_bias");
            add(name, &[EXPERTS, width], 0.1, 0.0);
        }
        add(format!("{at}.input_layernorm.weight"), &[HIDDEN], 0.2, 1.0);
        let after = format!("{at}.post_attention_layernorm.weight");
        add(after, &[HIDDEN], 0.2, 1.0);
    }
    add("model.norm.weight".into(), &[HIDDEN], 0.2, 1.0);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        add(name.into(), &[260, HIDDEN], 0.5, 0.0);
    }
    let (mut packed, mut plain) = (shared.clone(), shared);
    for layer in 0..2 {
        for (name, rows, columns) in [
            ("gate_up_proj", 2 * WIDE, HIDDEN),
            ("down_proj", HIDDEN, WIDE),
        ] {
            let name = format!("model.layers.{layer}.mlp.experts.{name}");
            let all = [EXPERTS * rows, columns];
            let sizes = Packed::Microscaled.sizes(all[0], columns).expect("blocks");
            let codes: Vec<u8> = (0..sizes[0]).map(|_| numbers.byte()).collect();
            let exponents: Vec<u8> = (0..sizes[1]).map(|_| 118 + numbers.byte() % 5).collect();
            let stored = vec![codes, exponents];
            let values = unpacked(Packed::Microscaled, all, &stored);
            let mut turned = vec![0.0; values.len()];
            for (matrix, out) in values
                .chunks(rows * columns)
                .zip(turned.chunks_mut(rows * columns))
            {
                for (at, x) in matrix.iter().enumerate() {
                    out[at % columns * rows + at / columns] = *x;
                }
            }
            let shape = vec![EXPERTS, columns, rows];
            plain.insert(name.clone(), (Stored::F32, shape, bytes(&turned)));
            let groups = vec![EXPERTS, rows, columns / 32];
            let blocks = [groups.as_slice(), &[16]].concat();
            let [codes, exponents] = <[Vec<u8>; 2]>::try_from(stored).expect("two tensors");
            packed.insert(format!("{name}_blocks"), (Stored::U8, blocks, codes));
            packed.insert(format!("{name}_scales"), (Stored::U8, groups, exponents));
        }
    }
    for (name, tensors) in [("packed", packed), ("plain", plain)] {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::write(dir.join("config.json"), config).expect("written");
        save(&dir, &tensors);
    }
}
