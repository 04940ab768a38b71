//! What a launch needs where rows are long enough to be spread over the device.

use super::super::{Call, Ready};
use butterfly_ir::rows::Inputs;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use butterfly_ir::{Spread, geometry::Entry};

/// Bytes of the results of parts, between the two launches of a call with a grid of [`Needs::grid`](super::Needs); 0
/// for other calls.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(in super::super) fn partial_bytes(kernel: &Ready, grid: [u32; 3], entry: Entry) -> u64 {
    match entry {
        Entry::Spread(parts) => Spread::partial_bytes(kernel.spec(), grid, parts),
        Entry::First | Entry::Alone | Entry::Cluster => 0,
    }
}

/// The most keys that the last query sees in a kv head, if the kernel could be spread for this call; else
/// 0.
pub(super) fn keys(kernel: &Ready, call: &Call<'_>) -> u32 {
    let scalars = &call.scalars;
    let v_in_k = call.v_in_k && scalars.k_strides == scalars.v_strides;
    let Some((spread, rows)) = kernel.spread() else {
        return 0;
    };
    if scalars.kv_len < spread.from || (spread.v_in_k && !v_in_k) {
        return 0;
    }
    let last = scalars.q_offset + scalars.q_len - 1;
    let inputs = Inputs {
        block: last / kernel.spec().block,
        kv_head: 0,
        kv_len: scalars.kv_len,
        blocks: scalars.blocks,
        index: scalars.index,
        prompt: scalars.prompt,
    };
    rows.most_keys(last, scalars.kv_heads, &inputs)
}
