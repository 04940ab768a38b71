//! Specs that are refused, and properties of the emitted texts and binaries.

#[path = "support/spec.rs"]
mod spec;

use butterfly_codegen::{EmitError, emit};
use butterfly_ir::{Dtype, Role, Sm, Target};
use spec::spec;

fn cuda(version: u32, arch_specific: bool) -> Target {
    Target::Cuda(Sm {
        version,
        arch_specific,
    })
}

#[test]
fn what_a_target_lacks_is_refused_with_advice() {
    let bf16 = spec(Role::Prefill, Dtype::Bf16, 64);
    for target in [Target::Vulkan, Target::Webgpu] {
        let error = emit(&bf16, target).expect_err("no bf16");
        assert!(matches!(error, EmitError::Unsupported { .. }));
        assert!(error.to_string().contains("use f16 or f32"), "{error}");
    }
    let error = emit(&bf16, Target::Cpu).expect_err("not emitted");
    assert!(matches!(error, EmitError::NotHere(Target::Cpu)));
}

#[test]
fn limits_carry_what_was_given() {
    for head_dim in [0, 12, 584] {
        let error = emit(&spec(Role::Decode, Dtype::F32, head_dim), Target::Metal);
        let error = error.expect_err("a limit").to_string();
        assert!(error.contains(&head_dim.to_string()), "{error}");
    }
}

#[test]
fn shared_memory_fits_every_target() {
    for (target, limit) in [
        (cuda(80, false), 48 << 10),
        (Target::Vulkan, 32 << 10),
        (Target::Metal, 32 << 10),
        (Target::Webgpu, 16 << 10),
    ] {
        for role in [Role::Prefill, Role::Decode] {
            for head_dim in (8..=576).step_by(8) {
                for (group, block) in [(1, 128), (5, 16), (64, 64)] {
                    let mut spec = spec(role, Dtype::F32, head_dim);
                    (spec.group, spec.block) = (group, block);
                    let geometry = butterfly_codegen::choose(&spec, target)
                        .expect("a choice")
                        .geometry;
                    let threads: u32 = geometry.threads.iter().product();
                    assert!(geometry.shared_bytes <= limit, "{spec:?}: {geometry:?}");
                    assert!((32..=512).contains(&threads), "{spec:?}: {geometry:?}");
                }
            }
        }
    }
}

#[test]
fn no_text_has_a_buffer_of_lengths() {
    for target in [cuda(90, true), Target::Webgpu, Target::Metal] {
        let kernel = emit(&spec(Role::Prefill, Dtype::F32, 64), target).expect("emits");
        let text = String::from_utf8_lossy(&kernel.files[0].1);
        assert!(!text.contains("info"), "{target}: {text}");
    }
}
