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
//!   q [1, [`Blueprint::unit_heads`], [`Blueprint::unit_tokens`], 64], k and v [1, 1, [`Blueprint::k_box`], 64],
//!   o [1, 1, [`Blueprint::unit_tokens`], 64].
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

mod blueprint;
mod matrix;

pub(crate) use blueprint::Blueprint;
pub(super) use matrix::{
    float8_instruction, instruction, register_instruction, transposed_instruction,
};

use super::source;
use butterfly_ir::band::UNBOUNDED;
use butterfly_ir::kernel::signature;
use butterfly_ir::{Atom, Bound, KernelSpec, RowProgram, Rows, SymbolicBand};

/// The text of the kernel of `spec`, with the numbers in `blueprint`.
pub(super) fn text(spec: &KernelSpec, blueprint: &Blueprint) -> String {
    let entry = match blueprint.tuning.cluster {
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
    let products = match blueprint.tuning.shares_unit {
        true => include_str!("shared_products.cuh"),
        false => include_str!("products.cuh"),
    };
    let consumer = include_str!("consumer.cuh")
        .replace("@products\n", products)
        .replace("@scale", scale)
        .replace("@cap_factor\n", cap_factor)
        .replace("@cap\n", cap);
    let parts = [
        constants(spec, blueprint),
        source::ARITHMETIC.to_string(),
        source::COPIES.to_string(),
        source::INSTRUCTIONS.to_string(),
        matrix::text(spec.dtype, blueprint.tuning.k_tile, blueprint.o_columns),
        source::launch(spec),
        super::rows::text(&spec.rows, spec.block),
        include_str!("bands.cuh").to_string(),
        schedule(&spec.rows),
        include_str!("shared.cuh").to_string(),
        include_str!("producer.cuh").to_string(),
        include_str!("softmax.cuh").to_string(),
        source::STORES.to_string(),
        source::with_sink(spec, include_str!("epilogue.cuh")),
        match blueprint.stored_by_copy {
            true => include_str!("store_copies.cuh").to_string(),
            false => include_str!("store_registers.cuh").to_string(),
        },
        consumer,
        source::entry(&signature::of(spec, &blueprint.geometry()), &entry),
    ];
    parts.join("\n")
}

/// The order of items. Heads whose rows are long come first if there are others beside them: in one
/// order of both, the same clusters would get the long ones again and again.
fn schedule(rows: &Rows) -> String {
    let long = match rows {
        Rows::ClosedForm(program) => long_heads(program),
        Rows::Table => 0,
    };
    let (function, head) = match long {
        0 | u64::MAX => (String::new(), "divided(index, launch.kv_heads)"),
        _ => (
            format!("constexpr unsigned long long LONG = {long:#x}ull;\n\n{HEAD_OF}"),
            "head_of(launch, index)",
        ),
    };
    include_str!("schedule.cuh")
        .replace("@head_of", &function)
        .replace("@head", head)
}

/// Of the first 64 kv heads, those with a band that reaches from the first key to the query, as bits.
fn long_heads(program: &RowProgram) -> u64 {
    let long = |band: &&SymbolicBand| {
        let near = |bound: &Bound| match *bound {
            Bound::Start(_) => false,
            Bound::Stop(i) => matches!(program.atoms[i as usize], Atom::Local { .. }),
        };
        band.lo.is_empty() && band.first <= -UNBOUNDED && band.hi.iter().all(near)
    };
    let bands = program.bands.iter().filter(long);
    let bits = bands.map(|band| {
        let heads = (0..u64::BITS).filter(|head| band.heads.contains(*head));
        heads.fold(0, |bits, head| bits | 1 << head)
    });
    bits.fold(0, |all, bits| all | bits)
}

const HEAD_OF: &str = "\
// The head of an item, and what is left of its number: first come the items of heads with long rows,
// which are the bits of LONG, then those of the others.
__device__ __forceinline__ int head_of(const Launch& launch, int& index) {
  if (launch.kv_heads > 64) return divided(index, launch.kv_heads);
  const unsigned long long all = ~0ull >> (64 - launch.kv_heads);
  unsigned long long heads = LONG & all;
  const int before = item_count(launch) / (ITEMS_PER_ROW * launch.kv_heads) * __popcll(heads);
  if (index >= before) {
    index -= before;
    heads = all & ~LONG;
  }
  for (int nth = divided(index, __popcll(heads)); nth > 0; --nth) heads &= heads - 1;
  return __ffsll(heads) - 1;
}

";

fn constants(spec: &KernelSpec, blueprint: &Blueprint) -> String {
    let mut text = source::Constants::of("prefill", spec);
    let mut constant = |name, value| text.add(name, value);
    let tuning = blueprint.tuning;
    constant("BANDS", blueprint.bands);
    constant("THREADS", blueprint.threads());
    constant("CLUSTER", tuning.cluster);
    constant("CONSUMERS", tuning.consumers);
    constant("UNITS", tuning.units());
    constant("PRODUCER_REGISTERS", blueprint.producer_registers);
    constant("CONSUMER_REGISTERS", blueprint.consumer_registers);
    constant("UNIT_TOKENS", blueprint.unit_tokens);
    constant("UNIT_HEADS", blueprint.unit_heads);
    constant("HEAD_UNITS", blueprint.head_units);
    constant("UNITS_PER_ROW", blueprint.units_per_row);
    constant(
        "ITEMS_PER_ROW",
        blueprint
            .units_per_row
            .div_ceil(tuning.cluster * tuning.units()),
    );
    constant("K_TILE", tuning.k_tile);
    constant("K_PART", tuning.k_tile / tuning.cluster);
    constant("D_STEPS", spec.head_dim.div_ceil(16));
    constant("O_COLUMNS", blueprint.o_columns);
    constant("D_CHUNKS", blueprint.d_chunks);
    constant("V_CHUNKS", blueprint.v_chunks);
    constant("SLOTS", blueprint.slots);
    constant("Q_SLOTS", tuning.q_slots);
    constant("STORED_BY_COPY", blueprint.stored_by_copy.into());
    constant("Q_BYTES", blueprint::UNIT_ROWS * blueprint.d_chunks * 128);
    constant(
        "SLOT_BYTES",
        tuning.k_tile * blueprint.d_chunks.max(blueprint.v_chunks) * 128,
    );
    constant("RING_AT", blueprint.ring_at);
    constant("BARRIERS_AT", blueprint.barriers_at);
    constant("TILES_AT", blueprint.tiles_at);
    constant("ITEMS_AT", blueprint.items_at);
    constant("BANDS_AT", blueprint.bands_at);
    text.finish("// What a thread's weights of a row of a tile may sum up to, and each be, in any type.\nconstexpr float MOST = 32768.0f;\n")
}

#[cfg(test)]
mod tests;
