//! Compares the emitted WGSL with a plain f64 reference, on any Vulkan device (Mesa's software
//! device is enough).

#[path = "support/mod.rs"]
mod support;
#[path = "support/vulkan.rs"]
mod vulkan;

use butterfly_ir::{Dtype, Target};
use support::{Case, cases, check};

/// Checks a table of cases on the device, in this dtype.
fn run(table: fn(&dyn Fn(Case)), target: Target, dtype: Dtype) {
    let gpu = vulkan::device();
    table(&|mut case| {
        case.target = target;
        case.spec.dtype = dtype;
        check(&case, &|kernel, launch| gpu.launch(kernel, launch));
    });
}

#[test]
fn head_sizes() {
    run(cases::head_sizes, Target::Vulkan, Dtype::F32);
}

#[test]
fn lengths_and_blocks() {
    run(cases::lengths_and_blocks, Target::Vulkan, Dtype::F32);
}

#[test]
fn groups_batches_and_offsets() {
    run(
        cases::groups_batches_and_offsets,
        Target::Vulkan,
        Dtype::F32,
    );
}

#[test]
fn every_rule_at_every_stage() {
    run(cases::every_rule_at_every_stage, Target::Vulkan, Dtype::F32);
}

#[test]
fn windows_and_other_leaves() {
    run(cases::windows_and_other_leaves, Target::Vulkan, Dtype::F32);
}

#[test]
fn bands_of_some_heads() {
    run(cases::bands_of_some_heads, Target::Vulkan, Dtype::F32);
}

#[test]
fn tables_by_head() {
    run(cases::tables_by_head, Target::Vulkan, Dtype::F32);
}

#[test]
fn tails() {
    run(cases::tails, Target::Vulkan, Dtype::F32);
}

#[test]
fn dense_beside_sparse() {
    run(cases::dense_beside_sparse, Target::Vulkan, Dtype::F32);
}

#[test]
fn tables() {
    run(cases::tables, Target::Vulkan, Dtype::F32);
}

#[test]
fn softcaps_and_sinks() {
    run(cases::softcaps_and_sinks, Target::Vulkan, Dtype::F32);
}

#[test]
fn sharp_logits() {
    run(cases::sharp_logits, Target::Vulkan, Dtype::F32);
}

#[test]
fn half_precision() {
    run(cases::large_heads, Target::Vulkan, Dtype::F16);
}

#[test]
fn webgpu() {
    run(cases::large_heads, Target::Webgpu, Dtype::F16);
    run(cases::large_heads, Target::Webgpu, Dtype::F32);
}
