//! Prefill in scalar arithmetic: a workgroup computes one tile of queries of one q head.
//!
//! A thread holds in registers the scores of `rows` query rows by `k_tile / tx` keys, and the
//! output of the same rows by `v_cols * v_slices` columns. Operands pass through shared memory
//! slice by slice, so that any head size fits. Inside the loop over keys, threads exchange only
//! row maxima; row sums stay partial until the end.

use super::blueprint::Blueprint;
use super::rows::{self, Grid};
use super::score::{self, HIDDEN, weight};
use butterfly_ir::{band::UNBOUNDED, scalar};
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// Tiled attention with an online softmax; buffers in the order of the kernel's signature.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn prefill<F: Float>(
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
    let tx_count = comptime!(blueprint.tx);
    let ty_count = comptime!(blueprint.ty);
    let rows = comptime!(blueprint.rows);
    let q_tile = comptime!(blueprint.q_tile());
    let k_tile = comptime!(blueprint.k_tile);
    let cols = comptime!(blueprint.k_tile / blueprint.tx);
    let d_slice = comptime!(blueprint.d_slice);
    let d_pitch = comptime!(blueprint.d_slice + 1);
    let k_pitch = comptime!(blueprint.k_tile + 1);
    let red_pitch = comptime!(blueprint.tx + 1);
    let v_cols = comptime!(blueprint.v_cols);
    let v_width = comptime!(blueprint.v_cols * blueprint.tx);
    let v_slices = comptime!(blueprint.v_slices);
    let threads = comptime!(blueprint.threads());
    let block = comptime!(blueprint.block);
    let operands_at = comptime!(blueprint.p_words);
    let keys_at = comptime!(blueprint.p_words + blueprint.q_tile() * (blueprint.d_slice + 1));

    let q_len = params[scalar::Q_LEN];
    let kv_len = params[scalar::KV_LEN];
    let q_offset = params[scalar::Q_OFFSET];
    let scale = f32::reinterpret(params[scalar::SCALE]);

    let tiles = comptime!(blueprint.block.div_ceil(blueprint.q_tile()));
    let b = q_offset / block + CUBE_POS_X / tiles;
    let base = b * block + CUBE_POS_X % tiles * q_tile;
    let stop = min(min(base + q_tile, b * block + block), q_offset + q_len);
    let begin = max(base, q_offset);

    if begin < stop {
        let q0 = i32::cast_from(begin);
        let q1 = i32::cast_from(stop) - 1i32;
        let head = CUBE_POS_Y;
        let kv_head = head / comptime!(blueprint.group);
        // Rows are counted by absolute position, so `q_base` may wrap below zero; adding a
        // position wraps it back.
        let q_base = CUBE_POS_Z * params[scalar::Q_BATCH] + head * params[scalar::Q_HEAD]
            - q_offset * params[scalar::Q_TOKEN];
        let k_base = CUBE_POS_Z * params[scalar::K_BATCH] + kv_head * params[scalar::K_HEAD];
        let v_base = CUBE_POS_Z * params[scalar::V_BATCH] + kv_head * params[scalar::V_HEAD];

        let row = rows::of_block(
            params,
            offsets,
            b,
            kv_head,
            CUBE_POS_Z,
            kv_len,
            blueprint.clone(),
        );
        let t = UNIT_POS;
        let tx = t % tx_count;
        let ty = t / tx_count;

        let mut shared = SharedMemory::<f32>::new(comptime!(
            (blueprint.p_words + blueprint.operand_words) as usize
        ));
        let n_rows = comptime!(blueprint.rows as usize);
        let mut top = Array::<f32>::new(n_rows);
        let mut sum = Array::<f32>::new(n_rows);
        let mut acc = Array::<f32>::new(comptime!(
            (blueprint.rows * blueprint.v_cols * blueprint.v_slices) as usize
        ));
        let mut s = Array::<f32>::new(comptime!((blueprint.rows * cols) as usize));
        let mut seen = Array::<u32>::new(comptime!((blueprint.rows * cols) as usize));
        #[unroll]
        for r in 0..n_rows {
            top[r] = HIDDEN;
            sum[r] = 0.0f32;
        }
        #[unroll]
        for i in 0..comptime!((blueprint.rows * blueprint.v_cols * blueprint.v_slices) as usize) {
            acc[i] = 0.0f32;
        }

        let mut next = rows::next_key(&row, table, q0, q1, 0i32.runtime(), blueprint.clone());
        while next < UNBOUNDED {
            let k0 = u32::cast_from(next);

            // Scores, one slice of the head at a time.
            #[unroll]
            for i in 0..comptime!((rows * cols) as usize) {
                s[i] = 0.0f32;
            }
            for slice in 0..comptime!(blueprint.head_dim / blueprint.d_slice) {
                let d0 = slice * d_slice;
                sync_cube();
                for i in range_stepped(t, comptime!(q_tile * d_slice), threads) {
                    let r = i / d_slice;
                    let d = i % d_slice;
                    let at = base + r;
                    let mut x = 0.0f32.runtime();
                    if at >= begin && at < stop {
                        x = f32::cast_from(
                            q[(q_base + at * params[scalar::Q_TOKEN] + d0 + d) as usize],
                        );
                    }
                    shared[(operands_at + r * d_pitch + d) as usize] = x;
                }
                for i in range_stepped(t, comptime!(k_tile * d_slice), threads) {
                    let r = i / d_slice;
                    let d = i % d_slice;
                    let at = k0 + r;
                    let mut x = 0.0f32.runtime();
                    if at < kv_len {
                        x = f32::cast_from(
                            k[(k_base + at * params[scalar::K_TOKEN] + d0 + d) as usize],
                        );
                    }
                    shared[(keys_at + r * d_pitch + d) as usize] = x;
                }
                sync_cube();
                for d in 0..d_slice {
                    let mut left = Array::<f32>::new(n_rows);
                    #[unroll]
                    for r in 0..rows {
                        left[r as usize] =
                            shared[(operands_at + (ty + r * ty_count) * d_pitch + d) as usize];
                    }
                    #[unroll]
                    for c in 0..cols {
                        let right = shared[(keys_at + (tx + c * tx_count) * d_pitch + d) as usize];
                        #[unroll]
                        for r in 0..rows {
                            let i = comptime!((r * cols + c) as usize);
                            s[i] += left[r as usize] * right;
                        }
                    }
                }
            }

            #[unroll]
            for i in 0..comptime!((rows * cols) as usize) {
                let mut logit = s[i] * scale;
                if comptime!(blueprint.score.softcap) {
                    logit = score::capped(logit, params);
                }
                s[i] = logit;
            }
            let full = rows::is_full(
                &row,
                table,
                q0,
                q1,
                next,
                next + comptime!(blueprint.k_tile as i32),
                blueprint.clone(),
            );
            if !full {
                rows::mark_seen(
                    &mut seen,
                    &row,
                    table,
                    i32::cast_from(base + ty),
                    next + i32::cast_from(tx),
                    blueprint.clone(),
                    comptime!(Grid {
                        rows: blueprint.rows,
                        q_step: blueprint.ty,
                        cols,
                        k_step: blueprint.tx,
                        k_run: 1,
                    }),
                );
                #[unroll]
                for i in 0..comptime!((rows * cols) as usize) {
                    s[i] = select(seen[i] == 1u32, s[i], HIDDEN.runtime());
                }
            }

            // Row maxima, through shared memory.
            #[unroll]
            for r in 0..rows {
                let mut most = s[comptime!((r * cols) as usize)];
                #[unroll]
                for c in 1..cols {
                    most = max(most, s[comptime!((r * cols + c) as usize)]);
                }
                shared[((ty + r * ty_count) * red_pitch + tx) as usize] = most;
            }
            sync_cube();
            #[unroll]
            for r in 0..rows {
                let mut most = top[r as usize];
                for i in 0..tx_count {
                    most = max(most, shared[((ty + r * ty_count) * red_pitch + i) as usize]);
                }
                let fade = weight(top[r as usize] - most);
                top[r as usize] = most;
                let mut part = sum[r as usize] * fade;
                #[unroll]
                for c in 0..cols {
                    let i = comptime!((r * cols + c) as usize);
                    let share = select(
                        s[i] > comptime!(HIDDEN / 2.0),
                        weight(s[i] - most),
                        0.0f32.runtime(),
                    );
                    part += share;
                    s[i] = share;
                }
                sum[r as usize] = part;
                #[unroll]
                for i in 0..comptime!(v_cols * v_slices) {
                    let at = comptime!((r * v_cols * v_slices + i) as usize);
                    acc[at] *= fade;
                }
            }
            sync_cube();
            #[unroll]
            for r in 0..rows {
                #[unroll]
                for c in 0..cols {
                    shared[((ty + r * ty_count) * k_pitch + tx + c * tx_count) as usize] =
                        s[comptime!((r * cols + c) as usize)];
                }
            }

            // Output, one slice of columns at a time.
            #[unroll]
            for slice in 0..v_slices {
                let first = comptime!(slice * v_width);
                let width = comptime!(v_width.min(blueprint.v_head_dim - first));
                if comptime!(slice > 0) {
                    sync_cube();
                }
                for i in range_stepped(t, comptime!(k_tile * width), threads) {
                    let r = i / width;
                    let c = i % width;
                    let at = k0 + r;
                    let mut x = 0.0f32.runtime();
                    if at < kv_len {
                        x = f32::cast_from(
                            v[(v_base + at * params[scalar::V_TOKEN] + first + c) as usize],
                        );
                    }
                    shared[(operands_at + r * v_width + c) as usize] = x;
                }
                sync_cube();
                for kk in 0..k_tile {
                    let mut left = Array::<f32>::new(n_rows);
                    #[unroll]
                    for r in 0..rows {
                        left[r as usize] = shared[((ty + r * ty_count) * k_pitch + kk) as usize];
                    }
                    #[unroll]
                    for c in 0..v_cols {
                        let right =
                            shared[(operands_at + kk * v_width + tx + c * tx_count) as usize];
                        #[unroll]
                        for r in 0..rows {
                            let i =
                                comptime!((r * v_cols * v_slices + slice * v_cols + c) as usize);
                            acc[i] += left[r as usize] * right;
                        }
                    }
                }
            }
            next = rows::next_key(
                &row,
                table,
                q0,
                q1,
                next + comptime!(blueprint.k_tile as i32),
                blueprint.clone(),
            );
        }

        // Row sums, and the result.
        sync_cube();
        #[unroll]
        for r in 0..rows {
            shared[((ty + r * ty_count) * red_pitch + tx) as usize] = sum[r as usize];
        }
        sync_cube();
        #[unroll]
        for r in 0..rows {
            let at = base + ty + r * ty_count;
            let mut total = 0.0f32.runtime();
            for i in 0..tx_count {
                total += shared[((ty + r * ty_count) * red_pitch + i) as usize];
            }
            if at >= begin && at < stop {
                let local = at - q_offset;
                let end = score::end(top[r as usize], total, params, head, blueprint.clone());
                let o_base = CUBE_POS_Z * params[scalar::O_BATCH]
                    + head * params[scalar::O_HEAD]
                    + local * params[scalar::O_TOKEN];
                #[unroll]
                for i in 0..comptime!(v_cols * v_slices) {
                    let col = tx + comptime!(i * blueprint.tx);
                    let x = acc[comptime!((r * v_cols * v_slices + i) as usize)] * end.factor;
                    if comptime!((i + 1) * blueprint.tx <= blueprint.v_head_dim) {
                        o[(o_base + col) as usize] = F::cast_from(x);
                    } else {
                        if col < comptime!(blueprint.v_head_dim) {
                            o[(o_base + col) as usize] = F::cast_from(x);
                        }
                    }
                }
                if tx == 0u32 {
                    let heads = params[scalar::KV_HEADS] * comptime!(blueprint.group);
                    lse[((CUBE_POS_Z * heads + head) * q_len + local) as usize] = end.lse;
                }
            }
        }
    }
}
