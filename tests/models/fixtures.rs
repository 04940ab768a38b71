//! Logits of whole models against those that other software computed.

mod support;

use butterfly::{AttentionBackend, Dtype};
use support::{MODELS, cases, farthest, load, logits, policy};

/// Every model with every pattern, whole and in chunks.
fn agree<B: AttentionBackend>(device: &B::Device) {
    for (name, tolerance) in MODELS {
        let model = load::<B>(name, Dtype::F32, device);
        for case in cases(name) {
            let policy = policy(&model, &case);
            let whole = logits(&model, &policy, &case.tokens, case.tokens.len()).expect("runs");
            let off = farthest(&whole, &case.expected);
            println!("{}: {off:.1e}", case.name);
            assert!(off <= tolerance, "{}: {off} > {tolerance}", case.name);
            for chunk in [1, 7, 64] {
                let parts = logits(&model, &policy, &case.tokens, chunk).expect("runs");
                let off = farthest(&parts, &case.expected);
                assert!(off <= tolerance, "{} by {chunk}: {off}", case.name);
            }
            for (layer, policy) in policy.attention() {
                let counts = policy.counts.get();
                assert!(
                    !counts.is_empty(),
                    "{}: layer {layer} ran nothing",
                    case.name
                );
            }
        }
    }
}

#[test]
fn cpu() {
    agree::<burn_flex::Flex>(&Default::default());
}

#[test]
fn vulkan() {
    agree::<burn_wgpu::Vulkan>(&burn_wgpu::WgpuDevice::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda() {
    agree::<burn_cuda::Cuda>(&Default::default());
}
