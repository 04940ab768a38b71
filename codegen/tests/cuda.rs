//! The emitted cubins against a plain f64 reference, on an NVIDIA GPU. Without one, or
//! without NVRTC, the tests say so and pass.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/mod.rs"]
mod support;

use butterfly_ir::Dtype;
use support::{Case, cases, check};

/// A check on the device in every dtype.
fn run(table: fn(&dyn Fn(Case))) {
    let Some(gpu) = cuda::device() else { return };
    table(&|case| {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            // Rows that begin at multiples of 16 bytes, and rows that do not.
            for pad in [8, 3] {
                let mut case = case.clone();
                (case.target, case.spec.dtype, case.pad) = (gpu.target, dtype, pad);
                check(&case, &|kernel, launch| gpu.launch(kernel, launch));
            }
        }
    });
}

#[test]
fn head_sizes() {
    run(cases::head_sizes);
}

#[test]
fn lengths_and_blocks() {
    run(cases::lengths_and_blocks);
}

#[test]
fn groups_batches_and_offsets() {
    run(cases::groups_batches_and_offsets);
}

#[test]
fn every_rule_at_every_stage() {
    run(cases::every_rule_at_every_stage);
}

#[test]
fn windows_and_other_leaves() {
    run(cases::windows_and_other_leaves);
}

#[test]
fn tables() {
    run(cases::tables);
}

#[test]
fn large_heads() {
    run(cases::large_heads);
}
