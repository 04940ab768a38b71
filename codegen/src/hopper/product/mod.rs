//! The matrix product `c = a b^T` of a linear layer: `a` is [M, K], `b` is [N, K] (the layer's
//! weight as stored) and `c` is [M, N]; the rows of all three are contiguous. With a gate `b` is
//! [2 N, K], gates before what they gate, and `c = silu(a b_0^T) * (a b_1^T)` of the two halves. For routers, c
//! can be f32.
//!
//! A producer warp fills a ring of tiles by TMA. Two consumer warpgroups each hold 64 x 256 of the
//! output in registers, and multiply the same tile of b (wgmma m64n256k16). The kernel is
//! persistent: workgroups take output tiles in an order that keeps shared operands in L2, and
//! copies for the next tile run while a tile is stored. This is the scheme of CUTLASS's persistent
//! cooperative kernel with warp specialisation for sm_90.
//!
//! Arguments of a launch, in order: tensor maps of a and b (rank 4, shape [1, count, rows, K], boxes
//! of 64 elements by 128 rows, 128-byte swizzle), the buffers behind them, c, and by value M, N, K,
//! the number of elements from one row of c to the next, what is written to c, the count of such
//! products (as many heads have), and the number of elements from one c to the next. Rows start at
//! multiples of 16 bytes.

use super::prefill::instruction;
use super::source;
use butterfly_ir::{Dtype, Product};

/// Rows of a and columns of c in a tile.
const M_TILE: u32 = 128;
/// Rows of b in a tile.
const N_TILE: u32 = 256;
/// Elements of K in a tile: 128 bytes.
const K_TILE: u32 = 64;
/// Slots of the ring, each for a tile of a and one of b.
const SLOTS: u32 = 4;
/// Bytes of a slot.
const SLOT_BYTES: u32 = (M_TILE + N_TILE) * K_TILE * 2;
/// Bytes for alignment, at most, and for the barriers.
const REST: u32 = 1024 + 2 * SLOTS * 8;

/// Name of the entry point.
const ENTRY: &str = "butterfly_product";

/// How the kernel is launched.
pub(crate) fn product(dtype: Dtype) -> Product {
    Product {
        entry: ENTRY.into(),
        dtype,
        threads: 384,
        shared_bytes: SLOTS * SLOT_BYTES + REST,
        m_tile: M_TILE,
        n_tile: N_TILE,
        k_tile: K_TILE,
    }
}

/// The text of the kernel.
pub(crate) fn text(dtype: Dtype) -> String {
    let mut constants = source::Constants::new("Matrix product, sm_90a.", dtype);
    for (name, value) in [
        ("CLUSTER", 1),
        ("M_TILE", M_TILE),
        ("N_TILE", N_TILE),
        ("K_TILE", K_TILE),
        ("SLOTS", SLOTS),
        ("SLOT_BYTES", SLOT_BYTES),
        ("TILES_IN_A_BAND", 16),
    ] {
        constants.add(name, value);
    }
    let parts = [
        constants.finish(""),
        source::ARITHMETIC.to_string(),
        source::COPIES.to_string(),
        source::INSTRUCTIONS.to_string(),
        instruction("mma_rows", dtype, N_TILE),
        source::STORES.to_string(),
        source::SILU.to_string(),
        source::GATED.to_string(),
        source::RING.to_string(),
        include_str!("product.cuh").to_string(),
    ];
    parts.join("\n")
}
