//! Model and sparsity → the kernels that one set of artifacts holds.
//!
//! In:  a checked config and pattern. Out: one specification for each phase and element
//! type; no two alike. Length, batch, stage and offset are no part of it.

use crate::resolve;
use butterfly_ir::model::{AttentionShape, ModelConfig};
use butterfly_ir::{Dtype, KernelSpec, Phase, Rows, Sparsity, Target};

/// The kernels for a model's swapped layers.
pub fn lower(config: &ModelConfig, sparsity: &Sparsity, dtype: Dtype) -> Vec<KernelSpec> {
    [Phase::Prefill, Phase::Decode]
        .map(|phase| spec(&config.attention, sparsity, phase, dtype))
        .into()
}

/// The specification of one kernel.
pub fn spec(shape: &AttentionShape, sparsity: &Sparsity, phase: Phase, dtype: Dtype) -> KernelSpec {
    let shape = shape.kernel_shape(phase);
    KernelSpec {
        score: Default::default(),
        phase,
        head_dim: shape.head_dim,
        v_head_dim: shape.v_head_dim,
        group: shape.group,
        dtype,
        block: sparsity.block,
        rows: rows(sparsity),
    }
}

/// How kernels get the rows of a pattern: in closed form where there is one.
pub fn rows(sparsity: &Sparsity) -> Rows {
    resolve::closed_form(&sparsity.pattern).map_or(Rows::Table, Rows::ClosedForm)
}

/// The element types to make kernels in for `target` when `wanted` is asked for: itself,
/// or where the target's language lacks it those that can stand in for it.
pub fn dtypes(target: Target, wanted: Dtype) -> &'static [Dtype] {
    match (target, wanted) {
        (Target::Vulkan | Target::Webgpu, Dtype::Bf16) => &[Dtype::F16, Dtype::F32],
        (_, Dtype::F32) => &[Dtype::F32],
        (_, Dtype::F16) => &[Dtype::F16],
        (Target::Cuda(_) | Target::Metal | Target::Cpu, Dtype::Bf16) => &[Dtype::Bf16],
    }
}
