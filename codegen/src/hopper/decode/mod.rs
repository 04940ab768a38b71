//! Decode for Hopper (sm_90a): CUDA C++ text from a `KernelSpec`.
//!
//! In:  a spec. Out: the text of a kernel and its launch geometry, or the reason why this generator
//! does not take the spec.
//!
//! # How the kernel works
//!
//! A *job* is one query and all q heads of one kv head. The keys that the query sees are divided
//! into tiles of 16 keys, which teams take in turns. A *team* is a warp or, where one warp could
//! not hold the output, all warps of a thread block. Each team starts the TMA copies of its own
//! tiles and computes them without waiting for other teams, so that the copies of one hide the
//! products of another. The q heads are the columns of `mma` products, so k and v are read once for
//! the whole GQA group. At the end, the teams of a thread block merge their results.
//!
//! The text has two entry points. In the first, a cluster of thread blocks shares a job (split-KV):
//! each merges a share of the output's columns, which it reads from the shared memory of the
//! others. In the second, for launches with many jobs, each thread block has a job of its own, so
//! it can run on any SM and waits for no other. Both are one launch without intermediate results
//! in memory, and both add in a fixed order.
//!
//! Long rows have two more entry points (see `spread`): by one the thread blocks of the whole device
//! share the jobs and leave results in memory, and by the other a second launch merges these.
//!
//! # Preconditions of a launch
//!
//! Arguments and tensor maps as for a prefill kernel (see `super::prefill`), with the boxes in
//! `Geometry::boxes`; the scale may have any sign. `Geometry::fitted` gives grid and entry point.

mod blueprint;
mod spread;

pub(crate) use blueprint::Blueprint;

use super::source;
use crate::portable::ENTRY;
use butterfly_ir::geometry::{cluster_entry, merge_entry, second_entry, spread_entry};
use butterfly_ir::kernel::signature;
use butterfly_ir::{Dtype, KernelSpec, LaunchScalars, Spread, scalar};

/// The text of the kernel of `spec`, with the numbers in `blueprint`.
pub(super) fn text(spec: &KernelSpec, blueprint: &Blueprint) -> String {
    let kind = match spec.dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F16 | Dtype::F32 => "f16",
    };
    // An array in CUDA C++ must not be empty, even for a closed form without bands.
    let bands = blueprint.bands.max(1).to_string();
    // Where one thread block is to run per SM, the launch bounds do not say so: if they did, the
    // compiler would hoist more than fits the registers. Where several are to run, they say how
    // many: else the compiler may save registers for even more.
    let bounds = match blueprint.tuning.per_processor {
        1 => "THREADS".to_string(),
        several => format!("THREADS, {several}"),
    };
    let geometry = blueprint.geometry();
    let short = signature::of(spec, &geometry);
    let entry = |name: &str, cluster: &str, width: &str| {
        let text = include_str!("entry.cuh")
            .replace("@name", name)
            .replace("@cluster", cluster)
            .replace("@width", width)
            .replace("@partials", if width == "0" { PARTIALS } else { "{}" })
            .replace("@parts", &scalar::PARTS.to_string())
            .replace("@bounds", &bounds);
        match width {
            "0" => source::entry(&signature::spread(spec, &geometry), &text),
            _ => source::entry(&short, &text),
        }
    };
    let (scale, logit) = match spec.score.softcap {
        false => ("launch.scale * 1.44269504f", "s[r][i] * scale"),
        true => (
            "2.0f * 1.44269504f * launch.scale / launch.softcap",
            "1.44269504f * capped(s[r][i], launch.softcap, scale)",
        ),
    };
    let mut parts = vec![
        constants(spec, blueprint),
        source::ARITHMETIC.to_string(),
        source::COPIES.to_string(),
        include_str!("instructions.cuh").replace("@kind", kind),
        source::launch(spec),
        super::rows::text(&spec.rows, spec.block),
        include_str!("shared.cuh").to_string(),
        include_str!("tiles.cuh").to_string(),
        include_str!("attend.cuh")
            .replace("@scale", scale)
            .replace("@logit", logit),
        source::with_sink(spec, include_str!("merge.cuh")),
        source::with_sink(spec, include_str!("partials.cuh")),
        include_str!("job.cuh").replace("@bands", &bands),
        "// ---- Entries: a job for a cluster, or for a block of threads ----\n".to_string(),
        entry(ENTRY, "__cluster_dims__(CLUSTER, 1, 1) ", "CLUSTER"),
        entry(&second_entry(ENTRY), "", "1"),
    ];
    if blueprint.spread.is_some() {
        parts.push("// ---- Entries for long rows: parts of jobs, and merging them ----\n".into());
        let further = |name: String, signature: &[signature::Binding], text: &str| {
            let text = text
                .replace("@name", &name)
                .replace("@partials", PARTIALS)
                .replace("@parts", &scalar::PARTS.to_string());
            source::entry(signature, &text)
        };
        let latents = include_str!("latent_entry.cuh");
        match spread::takes_latents(spec) {
            true => parts.extend([
                source::INSTRUCTIONS.to_string(),
                spread::latent_products(spec, blueprint.sizes.rows),
                include_str!("latent.cuh")
                    .replace("@scale", scale)
                    .replace("@logit", logit)
                    .replace("@bands", &bands),
                further(
                    spread_entry(ENTRY),
                    &signature::spread(spec, &geometry),
                    &latents.replace("@cluster", "").replace("@width", "0"),
                ),
                source::entry(
                    &short,
                    &latents
                        .replace("@name", &cluster_entry(ENTRY))
                        .replace(
                            "@cluster",
                            &format!("__cluster_dims__({}, 1, 1) ", Spread::CLUSTER),
                        )
                        .replace("@width", &Spread::CLUSTER.to_string())
                        .replace("@partials", "{}"),
                ),
            ]),
            false => parts.push(entry(&spread_entry(ENTRY), "", "0")),
        }
        let merge = include_str!("merge_entry.cuh");
        parts.push(further(merge_entry(ENTRY), &signature::merge(spec), merge));
    }
    parts.join("\n")
}

/// The results of parts, as entry points for long rows are given them.
const PARTIALS: &str = "{partials, parameters.words[@parts]}";

fn constants(spec: &KernelSpec, blueprint: &Blueprint) -> String {
    let mut text = source::Constants::of("decode", spec);
    for (name, value) in [
        ("BANDS", blueprint.bands),
        ("THREADS", blueprint::THREADS),
        ("CLUSTER", blueprint.tuning.cluster),
        ("K_TILE", blueprint::K_TILE),
        ("SLOTS", blueprint.tuning.slots),
        ("ROWS", blueprint.sizes.rows),
        ("HEAD_TILES", blueprint.sizes.rows / 8),
        ("D_STEPS", spec.head_dim.div_ceil(16)),
        ("V_COLUMNS", spec.v_head_dim),
        ("TEAM", blueprint.sizes.team),
        ("TEAMS", blueprint.sizes.teams()),
        (
            "KEEP_QUERIES",
            u32::from(blueprint.sizes.keeps_queries(spec.head_dim)),
        ),
        (
            "COLUMN_TILES",
            spec.v_head_dim.div_ceil(16 * blueprint.sizes.team),
        ),
        ("D_BOXES", blueprint.sizes.d_boxes),
        ("V_BOXES", blueprint.sizes.v_boxes),
        ("SLOTS_AT", blueprint.slots_at),
        ("SLOT_BYTES", blueprint.sizes.slot),
        ("TEAMS_AT", blueprint.teams_at),
        ("COLUMN_PITCH", blueprint.sizes.column_pitch),
        ("O_PITCH", blueprint.sizes.o_pitch),
        ("ROWS_AT", blueprint.rows_at),
        ("BARRIERS_AT", blueprint.barriers_at),
        ("LAGS_AT", scalar::LAGS as u32),
        ("MOST_LAGS", LaunchScalars::MOST_LAGS as u32),
    ] {
        text.add(name, value);
    }
    if blueprint.spread.is_some_and(|spread| spread.v_in_k) {
        text.add("LATENT_TILE", spread::LATENT_TILE);
        text.add("LATENT_SLOTS", spread::LATENT_SLOTS);
    }
    text.finish("// By how much a logit may be ahead of what weights are relative to, as a power of two.\nconstexpr float MOST_AHEAD = 8.0f;\n")
}

#[cfg(test)]
mod tests;
