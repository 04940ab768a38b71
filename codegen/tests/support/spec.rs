//! A specification from which others are made.

use butterfly_ir::{Dtype, KernelSpec, Phase, Rows};

/// Blocks of 128, groups of 4, rows from a table.
pub(crate) fn spec(phase: Phase, dtype: Dtype, head_dim: u32) -> KernelSpec {
    KernelSpec {
        score: Default::default(),
        phase,
        head_dim,
        v_head_dim: head_dim,
        group: 4,
        dtype,
        block: 128,
        rows: Rows::Table,
    }
}
