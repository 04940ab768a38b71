//! Matrix product of rows by rows: `c = a b^T`, a [M, K], b [N, K], c [M, N], all with their rows
//! contiguous: what a linear layer computes with its weight as stored.
//!
//! A producer warp keeps a ring of tiles full by tensor maps; two consumers hold 64 x 256 of the
//! output each in registers, and multiply the same tile of b (wgmma m64n256k16). Workgroups stay
//! for the launch and take tiles in an order that keeps what they share in L2; copies of the
//! next tile run while a tile is stored. The scheme is that of CUTLASS's persistent cooperative
//! kernel (warp specialisation, sm_90).
//!
//! Launch: tensor maps of a and b (rank 4, [1, 1, rows, K], boxes of 64 elements by 128 and 256
//! rows, swizzled by 128 bytes), the buffers behind them, parameters M, N, K and elements from
//! one row of c to the next, then c. Rows start at multiples of 16 bytes.

use super::prefill::instruction;
use super::source;
use butterfly_ir::{Dtype, Product};

/// Rows of a and columns of c in a tile.
const M_TILE: u32 = 128;
/// Rows of b in a tile.
const N_TILE: u32 = 256;
/// Elements of K in a tile: 128 bytes.
const K_TILE: u32 = 64;
/// Tiles of a and b in flight.
const SLOTS: u32 = 4;
/// Bytes of one of them.
const SLOT_BYTES: u32 = (M_TILE + N_TILE) * K_TILE * 2;
/// Bytes that alignment takes at most, and those of the barriers.
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
        include_str!("product.cuh").to_string(),
    ];
    parts.join("\n")
}
