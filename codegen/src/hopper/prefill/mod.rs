//! Prefill for Hopper (sm_90a): CUDA C++ text from a `KernelSpec`.
//!
//! In:  a spec. Out: text and the numbers of its launch, or the reason why this generator does
//! not make it.
//!
//! # How the kernel works
//!
//! A *unit* is 64 rows of scores: 64 queries of one q head, or fewer queries of several heads
//! of a group where blocks are shorter. An *item* is a row of blocks, a kv head, and one unit
//! for each consumer; the grid stays for the whole launch and takes items in a fixed order.
//! One warp, the *producer*, evaluates the row's bands, finds the tiles of keys that any of
//! the item's queries sees, and copies Q, K and V by the copy engine into shared memory, far
//! ahead of the consumers and across items. Each *consumer* is a warpgroup with its unit's
//! output in registers; the consumers of an item read the same tiles. Tiles that all queries
//! see in full run without mask code; for the others 32 bits a row say which keys are seen.
//! Two consumers give their products to the matrix units in turns. What they leave is copied to
//! memory by warps beside the producer, from the place of the queries that it came from.
//!
//! Where an output is too wide for a warpgroup's registers, two consumers share a unit: each
//! multiplies half of the columns of Q and K, they add up the scores in shared memory, and each
//! multiplies its half of the columns of V.
//!
//! The fragments (`*.cuh`) are CUDA C++ over constants that [`text`] puts before them;
//! `matrix.rs` writes what has another shape for each spec.
//!
//! # What a launch needs
//!
//! Beyond what the portable kernels need:
//!
//! - **Arguments**, in order: tensor maps of q, k, v and o, by value; pointers to q, k and v,
//!   which are not read (CubeCL passes the buffers behind tensor maps too), and to o; for tables
//!   offsets and bands; logits of sinks, if there are any; lse; the scalars, by value
//!   (`LaunchScalars::by_value`). This is the order in which CubeCL 0.10 binds `tensor_maps`, then
//!   their buffers, then `buffers`, then `info`.
//! - **Tensor maps**: tiled, rank 4, shape [B, H, length, D] with the strides of the buffer,
//!   16-bit type of the spec, element strides 1, no interleave, swizzle of 128 bytes, L2
//!   promotion of 128 bytes, zeros outside. Boxes, in the same order of dimensions:
//!   q [1, [`Plan::unit_heads`], [`Plan::unit_tokens`], 64], k and v [1, 1, [`Plan::k_box`], 64],
//!   o [1, 1, [`Plan::unit_tokens`], 64].
//!   The base must lie at a multiple of 16 bytes, and so must all strides but the last; o is
//!   stored in pieces of 16 bytes, so this holds for it too. Otherwise: the portable kernel.
//! - **Grid**: [x, 1, 1] with x the smaller of the number of multiprocessors and of
//!   `cluster * items` (see `schedule.cuh`), rounded down to a multiple of the cluster but no
//!   less than one cluster. The cluster itself is an attribute of the text. Any multiple of
//!   the cluster gives the same result.
//! - **Shared memory**: `shared_bytes` of dynamic shared memory, above 48 KiB, so the limit of
//!   the function has to be raised (CubeCL does).
//! - The scale must be positive.

mod matrix;
mod plan;

pub(super) use matrix::instruction;
pub(crate) use plan::Plan;

use super::source;
use butterfly_ir::KernelSpec;

/// The text of the kernel of `spec` by its plan.
pub(super) fn text(spec: &KernelSpec, plan: &Plan) -> String {
    let entry = match plan.tuning.cluster {
        1 => include_str!("entry.cuh").replace("@cluster", ""),
        n => {
            include_str!("entry.cuh").replace("@cluster", &format!("__cluster_dims__({n}, 1, 1) "))
        }
    };
    // With a softcap, scores are logits before they are masked.
    let (scale, cap) = match spec.score.softcap {
        false => ("launch.scale * 1.44269504f", ""),
        true => (
            "1.44269504f",
            "#pragma unroll\n    for (int i = 0; i < K_TILE / 2; ++i) s[i] = capped(s[i], launch.softcap, cap_factor);\n",
        ),
    };
    let cap_factor = match spec.score.softcap {
        false => "",
        true => "  const float cap_factor = 2.0f * 1.44269504f * launch.scale / launch.softcap;\n",
    };
    let products = match plan.tuning.shares_unit {
        true => include_str!("shared_products.cuh"),
        false => include_str!("products.cuh"),
    };
    let consumer = include_str!("consumer.cuh")
        .replace("@products\n", products)
        .replace("@scale", scale)
        .replace("@cap_factor\n", cap_factor)
        .replace("@cap\n", cap);
    let parts = [
        constants(spec, plan),
        source::ARITHMETIC.to_string(),
        source::COPIES.to_string(),
        source::INSTRUCTIONS.to_string(),
        matrix::text(spec.dtype, plan.tuning.k_tile, plan.o_columns),
        source::launch(spec),
        super::rows::text(&spec.rows, spec.block),
        include_str!("bands.cuh").to_string(),
        include_str!("schedule.cuh").to_string(),
        include_str!("shared.cuh").to_string(),
        include_str!("producer.cuh").to_string(),
        include_str!("softmax.cuh").to_string(),
        source::STORES.to_string(),
        source::with_sink(spec, include_str!("epilogue.cuh")),
        match plan.staged {
            true => include_str!("store_copies.cuh").to_string(),
            false => include_str!("store_registers.cuh").to_string(),
        },
        consumer,
        source::entry(spec, &plan.geometry(), &entry),
    ];
    parts.join("\n")
}

fn constants(spec: &KernelSpec, plan: &Plan) -> String {
    let mut text = source::Constants::of("prefill", spec);
    let mut constant = |name, value| text.add(name, value);
    let tuning = plan.tuning;
    constant("BANDS", plan.bands);
    constant("THREADS", plan.threads());
    constant("CLUSTER", tuning.cluster);
    constant("CONSUMERS", tuning.consumers);
    constant("UNITS", tuning.units());
    constant("PRODUCER_REGISTERS", plan.producer_registers);
    constant("CONSUMER_REGISTERS", plan.consumer_registers);
    constant("UNIT_TOKENS", plan.unit_tokens);
    constant("UNIT_HEADS", plan.unit_heads);
    constant("HEAD_UNITS", plan.head_units);
    constant("UNITS_PER_ROW", plan.units_per_row);
    constant(
        "ITEMS_PER_ROW",
        plan.units_per_row.div_ceil(tuning.cluster * tuning.units()),
    );
    constant("K_TILE", tuning.k_tile);
    constant("K_PART", tuning.k_tile / tuning.cluster);
    constant("D_STEPS", spec.head_dim.div_ceil(16));
    constant("O_COLUMNS", plan.o_columns);
    constant("D_CHUNKS", plan.d_chunks);
    constant("V_CHUNKS", plan.v_chunks);
    constant("SLOTS", plan.slots);
    constant("Q_SLOTS", tuning.q_slots);
    constant("STAGED", plan.staged.into());
    constant("Q_BYTES", plan::UNIT_ROWS * plan.d_chunks * 128);
    constant(
        "SLOT_BYTES",
        tuning.k_tile * plan.d_chunks.max(plan.v_chunks) * 128,
    );
    constant("RING_AT", plan.ring_at);
    constant("BARRIERS_AT", plan.barriers_at);
    constant("TILES_AT", plan.tiles_at);
    constant("ITEMS_AT", plan.items_at);
    constant("BANDS_AT", plan.bands_at);
    text.finish("// What a thread's weights of a row of a tile may sum up to, and each be, in any type.\nconstexpr float MOST = 32768.0f;\n")
}

#[cfg(test)]
mod tests;
