//! Decode for Hopper (sm_90a): CUDA C++ text from a `KernelSpec`.
//!
//! In:  a spec. Out: text and the numbers of its launch, or the reason why this generator does
//! not make it.
//!
//! # How the kernel works
//!
//! A *job* is one query and all q heads of one kv head. The keys that the query sees are cut into
//! tiles of 16, which the teams of some blocks of threads of a cluster take in turns: of all blocks
//! where jobs are few, of one where they are many; the grid says. A team is a warp, or all
//! where one could not hold the output. It copies and computes its tiles by itself, so that the
//! loads of one hide the products of another. The q heads are the rows of `mma` products, so that
//! k and v are read once for the group. At the end the teams of a block merge what they found,
//! then every block of a job merges a share of the columns, which it reads from the shared memory
//! of the others: one launch, no memory in between, and the same order of sums for the same grid.
//!
//! # What a launch needs
//!
//! The arguments of the portable kernels, and their parameters with one word more, the number of
//! sequences; strides and addresses that are multiples of 16 bytes, because copies are that wide;
//! dynamic shared memory of `shared_bytes`, which may exceed 48 KiB. Grid: `Geometry::grid`, or
//! fewer clusters, see `Geometry::fitted`.

mod plan;

pub(crate) use plan::Plan;

use super::source;
use butterfly_ir::{Dtype, KernelSpec};

/// The text of the kernel of `spec` by its plan.
pub(super) fn text(spec: &KernelSpec, plan: &Plan) -> String {
    let kind = match spec.dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F16 | Dtype::F32 => "f16",
    };
    // A closed form without bands still has a list.
    let bands = plan.bands.max(1).to_string();
    // Said to be alone, the compiler hoists more than fits; not said to be several, it may save
    // registers for more of them.
    let bounds = match plan.tuning.per_processor {
        1 => "THREADS".to_string(),
        several => format!("THREADS, {several}"),
    };
    let entry = include_str!("entry.cuh")
        .replace("@bands", &bands)
        .replace("@bounds", &bounds);
    let (scale, logit) = match spec.score.softcap {
        false => (
            "launch.scale * 1.44269504f",
            "(s[r][n][i] + s_odd[r][n][i]) * scale",
        ),
        true => (
            "2.0f * 1.44269504f * launch.scale / launch.softcap",
            "1.44269504f * capped(s[r][n][i] + s_odd[r][n][i], launch.softcap, scale)",
        ),
    };
    let parts = [
        constants(spec, plan),
        source::ARITHMETIC.to_string(),
        include_str!("instructions.cuh").replace("@kind", kind),
        source::launch(spec),
        super::rows::text(&spec.rows, spec.block),
        include_str!("tiles.cuh").to_string(),
        include_str!("attend.cuh")
            .replace("@scale", scale)
            .replace("@logit", logit),
        source::with_sink(spec, include_str!("merge.cuh")),
        source::entry(spec, &entry),
    ];
    parts.join("\n")
}

fn constants(spec: &KernelSpec, plan: &Plan) -> String {
    let mut text = source::Constants::of("decode", spec);
    for (name, value) in [
        ("BANDS", plan.bands),
        ("THREADS", plan::THREADS),
        ("CLUSTER", plan.tuning.cluster),
        ("CLUSTER_BITS", plan.tuning.cluster.ilog2()),
        ("K_TILE", plan::K_TILE),
        ("SLOTS", plan.tuning.slots),
        ("ROWS", plan.sizes.rows),
        ("ROW_TILES", plan.sizes.rows / 16),
        ("D", spec.head_dim),
        ("D_STEPS", spec.head_dim.div_ceil(16)),
        ("V_COLUMNS", spec.v_head_dim),
        ("TEAM", plan.sizes.team),
        ("TEAMS", plan.sizes.teams()),
        (
            "KEEP_QUERIES",
            u32::from(plan.sizes.keeps_queries(spec.head_dim)),
        ),
        (
            "COLUMN_PAIRS",
            spec.v_head_dim.div_ceil(16 * plan.sizes.team),
        ),
        ("Q_PITCH", plan.sizes.q_pitch),
        ("V_PITCH", plan.sizes.v_pitch),
        ("SLOTS_AT", plan.slots_at),
        ("SLOT_BYTES", plan.sizes.slot),
        ("TEAMS_AT", plan.teams_at),
        ("ROWS_AT", plan.rows_at),
    ] {
        text.add(name, value);
    }
    text.finish("")
}

#[cfg(test)]
mod tests;
