//! Artifacts as a build script makes them, for models with windows in some layers, experts, or latent attention.

use crate::support::{cases, farthest, folder, load, logits};
use butterfly::{AttentionBackend, Dtype, Plan};
use butterfly_build::Build;
use butterfly_models::Policy;
use std::path::Path;

/// The models, one pattern of each, which replaces some layers, and the tolerance of its logits.
const MODELS: [(&str, &str, f32); 3] = [
    ("gemma3", "sparse_cshift_bs8_layers2_5", 5e-4),
    ("gpt_oss", "sparse_cshift_bs8_layers1_3", 1e-3),
    ("glm4_moe_lite", "sparse_benes_bs16_layers1_2_3", 1e-3),
];

/// Compiles in the default element types, and opens the folder, which checks every byte.
fn built(name: &str, pattern: &str, targets: &[&str], dir: &Path) -> Plan {
    let file = folder(name).join(pattern).with_extension("json");
    let build = Build::new(folder(name).join("config.json"))
        .pattern(file.to_str().expect("utf-8"))
        .targets(targets.join(","));
    let made = build.artifacts(dir).expect(name);
    let plan = Plan::open(dir).expect(name);
    let opened = &plan.artifacts().expect("artifacts").manifest;
    assert_eq!(opened.kernels.len(), made.kernels.len(), "{name}");
    assert_eq!((&opened.layers, opened.capacity), (&made.layers, 512));
    // That of the layers which keep their attention.
    assert_eq!(opened.kept.len(), 1, "{name}");
    for target in targets {
        let mut kernels = opened.kernels.iter();
        let has = kernels.any(|kernel| kernel.target.to_string() == *target);
        assert!(has, "{name}: no kernels for {target}");
    }
    plan
}

/// The prompt but for its last token, and that alone, by these kernels.
fn runs<B: AttentionBackend>(device: &B::Device, targets: &[&str]) {
    for (name, pattern, tolerance) in MODELS {
        let root = tempfile::tempdir().expect("a folder");
        let plan = built(name, pattern, targets, &root.path().join("artifacts"));
        let model = load::<B>(name, Dtype::F32, device);
        let policy = Policy::new(&model.config, &plan, plan.sparsity()).expect("a policy");
        let all = cases(name);
        let case = all.iter().find(|case| case.name.ends_with(pattern));
        let case = case.expect("a case");
        let chunk = case.tokens.len() - 1;
        let got = logits(&model, &policy, &case.tokens, &[chunk]).expect("runs");
        let off = farthest(&got, &case.expected);
        assert!(off <= tolerance, "{name}: {off} > {tolerance}");
        for (layer, policy) in policy.attention() {
            let counts = policy.counts.get();
            assert!(!counts.is_empty(), "{name}: layer {layer} ran nothing");
        }
    }
}

#[test]
fn cpu_runs_what_a_build_script_makes() {
    let targets = ["cuda:sm_80", "cuda:sm_90a", "vulkan", "webgpu", "cpu"];
    runs::<burn_flex::Flex>(&Default::default(), &targets);
}

#[test]
fn vulkan_runs_what_a_build_script_makes() {
    runs::<burn_wgpu::Vulkan>(&burn_wgpu::WgpuDevice::Cpu, &["vulkan"]);
}
