//! A kernel for the matrix product `c = a b^T`, all matrices row-major.

use crate::Dtype;
use serde::{Deserialize, Serialize};

/// How a kernel for `c = a b^T` is launched, with a `[M, K]`, b `[N, K]` and c `[M, N]`.
///
/// Its arguments are tensor maps of a and b, the buffers behind them, c, and by value, as i32,
/// M, N, K and the distance between rows of c in elements. The tensor maps have rank 4 and shape
/// `[1, 1, rows, K]`; a box has `k_tile` elements of `m_tile` rows of a or of `n_tile` rows of b.
/// They swizzle by 128 bytes and fill with zero outside. Rows must start at multiples of 16 bytes.
/// The kernel is persistent: a launch has as many workgroups as the device runs at once, but no
/// more than there are tiles of c.
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
    /// Rows of a, hence of c, in a tile.
    pub m_tile: u32,
    /// Rows of b, hence columns of c, in a tile.
    pub n_tile: u32,
    /// Columns of a and b in a tile.
    pub k_tile: u32,
}

impl Product {
    /// The first line of the kernel's text: a comment that records how it is launched.
    pub fn heading(&self) -> String {
        crate::kernel::geometry::heading(self)
    }
}
