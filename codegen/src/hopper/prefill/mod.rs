//! Prefill for Hopper (sm_90a): CUDA C++ text from a `KernelSpec`.
//!
//! In:  a spec. Out: the text of a kernel and its launch geometry, or the reason why this generator
//! does not take the spec.
//!
//! # How the kernel works
//!
//! A *unit* is 64 rows of scores: 64 queries of one q head or, where blocks are shorter, fewer
//! queries of several heads of a GQA group. An *item* is a block row, a kv head, and as many units
//! as a cluster computes at a time, one for each consumer. The kernel is persistent: its thread
//! blocks take items in a fixed order.
//!
//! One warp, the *producer*, evaluates the row's bands, finds the tiles of keys that any query of
//! the item sees, and copies Q, K and V by TMA into shared memory, far ahead of the consumers and
//! across items. Each *consumer* is a warpgroup with its unit's output in registers; all consumers
//! of an item read the same tiles. Tiles that all queries see completely take no mask code; for the
//! others, each thread computes a bit mask of the keys that each of its rows sees. Consumers take
//! turns at the matrix units, so that the softmax of one runs during the products of another. Where
//! shared memory has room, a consumer writes its output over the queries that it came from, and
//! warps next to the producer store it from there by TMA.
//!
//! Where an output is too wide for the registers of one warpgroup, two consumers share a unit: each
//! multiplies half of the columns of Q and K, they add their scores through shared memory, and each
//! multiplies its half of the columns of V.
//!
//! The fragments (`*.cuh`) are CUDA C++ that refers to constants, which [`text`] writes before
//! them; `matrix.rs` writes the instructions whose operands depend on the spec.
//!
//! # Preconditions of a launch
//!
//! In addition to those of the portable kernels:
//!
//! - **Arguments**, in order: tensor maps of q, k, v and o, by value; pointers to q, k and v,
//!   which are not read (CubeCL passes the buffers behind tensor maps too), and to o; for tables,
//!   offsets and bands; sink logits, if there are any; lse; the scalars, by value
//!   (`LaunchScalars::by_value`). This is the order in which CubeCL 0.10 binds `tensor_maps`, then
//!   their buffers, then `buffers`, then `info`.
//! - **Tensor maps**: tiled, rank 4, shape [B, H, length, D] with the strides of the buffer,
//!   16-bit type of the spec, element strides 1, no interleave, swizzle of 128 bytes, L2
//!   promotion of 128 bytes, zeros outside. Boxes, in the same order of dimensions:
//!   q [1, [`Plan::unit_heads`], [`Plan::unit_tokens`], 64], k and v [1, 1, [`Plan::k_box`], 64],
//!   o [1, 1, [`Plan::unit_tokens`], 64].
//!   The base and all strides but the last must be multiples of 16 bytes. This holds for o as
//!   well, which is stored in pieces of 16 bytes. Tensors that do not comply need the portable
//!   kernel.
//! - **Grid**: [x, 1, 1]. Any multiple of the cluster size gives the same result. Best is the
//!   smaller of the number of SMs and of `cluster * items` (see `schedule.cuh`), rounded down to a
//!   multiple of the cluster size, but at least one cluster. The cluster size itself is an
//!   attribute in the text.
//! - **Shared memory**: `shared_bytes` of dynamic shared memory. This exceeds 48 KiB, so the
//!   function's limit has to be raised (CubeCL does so).
//! - **Scale**: must be positive.

mod matrix;
mod plan;

pub(super) use matrix::instruction;
pub(crate) use plan::Plan;

use super::source;
use butterfly_ir::KernelSpec;

/// The text of the kernel of `spec`, with the numbers in `plan`.
pub(super) fn text(spec: &KernelSpec, plan: &Plan) -> String {
    let entry = match plan.tuning.cluster {
        1 => include_str!("entry.cuh").replace("@cluster", ""),
        n => {
            include_str!("entry.cuh").replace("@cluster", &format!("__cluster_dims__({n}, 1, 1) "))
        }
    };
    // With a softcap, scores become logits before they are masked, so only the base of the
    // logarithm is left for the factor.
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
