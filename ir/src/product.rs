//! A kernel for the matrix product `c = a b^T`, all matrices row-major, for gated ones, and for ones in f32.

use crate::Dtype;
use serde::{Deserialize, Serialize};

/// How a kernel for `c = a b^T` is launched, with a `[M, K]`, b `[N, K]` and c `[M, N]`. With a
/// gate b is `[2 N, K]`, and `c = silu(a b_0^T) * (a b_1^T)` of its halves `b_0` and `b_1`.
///
/// Its arguments are tensor maps of a and b, the buffers behind them, c, and by value, as i32,
/// M, N, K, the distance between rows of c in elements, what is written to c (0 for products in the
/// type of a, 1 for gated ones, 2 for products as f32), the count of such products in a launch, the
/// distance between their c in elements, and a 0. The tensor maps have rank 4 and shape
/// `[1, count, rows, K]`; a box has `k_tile` elements of `m_tile` rows of a or of half as many rows of
/// b as a tile has, so that these may be those of a gate. They swizzle by 128 bytes and fill with
/// zero outside. Rows must start at multiples of 16 bytes. The kernel is persistent: a launch has as
/// many workgroups as the device runs at once, but no more than there are tiles.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Product {
    /// Name of the entry point.
    pub entry: String,
    /// Element type of a, b, and c unless it is f32.
    pub dtype: Dtype,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// Rows of a, hence of c, in a tile.
    pub m_tile: u32,
    /// Rows of b in a tile, hence columns of c; with a gate, half as many.
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
