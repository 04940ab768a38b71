//! Few queries: one query and all q heads of one kv head in a workgroup.
//!
//! The heads are taken in chunks of `rows`. In the scores a thread owns one key; in
//! the output it owns `v_cols` columns of all rows, and where columns are fewer than
//! threads, `v_slices` threads share a column, each with its part of the keys; they
//! meet through shared memory at the end.

use super::blueprint::Blueprint;
use super::prefill::{HIDDEN, MINUS_INFINITY, weight};
use super::rows::{self, Grid};
use butterfly_ir::band::UNBOUNDED;
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// One query against its keys; the buffers are those of `butterfly_ir::Kernel`.
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
    #[comptime] plan: Blueprint,
) {
    let rows = comptime!(plan.rows);
    let group = comptime!(plan.group);
    let threads = comptime!(plan.tx);
    let k_tile = comptime!(plan.k_tile);
    let k_pitch = comptime!(plan.k_tile + 1);
    let d_slice = comptime!(plan.d_slice);
    let d_pitch = comptime!(plan.d_slice + 1);
    let v_cols = comptime!(plan.v_cols);
    let parts = comptime!(plan.v_slices);
    // Threads side by side over the columns, and keys of each part.
    let across = comptime!(plan.tx / plan.v_slices);
    let part_keys = comptime!(plan.k_tile / plan.v_slices);
    // Threads that reduce one row, and the keys each of them reads.
    let team = comptime!(plan.tx / plan.rows.next_power_of_two());
    let team_keys = comptime!(plan.k_tile / team);
    let red = comptime!(plan.rows * (plan.k_tile + 1));
    let stage = comptime!(plan.p_words);
    let k_stage = comptime!(plan.p_words + plan.rows * (plan.d_slice + 1));

    let q_len = params[0];
    let kv_len = params[1];
    let scale = f32::reinterpret(params[6]);
    let t = UNIT_POS;
    let local = CUBE_POS_X;
    let at_query = params[2] + local;
    let query = i32::cast_from(at_query);
    let kv_head = CUBE_POS_Y;
    let q_base = CUBE_POS_Z * params[7] + local * params[9];
    let k_base = CUBE_POS_Z * params[10] + kv_head * params[11];
    let v_base = CUBE_POS_Z * params[13] + kv_head * params[14];
    let o_base = CUBE_POS_Z * params[16] + local * params[18];
    let o_head = params[17];
    let row = rows::of_block(
        params,
        offsets,
        at_query / comptime!(plan.block),
        plan.clone(),
    );
    let col = t % across;
    let part = t / across;

    let mut shared =
        SharedMemory::<f32>::new(comptime!((plan.p_words + plan.stage_words) as usize));
    let n_rows = comptime!(plan.rows as usize);
    let n_acc = comptime!((plan.rows * plan.v_cols) as usize);
    let mut top = Array::<f32>::new(n_rows);
    let mut sum = Array::<f32>::new(n_rows);
    let mut s = Array::<f32>::new(n_rows);
    let mut acc = Array::<f32>::new(n_acc);
    let mut seen = Array::<u32>::new(1usize);

    for chunk in 0..comptime!(plan.group.div_ceil(plan.rows)) {
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

        let mut next = rows::next_key(&row, table, query, query, 0i32.runtime(), plan.clone());
        while next < UNBOUNDED {
            let k0 = u32::cast_from(next);
            #[unroll]
            for r in 0..n_rows {
                s[r] = 0.0f32;
            }
            for slice in 0..comptime!(plan.head_dim / plan.d_slice) {
                let d0 = slice * d_slice;
                sync_cube();
                for i in range_stepped(t, comptime!(rows * d_slice), threads) {
                    let r = i / d_slice;
                    let d = i % d_slice;
                    let mut x = 0.0f32.runtime();
                    if first + r < group {
                        x = f32::cast_from(q[(q_base + (head + r) * params[8] + d0 + d) as usize]);
                    }
                    shared[(stage + r * d_pitch + d) as usize] = x;
                }
                for i in range_stepped(t, comptime!(k_tile * d_slice), threads) {
                    let r = i / d_slice;
                    let d = i % d_slice;
                    let at = k0 + r;
                    let mut x = 0.0f32.runtime();
                    if at < kv_len {
                        x = f32::cast_from(k[(k_base + at * params[12] + d0 + d) as usize]);
                    }
                    shared[(k_stage + r * d_pitch + d) as usize] = x;
                }
                sync_cube();
                for d in 0..d_slice {
                    let right = shared[(k_stage + t * d_pitch + d) as usize];
                    #[unroll]
                    for r in 0..rows {
                        s[r as usize] += shared[(stage + r * d_pitch + d) as usize] * right;
                    }
                }
            }
            rows::mark_seen(
                &mut seen,
                &row,
                table,
                query,
                next + i32::cast_from(t),
                plan.clone(),
                comptime!(Grid {
                    rows: 1,
                    q_step: 0,
                    cols: 1,
                    k_step: 0,
                }),
            );
            #[unroll]
            for r in 0..rows {
                s[r as usize] = select(seen[0] == 1u32, s[r as usize] * scale, HIDDEN.runtime());
                shared[(r * k_pitch + t) as usize] = s[r as usize];
            }
            sync_cube();
            if t / team < rows {
                let from = t / team * k_pitch + t % team * team_keys;
                let mut most = HIDDEN.runtime();
                for i in 0..team_keys {
                    most = max(most, shared[(from + i) as usize]);
                }
                shared[(red + t) as usize] = most;
            }
            sync_cube();
            #[unroll]
            for r in 0..rows {
                let mut most = top[r as usize];
                for i in 0..team {
                    most = max(most, shared[(red + r * team + i) as usize]);
                }
                let fade = weight(top[r as usize] - most);
                let share = select(
                    s[r as usize] > comptime!(HIDDEN / 2.0),
                    weight(s[r as usize] - most),
                    0.0f32.runtime(),
                );
                top[r as usize] = most;
                sum[r as usize] = sum[r as usize] * fade + share;
                shared[(r * k_pitch + t) as usize] = share;
                #[unroll]
                for c in 0..v_cols {
                    acc[comptime!((r * v_cols + c) as usize)] *= fade;
                }
            }
            sync_cube();
            for i in 0..part_keys {
                let key = part * part_keys + i;
                let at = min(k0 + key, kv_len - 1u32);
                #[unroll]
                for c in 0..v_cols {
                    let column = col + comptime!(c * across);
                    if column < comptime!(plan.v_head_dim) {
                        let x = f32::cast_from(v[(v_base + at * params[15] + column) as usize]);
                        #[unroll]
                        for r in 0..rows {
                            acc[comptime!((r * v_cols + c) as usize)] +=
                                shared[(r * k_pitch + key) as usize] * x;
                        }
                    }
                }
            }
            next = rows::next_key(
                &row,
                table,
                query,
                query,
                next + comptime!(plan.k_tile as i32),
                plan.clone(),
            );
        }

        // Row sums: every thread, then its team, then all.
        sync_cube();
        #[unroll]
        for r in 0..rows {
            shared[(r * k_pitch + t) as usize] = sum[r as usize];
        }
        sync_cube();
        if t / team < rows {
            let from = t / team * k_pitch + t % team * team_keys;
            let mut total = 0.0f32.runtime();
            for i in 0..team_keys {
                total += shared[(from + i) as usize];
            }
            shared[(red + t) as usize] = total;
        }
        sync_cube();
        #[unroll]
        for r in 0..rows {
            let mut total = 0.0f32.runtime();
            for i in 0..team {
                total += shared[(red + r * team + i) as usize];
            }
            sum[r as usize] = total;
        }
        if comptime!(parts > 1) {
            #[unroll]
            for r in 0..rows {
                shared[(r * k_pitch + t) as usize] = acc[r as usize];
            }
            sync_cube();
            #[unroll]
            for r in 0..rows {
                let mut total = 0.0f32.runtime();
                for i in 0..parts {
                    total += shared[(r * k_pitch + i * across + col) as usize];
                }
                acc[r as usize] = total;
            }
        }
        #[unroll]
        for r in 0..rows {
            if first + r < group && part == 0u32 {
                let total = sum[r as usize];
                let inverse = select(total > 0.0f32, 1.0f32 / total, 0.0f32.runtime());
                #[unroll]
                for c in 0..v_cols {
                    let column = col + comptime!(c * across);
                    if column < comptime!(plan.v_head_dim) {
                        let x = acc[comptime!((r * v_cols + c) as usize)] * inverse;
                        o[(o_base + (head + r) * o_head + column) as usize] = F::cast_from(x);
                    }
                }
                if t == 0u32 {
                    let heads = params[3] * group;
                    // A sum with a run-time term: WGSL rejects a constant infinity.
                    let mut value = f32::reinterpret(MINUS_INFINITY + (total > 0.0f32) as u32);
                    if total > 0.0f32 {
                        value = top[r as usize] + Log::ln(total);
                    }
                    lse[((CUBE_POS_Z * heads + head + r) * q_len + local) as usize] = value;
                }
            }
        }
    }
}
