//! A specification from which others are made.

use butterfly_ir::{Dtype, KernelSpec, Role, Rows};

/// Blocks of 128, groups of 4, rows from a table.
pub(crate) fn spec(role: Role, dtype: Dtype, head_dim: u32) -> KernelSpec {
    KernelSpec {
        score: Default::default(),
        role,
        head_dim,
        v_head_dim: head_dim,
        group: 4,
        dtype,
        block: 128,
        rows: Rows::Table,
    }
}
