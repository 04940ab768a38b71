//! Experts that the tokens of the fixtures choose, against the choices of transformers.

use crate::support::{CHUNKS, MIXED, cases, cut, folder, load, policy};
use butterfly::{AttentionBackend, Dtype};
use butterfly_models::{Logits, Profile, State};
use std::collections::BTreeMap;

/// The models that have experts.
const MODELS: [&str; 5] = [
    "qwen3_moe",
    "qwen3_5_moe",
    "qwen3_5_moe_fused_layout",
    "gpt_oss",
    "glm4_moe_lite",
];

/// For each layer with experts, those that each token chooses.
type Choices = BTreeMap<usize, Vec<Vec<i32>>>;

fn reference(model: &str) -> Choices {
    let path = folder(model).join("router.safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| {
        let path = path.display();
        panic!("{path}: {error}: make it with tests/fixtures/models/router.py")
    });
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let layers = file.iter().map(|(name, view)| {
        let layer = name.strip_prefix("layers.").expect("a layer");
        assert_eq!(view.dtype(), safetensors::Dtype::I32, "{model}: {name}");
        let words = view.data().as_chunks::<4>().0.iter();
        let ids: Vec<i32> = words.map(|b| i32::from_le_bytes(*b)).collect();
        let tokens = ids.chunks(view.shape()[1]).map(<[i32]>::to_vec);
        let layer = layer.parse::<usize>().expect("a number");
        (layer, tokens.collect::<Vec<_>>())
    });
    layers.collect()
}

/// How often each of `count` experts is among the choices of `tokens`.
fn counted(tokens: &[Vec<i32>], count: usize) -> Vec<u64> {
    let mut loads = vec![0; count];
    for id in tokens.iter().flatten() {
        loads[usize::try_from(*id).expect("an expert")] += 1;
    }
    loads
}

/// A profile counts how often experts are chosen: in a chunk of one token, that is its choice.
fn agree<B: AttentionBackend>(device: &B::Device, chunks: &[&[usize]]) {
    for name in MODELS {
        let model = load::<B>(name, Dtype::F32, device);
        let all = cases(name);
        let policy = policy(&model, &all[0]);
        let tokens = &all[0].tokens;
        let expected = reference(name);
        for sizes in chunks.iter().copied().chain([[tokens.len()].as_slice()]) {
            let mut state: State<B> = model.state(1, Some(tokens.len()), &policy);
            let mut first = 0;
            for part in cut(tokens, sizes) {
                // A new one for each chunk, since loads add up.
                state.profile = Profile::on();
                let logits = model.forward(part, &mut state, &policy, Logits::Last);
                logits.expect("runs");
                let loads = state.profile.loads();
                assert!(loads.keys().eq(expected.keys()), "{name}: {loads:?}");
                for (layer, loads) in loads {
                    assert_eq!(expected[&layer].len(), tokens.len(), "{name}");
                    let chosen = &expected[&layer][first..first + part.len()];
                    let wanted = counted(chosen, loads.len());
                    assert_eq!(
                        loads, wanted,
                        "{name}: layer {layer}, tokens from {first} by {sizes:?}"
                    );
                }
                first += part.len();
            }
        }
    }
}

#[test]
fn cpu_chooses_the_same_experts() {
    agree::<burn_flex::Flex>(&Default::default(), &CHUNKS);
}

#[test]
fn vulkan_chooses_the_same_experts() {
    agree::<burn_wgpu::Vulkan>(&burn_wgpu::WgpuDevice::Cpu, &MIXED);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda_chooses_the_same_experts() {
    agree::<burn_cuda::Cuda>(&Default::default(), &CHUNKS);
}
