//! Models whose weights are packed against twins that hold the same weights unpacked, in f32.

use crate::support::{MODELS, cases, farthest, folder, logits, policy};
use butterfly::ops::{Packed, Rows, Storage};
use butterfly::{AttentionBackend, Dtype, Plan, Sparsity};
use butterfly_models::{Checkpoint, Model, Policy};
use butterfly_tests::gguf::{self, Tensor, twin};
use safetensors::tensor::{Dtype as Stored, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// GGUF files of all fixture models hold what the folders hold: the fixtures' logits. Where `whole` is
/// false, by every pattern and in chunks too.
fn twins_agree<B: AttentionBackend>(device: &B::Device, whole: bool) {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, tolerance) in MODELS {
        let path = dir.path().join(format!("{name}.gguf"));
        twin::twin(&folder(name), &path, &twin::in_bf16);
        let model = open::<B>(&path, device);
        let only = if whole { 1 } else { usize::MAX };
        for case in cases(name).iter().take(only) {
            let policy = policy(&model, case);
            for chunk in [case.tokens.len(), 7].into_iter().take(only) {
                let got = logits(&model, &policy, &case.tokens, chunk).expect("runs");
                let off = farthest(&got, &case.expected);
                assert!(off <= tolerance, "{} by {chunk}: {off}", case.name);
            }
        }
    }
}

fn open<B: AttentionBackend>(path: &Path, device: &B::Device) -> Model<B> {
    let checkpoint = Checkpoint::open(path).expect("a model");
    let (model, unused) = Model::load(&checkpoint, Dtype::F32, device).expect("weights");
    assert_eq!(unused, Vec::<String>::new());
    model
}

#[test]
fn cpu_gguf() {
    twins_agree::<burn_flex::Flex>(&Default::default(), false);
}

#[test]
fn vulkan_gguf() {
    twins_agree::<burn_wgpu::Vulkan>(&burn_wgpu::WgpuDevice::Cpu, true);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda_gguf() {
    twins_agree::<burn_cuda::Cuda>(&Default::default(), false);
}

/// Formats of GGUF with the numbers of their types, and where blocks hold scales of 16 bits.
const BLOCKS: [(Packed, u32, &[usize]); 11] = [
    (Packed::Q4_0, 2, &[0]),
    (Packed::Q4_1, 3, &[0, 2]),
    (Packed::Q5_0, 6, &[0]),
    (Packed::Q5_1, 7, &[0, 2]),
    (Packed::Q8_0, 8, &[0]),
    (Packed::Q2K, 10, &[80, 82]),
    (Packed::Q3K, 11, &[108]),
    (Packed::Q4K, 12, &[0, 2]),
    (Packed::Q5K, 13, &[0, 2]),
    (Packed::Q6K, 14, &[208]),
    (Packed::Mxfp4, 39, &[]),
];

/// Formats of folders.
const GROUPS: [Packed; 5] = [
    affine(2, 32, Dtype::F32),
    affine(4, 64, Dtype::Bf16),
    affine(4, 128, Dtype::F16),
    affine(8, 64, Dtype::Bf16),
    Packed::Float8 {
        scales: Dtype::Bf16,
    },
];

const fn affine(bits: u32, group: u32, scales: Dtype) -> Packed {
    Packed::Affine {
        bits,
        group,
        scales,
    }
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }

    /// From -1 to 1.
    fn float(&mut self) -> f32 {
        f32::from(self.byte()) / 127.5 - 1.0
    }
}

/// The tensors of a random weight.
fn random(packed: Packed, [rows, columns]: [usize; 2], random: &mut Random) -> Vec<Vec<u8>> {
    let sizes = packed.sizes(rows, columns).expect("whole blocks");
    let bytes = |size: usize, random: &mut Random| (0..size).map(|_| random.byte()).collect();
    let mut tensors: Vec<Vec<u8>> = sizes.iter().map(|size| bytes(*size, random)).collect();
    let small = |random: &mut Random| random.float() * 0.004;
    if let Some((_, _, scales)) = BLOCKS.iter().find(|(other, ..)| *other == packed) {
        let (_, size) = packed.block();
        for block in tensors[0].chunks_mut(size) {
            for at in *scales {
                let scale = half::f16::from_f32(small(random)).to_le_bytes();
                block[*at..at + 2].copy_from_slice(&scale);
            }
            if scales.is_empty() {
                block[0] = 118 + block[0] % 5;
            }
        }
    }
    let floats = |bytes: &mut [u8], dtype: Dtype, random: &mut Random| {
        for bytes in bytes.chunks_mut(dtype.bytes() as usize) {
            let x = small(random);
            match dtype {
                Dtype::F32 => bytes.copy_from_slice(&x.to_le_bytes()),
                Dtype::F16 => bytes.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
                Dtype::Bf16 => bytes.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
            }
        }
    };
    match packed {
        Packed::Affine { scales, .. } => {
            for tensor in &mut tensors[1..] {
                floats(tensor, scales, random);
            }
        }
        Packed::Float8 { scales } => {
            for byte in &mut tensors[0] {
                // Neither NaN nor far from 1.
                *byte &= 0xbf;
            }
            floats(&mut tensors[1], scales, random);
        }
        _ => {}
    }
    tensors
}

/// The elements of a weight, in f32.
fn unpacked(packed: Packed, [rows, columns]: [usize; 2], tensors: &[Vec<u8>]) -> Vec<f32> {
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let weight = Rows::new(Storage::Packed(packed), [rows, columns], &tensors).expect("rows");
    let mut values = vec![0.0; rows * columns];
    for (row, out) in values.chunks_mut(columns).enumerate() {
        weight.unpack(row, out);
    }
    values
}

/// A folder of a Llama with rows of 256 elements and more, whose weights are zero.
fn zeros(dir: &Path) {
    let config = r#"{"model_type": "llama", "dtype": "float32", "num_hidden_layers": 2,
        "max_position_embeddings": 512, "hidden_size": 256, "intermediate_size": 512,
        "vocab_size": 260, "rms_norm_eps": 1e-5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": false}"#;
    std::fs::write(dir.join("config.json"), config).expect("written");
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let ones = 1.0f32.to_le_bytes().repeat(shape.iter().product());
        tensors.insert(name, (Stored::F32, shape.to_vec(), ones));
    };
    for layer in 0..2 {
        let at = format!("model.layers.{layer}");
        for (name, rows, columns) in [
            ("self_attn.q_proj", 256, 256),
            ("self_attn.k_proj", 128, 256),
            ("self_attn.v_proj", 128, 256),
            ("self_attn.o_proj", 256, 256),
            ("mlp.gate_proj", 512, 256),
            ("mlp.up_proj", 512, 256),
            ("mlp.down_proj", 256, 512),
        ] {
            add(format!("{at}.{name}.weight"), &[rows, columns]);
        }
        add(format!("{at}.input_layernorm.weight"), &[256]);
        add(format!("{at}.post_attention_layernorm.weight"), &[256]);
    }
    add("model.norm.weight".into(), &[256]);
    add("model.embed_tokens.weight".into(), &[260, 256]);
    add("lm_head.weight".into(), &[260, 256]);
    save(dir, &tensors);
}

type Tensors = BTreeMap<String, (Stored, Vec<usize>, Vec<u8>)>;

fn save(dir: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor");
        (name.clone(), view)
    });
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).expect("written");
}

fn read(dir: &Path) -> Tensors {
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.iter().map(|(name, view)| {
        let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (name.to_string(), tensor)
    });
    tensors.collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A GGUF file in a format, and one with the same weights in F32.
fn gguf_twins(dir: &Path, packed: Packed, kind: u32) {
    let folder = dir.join("zeros");
    std::fs::create_dir_all(&folder).expect("a folder");
    zeros(&folder);
    let (metadata, mut tensors) = twin::parts(&folder, &twin::in_f32);
    let mut plain: Vec<Tensor> = tensors.clone();
    let mut numbers = Random(7);
    for (tensor, plain) in tensors.iter_mut().zip(&mut plain) {
        let &[rows, columns] = tensor.shape.as_slice() else {
            continue;
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
/// keeps its floats, and with integers its v has 8 bits.
fn folder_twins(dir: &Path, packed: Packed) {
    let [packed_dir, plain_dir] = ["packed", "plain"].map(|name| dir.join(name));
    for dir in [&packed_dir, &plain_dir] {
        std::fs::create_dir_all(dir).expect("a folder");
        zeros(dir);
    }
    let mut tensors = read(&packed_dir);
    let mut plain = tensors.clone();
    let mut numbers = Random(11);
    for (name, (_, shape, values)) in &mut plain {
        let &[rows, columns] = shape.as_slice() else {
            continue;
        };
        let packed = match (packed, name.contains("layers.0.self_attn.v_proj")) {
            (Packed::Affine { group, scales, .. }, true) => affine(8, group, scales),
            _ => packed,
        };
        if name.contains("layers.0.self_attn.k_proj") {
            let floats = (0..rows * columns).map(|_| numbers.float() * 0.1);
            *values = bytes(&floats.collect::<Vec<f32>>());
            tensors.insert(name.clone(), (Stored::F32, shape.clone(), values.clone()));
            continue;
        }
        // FP8 checkpoints keep embeddings and the output projection in bf16.
        let floats = matches!(packed, Packed::Float8 { .. }) && !name.contains("layers");
        if floats {
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
        let stored = random(packed, [rows, columns], &mut numbers);
        *values = bytes(&unpacked(packed, [rows, columns], &stored));
        let base = name.strip_suffix(".weight").expect("a weight");
        let dtype = |dtype: Dtype| match dtype {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::Bf16 => Stored::BF16,
        };
        let mut stored = stored.into_iter();
        let mut add = |name: String, dtype: Stored, shape: [usize; 2]| {
            let bytes = stored.next().expect("a tensor");
            tensors.insert(name, (dtype, shape.to_vec(), bytes));
        };
        match packed {
            Packed::Affine {
                bits,
                group,
                scales,
            } => {
                let words = columns * bits as usize / 32;
                add(name.clone(), Stored::U32, [rows, words]);
                for part in ["scales", "biases"] {
                    let shape = [rows, columns / group as usize];
                    add(format!("{base}.{part}"), dtype(scales), shape);
                }
            }
            Packed::Float8 { scales } => {
                add(name.clone(), Stored::F8_E4M3, [rows, columns]);
                let squares = [rows.div_ceil(128), columns.div_ceil(128)];
                add(format!("{name}_scale_inv"), dtype(scales), squares);
            }
            other => panic!("{other} is no format of folders"),
        }
    }
    save(&packed_dir, &tensors);
    save(&plain_dir, &plain);
}

/// Logits of the packed model equal those of the plain one within 2e-4 of their standard deviation, by
/// a pattern and, unless `brief`, dense; all tokens at once, one by one, and unless `brief` in chunks.
fn equal<B: AttentionBackend>(paths: [&Path; 2], name: &str, (device, brief): (&B::Device, bool)) {
    let [packed, plain] = paths.map(|path| open::<B>(path, device));
    let tokens: Vec<u32> = (0..40).map(|i| i * i * 7 % 257).collect();
    let pattern = "block 16 causal & (local(1) | partner(causal_shift) | sink(1))";
    let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
    let plan = Plan::new(sparsity.clone()).expect("a plan");
    let policies = [
        Policy::new(&plain.config, &plan, &sparsity).expect("a policy"),
        Policy::dense(&plain.config, &Plan::dense()).expect("a policy"),
    ];
    let chunks: &[usize] = if brief { &[40, 1] } else { &[40, 1, 7] };
    for policy in &policies[..if brief { 1 } else { 2 }] {
        let want = logits(&plain, policy, &tokens, 40).expect("runs");
        let mean = want.iter().sum::<f32>() / want.len() as f32;
        let squares = want.iter().map(|x| (x - mean).powi(2)).sum::<f32>();
        let deviation = (squares / want.len() as f32).sqrt();
        assert!(deviation > 1e-3, "{name}: logits say nothing");
        for &chunk in chunks {
            let got = logits(&packed, policy, &tokens, chunk).expect("runs");
            let off = farthest(&got, &want) / deviation;
            assert!(off <= 2e-4, "{name} by {chunk}: {off}");
        }
    }
}

/// Qwen3.5 as mlx-lm stores it: a model within a model, convolutions with their taps before the
/// dimension of one, and norms to whose weights one was added.
#[test]
fn qwen3_5_of_mlx() {
    let dir = tempfile::tempdir().expect("a folder");
    let from = folder("qwen3_5");
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).expect("copied");
    let mut tensors = Tensors::new();
    for (name, (dtype, mut shape, mut data)) in read(&from) {
        let norm = name.ends_with("norm.weight") && !name.contains("linear_attn");
        let dtype = match (norm, dtype) {
            (false, dtype) => dtype,
            (true, _) => {
                let values = butterfly_tests::floats(&from.join("model.safetensors"), &name);
                data = bytes(&values.iter().map(|x| x + 1.0).collect::<Vec<f32>>());
                Stored::F32
            }
        };
        if name.ends_with("conv1d.weight") {
            shape.swap(1, 2);
        }
        let name = name.replace("model.language_model.", "model.");
        tensors.insert(format!("language_model.{name}"), (dtype, shape, data));
    }
    save(dir.path(), &tensors);
    let model = open::<burn_flex::Flex>(dir.path(), &Default::default());
    let case = cases("qwen3_5").into_iter().next().expect("a case");
    let policy = policy(&model, &case);
    let got = logits(&model, &policy, &case.tokens, case.tokens.len()).expect("runs");
    let off = farthest(&got, &case.expected);
    assert!(off <= 1e-3, "{off}");
}

fn packed_agree<B: AttentionBackend>(device: &B::Device, brief: bool) {
    for (packed, kind, _) in BLOCKS {
        let dir = tempfile::tempdir().expect("a folder");
        gguf_twins(dir.path(), packed, kind);
        let [packed_file, plain] = ["packed.gguf", "plain.gguf"].map(|name| dir.path().join(name));
        equal::<B>([&packed_file, &plain], &packed.to_string(), (device, brief));
    }
    for packed in GROUPS {
        let dir = tempfile::tempdir().expect("a folder");
        folder_twins(dir.path(), packed);
        let [packed_dir, plain] = ["packed", "plain"].map(|name| dir.path().join(name));
        equal::<B>([&packed_dir, &plain], &packed.to_string(), (device, brief));
    }
}

#[test]
fn cpu_packed() {
    packed_agree::<burn_flex::Flex>(&Default::default(), false);
}

#[test]
fn vulkan_packed() {
    packed_agree::<burn_wgpu::Vulkan>(&burn_wgpu::WgpuDevice::Cpu, true);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda_packed() {
    packed_agree::<burn_cuda::Cuda>(&Default::default(), false);
}
