//! Models whose weights are packed against twins that hold the same weights unpacked, in f32.

use crate::folders::{
    Shape, Stored, Tensors, bytes, folder_twins, gguf_twins, gpt_oss_twins, read, save,
};
use crate::formats::{BLOCKS, GROUPS};
use crate::support::{MODELS, cases, farthest, folder, logits, policy};
use butterfly::ops::{Activations, Packed};
use butterfly::{AttentionBackend, Dtype, Plan, Sparsity};
use butterfly_models::{Checkpoint, Model, Policy};
use butterfly_tests::gguf::twin;
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
                let got = logits(&model, &policy, &case.tokens, &[chunk]).expect("runs");
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
        let want = logits(&plain, policy, &tokens, &[40]).expect("runs");
        let mean = want.iter().sum::<f32>() / want.len() as f32;
        let squares = want.iter().map(|x| (x - mean).powi(2)).sum::<f32>();
        let deviation = (squares / want.len() as f32).sqrt();
        assert!(deviation > 1e-3, "{name}: logits say nothing");
        for &chunk in chunks {
            let got = logits(&packed, policy, &tokens, &[chunk]).expect("runs");
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
    let got = logits(&model, &policy, &case.tokens, &[case.tokens.len()]).expect("runs");
    let off = farthest(&got, &case.expected);
    assert!(off <= 1e-3, "{off}");
}

fn packed_agree<B: AttentionBackend>(device: &B::Device, brief: bool) {
    for (packed, kind, _) in BLOCKS {
        agree_in_blocks::<B>(packed, kind, Shape::Llama, (device, brief));
    }
    for packed in GROUPS {
        agree_in_groups::<B>(packed, Shape::Llama, (device, brief));
    }
}

fn agree_in_blocks<B: AttentionBackend>(
    packed: Packed,
    kind: u32,
    shape: Shape,
    how: (&B::Device, bool),
) {
    let dir = tempfile::tempdir().expect("a folder");
    gguf_twins(dir.path(), packed, kind, shape);
    let [packed_file, plain] = ["packed.gguf", "plain.gguf"].map(|name| dir.path().join(name));
    equal::<B>([&packed_file, &plain], &format!("{packed} {shape:?}"), how);
}

fn agree_in_groups<B: AttentionBackend>(packed: Packed, shape: Shape, how: (&B::Device, bool)) {
    let dir = tempfile::tempdir().expect("a folder");
    folder_twins(dir.path(), packed, shape);
    let [packed_dir, plain] = ["packed", "plain"].map(|name| dir.path().join(name));
    equal::<B>([&packed_dir, &plain], &format!("{packed} {shape:?}"), how);
}

/// Every format, unless `brief`; of experts in GGUF files, folders of MLX, of FP8, and of gpt-oss.
fn experts_agree<B: AttentionBackend>(device: &B::Device, brief: bool) {
    let some = if brief { 3 } else { usize::MAX };
    for (packed, kind, _) in BLOCKS.into_iter().rev().take(some) {
        agree_in_blocks::<B>(packed, kind, Shape::Experts, (device, brief));
    }
    for packed in GROUPS.into_iter().rev().take(some) {
        agree_in_groups::<B>(packed, Shape::Experts, (device, brief));
    }
    let dir = tempfile::tempdir().expect("a folder");
    gpt_oss_twins(dir.path());
    let [packed, plain] = ["packed", "plain"].map(|name| dir.path().join(name));
    equal::<B>([&packed, &plain], "gpt-oss", (device, brief));
}

/// Many rows of a model in FP8 become FP8 too, where that is wanted: logits change, but little. Tokens one by one are few
/// rows, which stay what they are.
fn rows_in_fp8<B: AttentionBackend>(shape: Shape, device: &B::Device) {
    let dir = tempfile::tempdir().expect("a folder");
    folder_twins(dir.path(), Packed::float8(Dtype::Bf16), shape);
    let open = |activations| {
        let checkpoint = Checkpoint::open(&dir.path().join("packed")).expect("a model");
        assert!(checkpoint.has_float8());
        let checkpoint = checkpoint.with_activations(activations);
        let (model, _) = Model::<B>::load(&checkpoint, Dtype::F32, device).expect("weights");
        model
    };
    let [kept, quantised] = [Activations::Kept, Activations::Float8].map(open);
    let policy = Policy::dense(&kept.config, &Plan::dense()).expect("a policy");
    let tokens: Vec<u32> = (0..80).map(|i| i * i * 7 % 257).collect();
    // What layers add is small beside the embedding.
    for (chunk, least, most) in [(80, 2e-5, 0.1), (1, 0.0, 0.0)] {
        let [kept, quantised] = [&kept, &quantised]
            .map(|model| logits(model, &policy, &tokens, &[chunk]).expect("runs"));
        let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let off = length(&mut kept.iter().zip(&quantised).map(|(a, b)| a - b));
        let off = off / length(&mut kept.iter().copied());
        assert!((least..=most).contains(&off), "by {chunk}: {off}");
    }
}

#[test]
fn cpu_rows_in_fp8() {
    rows_in_fp8::<burn_flex::Flex>(Shape::Llama, &Default::default());
    rows_in_fp8::<burn_flex::Flex>(Shape::Experts, &Default::default());
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda_rows_in_fp8() {
    rows_in_fp8::<burn_cuda::Cuda>(Shape::Llama, &Default::default());
    rows_in_fp8::<burn_cuda::Cuda>(Shape::Experts, &Default::default());
}

#[test]
fn cpu_packed_experts() {
    experts_agree::<burn_flex::Flex>(&Default::default(), false);
}

#[test]
fn vulkan_packed_experts() {
    experts_agree::<burn_wgpu::Vulkan>(&burn_wgpu::WgpuDevice::Cpu, true);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda_packed_experts() {
    experts_agree::<burn_cuda::Cuda>(&Default::default(), false);
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

/// Every format, unless `brief`. Of the weight that makes keys and values, whole or in matrices of each head, which is
/// unpacked when it is loaded, and of everything else, which stays packed.
fn latents_agree<B: AttentionBackend>(device: &B::Device, brief: bool) {
    let some = if brief { 2 } else { usize::MAX };
    for (packed, kind, _) in BLOCKS.into_iter().rev().take(some) {
        agree_in_blocks::<B>(packed, kind, Shape::Latent, (device, brief));
    }
    for packed in GROUPS.into_iter().rev().take(some) {
        agree_in_groups::<B>(packed, Shape::Latent, (device, brief));
    }
}

#[test]
fn cpu_packed_latents() {
    latents_agree::<burn_flex::Flex>(&Default::default(), false);
}

#[test]
fn vulkan_packed_latents() {
    latents_agree::<burn_wgpu::Vulkan>(&burn_wgpu::WgpuDevice::Cpu, true);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda_packed_latents() {
    latents_agree::<burn_cuda::Cuda>(&Default::default(), false);
}
