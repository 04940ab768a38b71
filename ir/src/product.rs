//! A matrix product as a kernel: `c = a b^T`, rows by rows.

use crate::Dtype;
use serde::{Deserialize, Serialize};

/// How a kernel for `c = a b^T` is launched, a [M, K], b [N, K], c [M, N].
///
/// It takes tensor maps of a and b, rank 4, [1, 1, rows, K], in boxes of `k_tile` elements by
/// `m_tile` and `n_tile` rows, swizzled by 128 bytes, zero outside; then the buffers behind
/// them, M, N, K and the elements from one row of c to the next as i32, and c. Rows start at
/// multiples of 16 bytes. Workgroups stay for the launch: as many as the device runs at once,
/// no more than there are tiles.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Product {
    /// Name of the entry point.
    pub entry: String,
    /// Element type of a, b and c.
    pub dtype: Dtype,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// Rows of a in a tile.
    pub m_tile: u32,
    /// Rows of b in a tile.
    pub n_tile: u32,
    /// Elements of K in a tile.
    pub k_tile: u32,
}

impl Product {
    /// The first line of the text of a kernel that is launched so.
    pub fn heading(&self) -> String {
        crate::kernel::geometry::heading(self)
    }
}
