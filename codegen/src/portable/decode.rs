//! Decode: a workgroup computes one query of all q heads of one kv head.
//!
//! The q heads are taken in chunks of `rows`. For the scores, a team of threads shares a key: it
//! reads neighbouring elements, and all loads of a thread for a tile are in flight at once. For the
//! output, a thread owns `v_cols` columns of all rows. Where there are fewer columns than threads,
//! `v_slices` threads share a column, each with a part of the keys; their sums are added through
//! shared memory at the end.

use super::blueprint::{Blueprint, REDUCERS, TEAM};
use super::rows::{self, Grid};
use super::score::{self, HIDDEN, weight};
use butterfly_ir::{LaunchScalars, band::UNBOUNDED, scalar};
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// How many tokens a sequence is behind the longest; they stand at the end of the parameters (see
/// `LaunchScalars::parameters`).
#[cube]
fn lag(params: &Array<u32>, sequence: u32, #[comptime] blueprint: Blueprint) -> u32 {
    let mut at = sequence + comptime!(LaunchScalars::lags_from(blueprint.score) as u32);
    if comptime!(blueprint.score.sinks) {
        at += params[scalar::KV_HEADS] * comptime!(blueprint.group);
    }
    params[at as usize]
}

/// Attention of one query with an online softmax; buffers in the order of the kernel's signature.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn decode<F: Float>(
    q: &Array<F>,
    k: &Array<F>,
    v: &Array<F>,
    params: &Array<u32>,
    offsets: &Array<u32>,
    table: &Array<u32>,
    o: &mut Array<F>,
    lse: &mut Array<f32>,
    #[comptime] blueprint: Blueprint,
) {
    let rows = comptime!(blueprint.rows);
    let group = comptime!(blueprint.group);
    let threads = comptime!(blueprint.tx);
    let k_tile = comptime!(blueprint.k_tile);
    let k_pitch = comptime!(blueprint.k_tile + 1);
    let d_slice = comptime!(blueprint.d_slice);
    let unroll = comptime!(blueprint.d_slice / TEAM);
    let v_cols = comptime!(blueprint.v_cols);
    let parts = comptime!(blueprint.v_slices);
    // Keys that all teams together read at a time.
    let abreast = comptime!(blueprint.tx / TEAM);
    let rounds = comptime!(blueprint.k_tile / abreast);
    // Threads side by side across the columns, and keys in each part.
    let across = comptime!(blueprint.tx / blueprint.v_slices);
    let part_keys = comptime!(blueprint.k_tile / blueprint.v_slices);
    let v_unroll = comptime!(part_keys.min(8));
    // Each row is reduced by REDUCERS threads over `span` keys each; their results start at
    // `reduced`.
    let span = comptime!(blueprint.k_tile / REDUCERS);
    let reduced = comptime!(blueprint.rows * k_pitch);
    let operands_at = comptime!(blueprint.p_words);

    let q_len = params[scalar::Q_LEN];
    let lag = lag(params, CUBE_POS_Z, blueprint.clone());
    let kv_len = params[scalar::KV_LEN] - lag;
    let scale = f32::reinterpret(params[scalar::SCALE]);
    let t = UNIT_POS;
    let local = CUBE_POS_X;
    let at_query = params[scalar::Q_OFFSET] - lag + local;
    let query = i32::cast_from(at_query);
    let kv_head = CUBE_POS_Y;
    let q_base = CUBE_POS_Z * params[scalar::Q_BATCH] + local * params[scalar::Q_TOKEN];
    let q_head = params[scalar::Q_HEAD];
    let k_base = CUBE_POS_Z * params[scalar::K_BATCH] + kv_head * params[scalar::K_HEAD];
    let k_token = params[scalar::K_TOKEN];
    let v_base = CUBE_POS_Z * params[scalar::V_BATCH] + kv_head * params[scalar::V_HEAD];
    let v_token = params[scalar::V_TOKEN];
    let o_base = CUBE_POS_Z * params[scalar::O_BATCH] + local * params[scalar::O_TOKEN];
    let o_head = params[scalar::O_HEAD];
    let row = rows::of_block(
        params,
        offsets,
        at_query / comptime!(blueprint.block),
        kv_head,
        CUBE_POS_Z,
        kv_len,
        blueprint.clone(),
    );
    let member = t % TEAM;
    let team_key = t / TEAM;
    let col = t % across;
    let part = t / across;

    let mut shared = SharedMemory::<f32>::new(comptime!(
        (blueprint.p_words + blueprint.operand_words) as usize
    ));
    let n_rows = comptime!(blueprint.rows as usize);
    let n_acc = comptime!((blueprint.rows * blueprint.v_cols) as usize);
    let mut top = Array::<f32>::new(n_rows);
    let mut sum = Array::<f32>::new(n_rows);
    let mut s = Array::<f32>::new(n_rows);
    let mut dots = Array::<f32>::new(comptime!((blueprint.rows * rounds) as usize));
    let mut left = Array::<f32>::new(comptime!((blueprint.rows * unroll) as usize));
    let mut right = Array::<f32>::new(comptime!(unroll.max(v_unroll) as usize));
    let mut acc = Array::<f32>::new(n_acc);
    let mut seen = Array::<u32>::new(1usize);

    for chunk in 0..comptime!(blueprint.group.div_ceil(blueprint.rows)) {
        let first = chunk * rows;
        let head = kv_head * group + first;
        #[unroll]
        for r in 0..n_rows {
            top[r] = HIDDEN;
            sum[r] = 0.0f32;
        }
        #[unroll]
        for i in 0..n_acc {
            acc[i] = 0.0f32;
        }

        let mut next = rows::next_key(&row, table, query, query, 0i32.runtime(), blueprint.clone());
        while next < UNBOUNDED {
            let k0 = u32::cast_from(next);

            // Scores: each member of a team multiplies its part of the head.
            #[unroll]
            for i in 0..comptime!((rows * rounds) as usize) {
                dots[i] = 0.0f32;
            }
            for slice in 0..comptime!(blueprint.head_dim / blueprint.d_slice) {
                let d0 = slice * d_slice + member;
                #[unroll]
                for r in 0..rows {
                    let at = kv_head * group + min(first + r, comptime!(group - 1).runtime());
                    #[unroll]
                    for u in 0..unroll {
                        left[comptime!((r * unroll + u) as usize)] = f32::cast_from(
                            q[(q_base + at * q_head + d0 + comptime!(u * TEAM)) as usize],
                        );
                    }
                }
                #[unroll]
                for pass in 0..rounds {
                    let at = min(k0 + team_key + comptime!(pass * abreast), kv_len - 1u32);
                    #[unroll]
                    for u in 0..unroll {
                        right[u as usize] = f32::cast_from(
                            k[(k_base + at * k_token + d0 + comptime!(u * TEAM)) as usize],
                        );
                    }
                    #[unroll]
                    for r in 0..rows {
                        #[unroll]
                        for u in 0..unroll {
                            dots[comptime!((r * rounds + pass) as usize)] +=
                                left[comptime!((r * unroll + u) as usize)] * right[u as usize];
                        }
                    }
                }
            }
            #[unroll]
            for r in 0..rows {
                #[unroll]
                for pass in 0..rounds {
                    let key = team_key + comptime!(r * k_tile + pass * abreast);
                    shared[(operands_at + key * comptime!(TEAM + 1) + member) as usize] =
                        dots[comptime!((r * rounds + pass) as usize)];
                }
            }
            sync_cube();
            if t < k_tile {
                rows::mark_seen(
                    &mut seen,
                    &row,
                    table,
                    query,
                    next + i32::cast_from(t),
                    blueprint.clone(),
                    comptime!(Grid {
                        rows: 1,
                        q_step: 0,
                        cols: 1,
                        k_step: 0,
                        k_run: 1,
                    }),
                );
                #[unroll]
                for r in 0..rows {
                    let from = operands_at + (t + comptime!(r * k_tile)) * comptime!(TEAM + 1);
                    let mut total = 0.0f32.runtime();
                    #[unroll]
                    for i in 0..TEAM {
                        total += shared[(from + i) as usize];
                    }
                    let mut logit = total * scale;
                    if comptime!(blueprint.score.softcap) {
                        logit = score::capped(logit, params);
                    }
                    s[r as usize] = select(seen[0] == 1u32, logit, HIDDEN.runtime());
                    shared[(t + comptime!(r * k_pitch)) as usize] = s[r as usize];
                }
            }
            sync_cube();
            if t < comptime!(rows * REDUCERS) {
                let from = t / REDUCERS * k_pitch + t % REDUCERS * span;
                let mut most = HIDDEN.runtime();
                #[unroll]
                for i in 0..span {
                    most = max(most, shared[(from + i) as usize]);
                }
                shared[(t + reduced) as usize] = most;
            }
            sync_cube();
            #[unroll]
            for r in 0..rows {
                let mut most = top[r as usize];
                #[unroll]
                for i in 0..REDUCERS {
                    most = max(
                        most,
                        shared[comptime!((reduced + r * REDUCERS + i) as usize)],
                    );
                }
                let fade = weight(top[r as usize] - most);
                top[r as usize] = most;
                sum[r as usize] *= fade;
                #[unroll]
                for c in 0..v_cols {
                    acc[comptime!((r * v_cols + c) as usize)] *= fade;
                }
                if t < k_tile {
                    let share = select(
                        s[r as usize] > comptime!(HIDDEN / 2.0),
                        weight(s[r as usize] - most),
                        0.0f32.runtime(),
                    );
                    sum[r as usize] += share;
                    shared[(t + comptime!(r * k_pitch)) as usize] = share;
                }
            }
            sync_cube();

            // Output.
            for i in 0..comptime!(part_keys / v_unroll) {
                let key = part * part_keys + i * v_unroll;
                #[unroll]
                for c in 0..v_cols {
                    let column = col + comptime!(c * across);
                    if column < comptime!(blueprint.v_head_dim) {
                        #[unroll]
                        for u in 0..v_unroll {
                            let at = min(k0 + key + u, kv_len - 1u32);
                            right[u as usize] =
                                f32::cast_from(v[(v_base + at * v_token + column) as usize]);
                        }
                        #[unroll]
                        for u in 0..v_unroll {
                            #[unroll]
                            for r in 0..rows {
                                acc[comptime!((r * v_cols + c) as usize)] += shared
                                    [(key + comptime!(r * k_pitch + u)) as usize]
                                    * right[u as usize];
                            }
                        }
                    }
                }
            }
            next = rows::next_key(
                &row,
                table,
                query,
                query,
                next + comptime!(blueprint.k_tile as i32),
                blueprint.clone(),
            );
        }

        // Row sums: every thread stores its part, REDUCERS threads for each row add these up, and
        // all threads add up their results.
        sync_cube();
        #[unroll]
        for r in 0..rows {
            if t < k_tile {
                shared[(t + comptime!(r * k_pitch)) as usize] = sum[r as usize];
            }
        }
        sync_cube();
        if t < comptime!(rows * REDUCERS) {
            let from = t / REDUCERS * k_pitch + t % REDUCERS * span;
            let mut total = 0.0f32.runtime();
            #[unroll]
            for i in 0..span {
                total += shared[(from + i) as usize];
            }
            shared[(t + reduced) as usize] = total;
        }
        if comptime!(parts > 1) {
            #[unroll]
            for r in 0..rows {
                shared[(t + comptime!(operands_at + r * threads)) as usize] = acc[r as usize];
            }
        }
        sync_cube();
        #[unroll]
        for r in 0..rows {
            let mut total = 0.0f32.runtime();
            #[unroll]
            for i in 0..REDUCERS {
                total += shared[comptime!((reduced + r * REDUCERS + i) as usize)];
            }
            sum[r as usize] = total;
            if comptime!(parts > 1) {
                let mut merged = 0.0f32.runtime();
                for i in 0..parts {
                    let from = i * across + col;
                    merged += shared[(from + comptime!(operands_at + r * threads)) as usize];
                }
                acc[r as usize] = merged;
            }
        }
        // The next chunk overwrites shared memory that other threads still read.
        sync_cube();
        #[unroll]
        for r in 0..rows {
            if first + r < group && part == 0u32 {
                let total = sum[r as usize];
                let end = score::end(top[r as usize], total, params, head + r, blueprint.clone());
                #[unroll]
                for c in 0..v_cols {
                    let column = col + comptime!(c * across);
                    if column < comptime!(blueprint.v_head_dim) {
                        let x = acc[comptime!((r * v_cols + c) as usize)] * end.factor;
                        o[(o_base + (head + r) * o_head + column) as usize] = F::cast_from(x);
                    }
                }
                if t == 0u32 {
                    let heads = params[scalar::KV_HEADS] * group;
                    lse[((CUBE_POS_Z * heads + head + r) * q_len + local) as usize] = end.lse;
                }
            }
        }
    }
}
