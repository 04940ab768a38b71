//! Prefill on matrix units: products of size m16n8k16 (16 rows, 8 columns, 16 terms), sums in f32.
//!
//! Each subgroup of 32 threads owns 16 query rows, and waits for others only when keys and values
//! are copied to shared memory. Scores, weights and output stay in registers, in the layout of
//! `mma.sync`: of every 8 columns, a thread holds two in row `lane / 4`, and the same two in the
//! row 8 below. The weights of two such tiles are already laid out as the left factor of the next
//! product (FlashAttention-2, Dao 2023). The output is rescaled only when a row maximum exceeds the
//! one in use by more than `SLACK`. So every weight stays at or below `e^SLACK`, and the result is
//! the same up to rounding.

use super::blueprint::Blueprint;
use super::fragments::{Shape, copy, multiply, store, zeros};
use super::rows::{self, Grid};
use super::score::{self, HIDDEN, weight};
use butterfly_ir::{band::UNBOUNDED, scalar};
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// By how much a logit may exceed the maximum in use; `e^6` is far from overflow in f16.
const SLACK: f32 = 6.0;

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
    let q_tile = comptime!(blueprint.q_tile());
    let k_tile = comptime!(blueprint.k_tile);
    let block = comptime!(blueprint.block);
    let threads = comptime!(blueprint.threads());
    let head_dim = comptime!(blueprint.head_dim);
    let v_head_dim = comptime!(blueprint.v_head_dim);
    // Row pitches in shared memory, and where each operand starts, in elements.
    let d_pad = comptime!(blueprint.head_dim.next_multiple_of(16));
    let v_pad = comptime!(blueprint.v_head_dim.next_multiple_of(16));
    let d_pitch = comptime!(d_pad + 8);
    let v_pitch = comptime!(v_pad + 8);
    let k_at = comptime!(q_tile * d_pitch);
    let v_at = comptime!(k_at + k_tile * d_pitch);
    // Tiles of 8 columns.
    let s_count = comptime!((k_tile / 8) as usize);
    let o_count = comptime!((v_pad / 8) as usize);
    let size!(Pair) = 2usize;

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
        let lane = t % 32u32;
        let first_row = t / 32u32 * 16u32;
        // This thread's upper row, and its first column of every 8.
        let r = lane / 4u32;
        let column = lane % 4u32 * 2u32;
        // A load takes four matrices of 8 by 8; lane `8 i + j` gives the address of row `j` of
        // matrix `i`. For the left factor, and for values, which are read transposed, matrices 0
        // and 1 lie below each other; for keys they lie side by side.
        let down = lane % 16u32;
        let across = lane / 16u32 * 8u32;
        let k_down = lane / 16u32 * 8u32 + lane % 8u32;
        let k_across = lane / 8u32 % 2u32 * 8u32;

        let mut operands =
            SharedMemory::<F>::new_aligned(comptime!(blueprint.operand_elements as usize), 32usize);
        let mma = cmma::MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);

        let mut top = Array::<f32>::new(2usize);
        let mut sum = Array::<f32>::new(2usize);
        #[unroll]
        for h in 0..2usize {
            top[h] = HIDDEN.runtime();
            sum[h] = 0.0f32;
        }
        let mut seen = Array::<u32>::new(comptime!((k_tile / 2) as usize));
        let mut acc = Sequence::<Array<Vector<f32, Pair>>>::new();
        #[unroll]
        for _ in 0..o_count {
            acc.push(zeros::<Pair>());
        }

        copy::<F>(
            q,
            &mut operands,
            0u32,
            q_base,
            params[scalar::Q_TOKEN],
            base,
            begin,
            stop,
            comptime!(Shape {
                rows: q_tile,
                dim: head_dim,
                pad: d_pad,
                pitch: d_pitch,
                threads
            }),
        );

        let mut next = rows::next_key(&row, table, q0, q1, 0i32.runtime(), blueprint.clone());
        while next < UNBOUNDED {
            let k0 = u32::cast_from(next);
            sync_cube();
            copy::<F>(
                k,
                &mut operands,
                k_at.runtime(),
                k_base,
                params[scalar::K_TOKEN],
                k0,
                0u32,
                kv_len,
                comptime!(Shape {
                    rows: k_tile,
                    dim: head_dim,
                    pad: d_pad,
                    pitch: d_pitch,
                    threads
                }),
            );
            copy::<F>(
                v,
                &mut operands,
                v_at.runtime(),
                v_base,
                params[scalar::V_TOKEN],
                k0,
                0u32,
                kv_len,
                comptime!(Shape {
                    rows: k_tile,
                    dim: v_head_dim,
                    pad: v_pad,
                    pitch: v_pitch,
                    threads
                }),
            );
            sync_cube();

            // Scores.
            let mut s = Sequence::<Array<Vector<f32, Pair>>>::new();
            #[unroll]
            for _ in 0..s_count {
                s.push(zeros::<Pair>());
            }
            for d in 0..comptime!(d_pad / 16) {
                let at = (first_row + down) * d_pitch + d * 16u32 + across;
                let left = mma.load_matrix::<F, Pair>(
                    &operands.slice(at as usize, (at + 8u32) as usize),
                    cmma::MatrixIdent::A,
                    4usize,
                    false,
                );
                #[unroll]
                for c in 0..comptime!(s_count / 2) {
                    let at =
                        (k_down + comptime!(c as u32 * 16)) * d_pitch + d * 16u32 + k_across + k_at;
                    let pair = mma.load_matrix::<F, Pair>(
                        &operands.slice(at as usize, (at + 8u32) as usize),
                        cmma::MatrixIdent::B,
                        4usize,
                        false,
                    );
                    multiply(&mma, &left, &pair, s.index_mut(comptime!(2 * c)), 0usize);
                    multiply(
                        &mma,
                        &left,
                        &pair,
                        s.index_mut(comptime!(2 * c + 1)),
                        2usize,
                    );
                }
            }
            #[unroll]
            for c in 0..s_count {
                let tile = s.index_mut(c);
                #[unroll]
                for h in 0..2usize {
                    let mut pair = tile[h] * Vector::new(scale);
                    if comptime!(blueprint.score.softcap) {
                        #[unroll]
                        for i in 0..2usize {
                            pair[i] = score::capped(pair[i], params);
                        }
                    }
                    tile[h] = pair;
                }
            }

            let full = rows::is_full(
                &row,
                table,
                q0,
                q1,
                next,
                next + comptime!(k_tile as i32),
                blueprint.clone(),
            );
            if !full {
                rows::mark_seen(
                    &mut seen,
                    &row,
                    table,
                    i32::cast_from(base + first_row + r),
                    next + i32::cast_from(column),
                    blueprint.clone(),
                    comptime!(Grid {
                        rows: 2,
                        q_step: 8,
                        cols: k_tile / 4,
                        k_step: 8,
                        k_run: 2,
                    }),
                );
                #[unroll]
                for c in 0..s_count {
                    let tile = s.index_mut(c);
                    #[unroll]
                    for h in 0..2usize {
                        let mut shown = tile[h];
                        #[unroll]
                        for i in 0..2usize {
                            let at = comptime!(h * 2 * s_count + 2 * c + i);
                            shown[i] = select(seen[at] == 1u32, shown[i], HIDDEN.runtime());
                        }
                        tile[h] = shown;
                    }
                }
            }

            let mut most = Array::<f32>::new(2usize);
            #[unroll]
            for h in 0..2usize {
                let mut x = HIDDEN.runtime();
                #[unroll]
                for c in 0..s_count {
                    let pair = s.index(c)[h];
                    x = max(x, max(pair[0], pair[1]));
                }
                x = max(x, plane_shuffle_xor(x, 1u32));
                most[h] = max(x, plane_shuffle_xor(x, 2u32));
            }
            if plane_any(most[0] > top[0] + SLACK || most[1] > top[1] + SLACK) {
                #[unroll]
                for h in 0..2usize {
                    let grown = max(top[h], most[h]);
                    let fade = weight(top[h] - grown);
                    top[h] = grown;
                    sum[h] = sum[h] * fade;
                    #[unroll]
                    for c in 0..o_count {
                        let tile = acc.index_mut(c);
                        tile[h] = tile[h] * Vector::new(fade);
                    }
                }
            }
            #[unroll]
            for h in 0..2usize {
                #[unroll]
                for c in 0..s_count {
                    let tile = s.index_mut(c);
                    let mut pair = tile[h];
                    #[unroll]
                    for i in 0..2usize {
                        let share = select(
                            pair[i] > comptime!(HIDDEN / 2.0),
                            weight(pair[i] - top[h]),
                            0.0f32.runtime(),
                        );
                        sum[h] = sum[h] + share;
                        pair[i] = share;
                    }
                    tile[h] = pair;
                }
            }

            // Output.
            #[unroll]
            for i in 0..comptime!(s_count / 2) {
                let mut left = Array::<Vector<F, Pair>>::new(4usize);
                #[unroll]
                for h in 0..2usize {
                    left[h] = Vector::cast_from(s.index(comptime!(2 * i))[h]);
                    left[comptime!(2 + h)] = Vector::cast_from(s.index(comptime!(2 * i + 1))[h]);
                }
                #[unroll]
                for c in 0..comptime!(o_count / 2) {
                    let at = (down + comptime!(i as u32 * 16)) * v_pitch
                        + across
                        + comptime!(v_at + c as u32 * 16);
                    let pair = mma.load_matrix::<F, Pair>(
                        &operands.slice(at as usize, (at + 8u32) as usize),
                        cmma::MatrixIdent::B,
                        4usize,
                        true,
                    );
                    multiply(&mma, &left, &pair, acc.index_mut(comptime!(2 * c)), 0usize);
                    multiply(
                        &mma,
                        &left,
                        &pair,
                        acc.index_mut(comptime!(2 * c + 1)),
                        2usize,
                    );
                }
            }
            next = rows::next_key(
                &row,
                table,
                q0,
                q1,
                next + comptime!(k_tile as i32),
                blueprint.clone(),
            );
        }

        // The output goes through shared memory, so that whole rows are written.
        sync_cube();
        #[unroll]
        for h in 0..2usize {
            let mut total = sum[h] + plane_shuffle_xor(sum[h], 1u32);
            total += plane_shuffle_xor(total, 2u32);
            let end = score::end(top[h], total, params, head, blueprint.clone());
            let of_tile = first_row + r + comptime!(8 * h as u32);
            let at_query = base + of_tile;
            if column == 0u32 && at_query >= begin && at_query < stop {
                let heads = params[scalar::KV_HEADS] * comptime!(blueprint.group);
                lse[((CUBE_POS_Z * heads + head) * q_len + at_query - q_offset) as usize] = end.lse;
            }
            #[unroll]
            for c in 0..o_count {
                let pair = acc.index(c)[h];
                #[unroll]
                for i in 0..2usize {
                    let at = of_tile * v_pitch + column + comptime!((c * 8 + i) as u32);
                    operands[at as usize] = F::cast_from(pair[i] * end.factor);
                }
            }
        }
        sync_cube();
        let o_base = CUBE_POS_Z * params[scalar::O_BATCH] + head * params[scalar::O_HEAD]
            - q_offset * params[scalar::O_TOKEN];
        store::<F>(
            &operands,
            o,
            o_base,
            params[scalar::O_TOKEN],
            base,
            begin,
            stop,
            comptime!(Shape {
                rows: q_tile,
                dim: v_head_dim,
                pad: v_pad,
                pitch: v_pitch,
                threads
            }),
        );
    }
}
