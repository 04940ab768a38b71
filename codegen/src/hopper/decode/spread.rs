//! Long rows: how the keys of a job are spread over the whole device, and the text for it.
//!
//! Workgroups that compute a part of a job's keys leave output, logit and sum in memory
//! (`partials.cuh`); a second launch merges them. Where keys hold their values, as in latent
//! attention, the parts are computed by wgmma on tiles that are read once (`latent.cuh`), else by
//! what computes short rows.

use super::blueprint::{ALIGNMENT, BOX_ROW, Sizes, THREADS, Tuning};
use crate::hopper::prefill::{instruction, transposed_instruction};
use butterfly_ir::{KernelSpec, Rows, Spread};

/// Keys of a tile of latents: the rows of a wgmma product.
pub(super) const LATENT_TILE: u32 = 64;

/// Tiles of latents in shared memory: one is computed while the next is copied.
pub(super) const LATENT_SLOTS: u32 = 2;

/// Keys of a query up to which a cluster that merges its results itself is faster than the whole device and a second
/// launch: four tiles for each workgroup.
const CLUSTER_KEYS: u32 = 4 * LATENT_TILE * Spread::CLUSTER;

/// Bytes of a job's keys and values from which on a second launch pays.
const LONG_BYTES: u32 = 2 << 20;

/// Whether the parts of long rows are computed from keys that hold their values.
pub(super) fn takes_latents(spec: &KernelSpec) -> bool {
    let [d, dv] = [spec.head_dim, spec.v_head_dim];
    spec.is_wide() && dv <= d && d.is_multiple_of(64) && dv.is_multiple_of(64)
}

/// How long rows are spread; `None` for tables, whose rows the host does not know.
///
/// `shared_bytes` is the shared memory of the kernel for short rows.
pub(super) fn of(
    spec: &KernelSpec,
    sizes: &Sizes,
    tuning: &Tuning,
    shared_bytes: u32,
) -> Option<Spread> {
    let closed = matches!(spec.rows, Rows::ClosedForm(_));
    let of_key = spec.dtype.bytes() * (spec.head_dim + spec.v_head_dim);
    let spread = match takes_latents(spec) {
        // The kernel for short rows reads latents twice, and is slower from a few tiles on.
        true => Spread {
            from: 4 * LATENT_TILE,
            part: 2 * LATENT_TILE,
            per_processor: 1,
            shared_bytes: latent_bytes(sizes),
            v_in_k: true,
            within: CLUSTER_KEYS,
        },
        false => Spread {
            from: LONG_BYTES / of_key,
            part: 256,
            per_processor: tuning.per_processor,
            shared_bytes,
            v_in_k: false,
            within: 0,
        },
    };
    closed.then_some(spread)
}

/// Bytes of shared memory: queries, tiles, weights, a float of each warp for each row (q head), and an
/// mbarrier for the queries and for each slot.
fn latent_bytes(sizes: &Sizes) -> u32 {
    let row = BOX_ROW * sizes.d_boxes;
    let tiles = LATENT_SLOTS * LATENT_TILE * row;
    let warps = THREADS / 32;
    let of_rows = sizes.rows * (row + BOX_ROW + 4 * warps);
    ALIGNMENT + tiles + of_rows + 8 * (1 + LATENT_SLOTS)
}

/// The products of `latent.cuh`: of keys by queries, and of values by weights.
pub(super) fn latent_products(spec: &KernelSpec, rows: u32) -> String {
    let scores = instruction("mma_latent_scores", spec.dtype, rows);
    let values = transposed_instruction("mma_latent_values", spec.dtype, rows);
    format!("{scores}\n{values}")
}
