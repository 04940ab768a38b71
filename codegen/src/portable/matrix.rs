//! Many queries, on matrix units: 16x16x16 products with f32 sums.
//!
//! Each subgroup of 32 threads owns 16 query rows and never waits for another one but
//! to stage keys and values. Scores pass through shared memory once, where two threads
//! share a row. The output stays in accumulators: it is rescaled, through shared
//! memory, only when a row maximum has grown by more than `SLACK` since the last time,
//! which keeps every weight below `e^SLACK` and changes no result.

use super::blueprint::Blueprint;
use super::fragments::{SIDE, Shape, copy, operand, put, zeros};
use super::prefill::{HIDDEN, MINUS_INFINITY, weight};
use super::rows::{self, Grid};
use butterfly_ir::band::UNBOUNDED;
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// How much a logit may exceed the maximum in use: `e^6` is far from overflow in f16.
const SLACK: f32 = 6.0;

/// Tiled attention with an online softmax; the buffers are those of `butterfly_ir::Kernel`.
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
    #[comptime] plan: Blueprint,
) {
    let side = comptime!(SIDE as u32);
    let q_tile = comptime!(plan.q_tile());
    let k_tile = comptime!(plan.k_tile);
    let block = comptime!(plan.block);
    let threads = comptime!(plan.threads());
    let head_dim = comptime!(plan.head_dim);
    let v_head_dim = comptime!(plan.v_head_dim);
    // Rows of shared memory, in elements, and where each operand starts.
    let d_pad = comptime!(plan.head_dim.next_multiple_of(16));
    let v_pad = comptime!(plan.v_head_dim.next_multiple_of(16));
    let d_pitch = comptime!(d_pad + 8);
    let v_pitch = comptime!(v_pad + 8);
    let p_pitch = comptime!(k_tile + 8);
    let s_pitch = comptime!(k_tile + 4);
    let k_at = comptime!(q_tile * d_pitch);
    let v_at = comptime!(k_at + k_tile * d_pitch);
    let p_at = comptime!(v_at + k_tile * v_pitch);
    // Accumulators, and how many of them fit the scores' place at a time.
    let s_count = comptime!((k_tile / 16) as usize);
    let o_count = comptime!((v_pad / 16) as usize);
    let passes = comptime!(o_count.div_ceil(s_count));
    let half = comptime!((k_tile / 2) as usize);

    let q_len = params[0];
    let kv_len = params[1];
    let q_offset = params[2];
    let scale = f32::reinterpret(params[6]);

    let tiles = comptime!(plan.block.div_ceil(plan.q_tile()));
    let b = q_offset / block + CUBE_POS_X / tiles;
    let base = b * block + CUBE_POS_X % tiles * q_tile;
    let stop = min(min(base + q_tile, b * block + block), q_offset + q_len);
    let begin = max(base, q_offset);

    if begin < stop {
        let q0 = i32::cast_from(begin);
        let q1 = i32::cast_from(stop) - 1i32;
        let head = CUBE_POS_Y;
        let kv_head = head / comptime!(plan.group);
        // Positions are absolute: `q_base` may wrap below zero and comes back in the sum.
        let q_base = CUBE_POS_Z * params[7] + head * params[8] - q_offset * params[9];
        let k_base = CUBE_POS_Z * params[10] + kv_head * params[11];
        let v_base = CUBE_POS_Z * params[13] + kv_head * params[14];
        let row = rows::of_block(params, offsets, b, plan.clone());
        let t = UNIT_POS;
        let lane = t % 32u32;
        let first_row = t / 32u32 * side;
        let r = lane / 2u32;
        let h = lane % 2u32;

        let mut operands =
            SharedMemory::<F>::new_aligned(comptime!(plan.operand_elements as usize), 32usize);
        let mut scores =
            SharedMemory::<f32>::new_aligned(comptime!(plan.p_words as usize), 32usize);
        // Each subgroup's place: its scores, then one number a row.
        let s_at = t / 32u32 * comptime!(16 * (k_tile + 4) + 16);
        let s_end = s_at + comptime!(16 * (k_tile + 4));

        let mut top = HIDDEN.runtime();
        let mut sum = 0.0f32.runtime();
        let mut s = Array::<f32>::new(half);
        let mut seen = Array::<u32>::new(half);
        let mut acc = Sequence::<cmma::Matrix<f32>>::new();
        #[unroll]
        for _ in 0..o_count {
            acc.push(zeros());
        }

        copy::<F>(
            q,
            &mut operands,
            0u32,
            q_base,
            params[9],
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

        let mut next = rows::next_key(&row, table, q0, q1, 0i32.runtime(), plan.clone());
        while next < UNBOUNDED {
            let k0 = u32::cast_from(next);
            sync_cube();
            copy::<F>(
                k,
                &mut operands,
                k_at.runtime(),
                k_base,
                params[12],
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
                params[15],
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
            let mut product = Sequence::<cmma::Matrix<f32>>::new();
            #[unroll]
            for _ in 0..s_count {
                product.push(zeros());
            }
            for d in 0..comptime!(d_pad / 16) {
                let left = operand::<F>(
                    &operands,
                    first_row * d_pitch + d * side,
                    d_pitch,
                    cmma::MatrixIdent::A,
                    cmma::MatrixLayout::RowMajor,
                );
                #[unroll]
                for c in 0..s_count {
                    let right = operand::<F>(
                        &operands,
                        comptime!(k_at + c as u32 * 16 * d_pitch) + d * side,
                        d_pitch,
                        cmma::MatrixIdent::B,
                        cmma::MatrixLayout::ColMajor,
                    );
                    let sums = product.index(c);
                    cmma::execute::<F, F, f32, f32>(&left, &right, sums, sums);
                }
            }
            sync_plane();
            #[unroll]
            for c in 0..s_count {
                put(
                    &mut scores,
                    s_at + comptime!(c as u32 * 16),
                    product.index(c),
                    s_pitch,
                );
            }
            sync_plane();

            // Two threads share a row, each with every other key.
            #[unroll]
            for j in 0..half {
                let at = s_at + r * s_pitch + comptime!(2 * j as u32) + h;
                s[j] = scores[at as usize] * scale;
            }
            let full = rows::is_full(
                &row,
                table,
                q0,
                q1,
                next,
                next + comptime!(k_tile as i32),
                plan.clone(),
            );
            if !full {
                rows::mark_seen(
                    &mut seen,
                    &row,
                    table,
                    i32::cast_from(base + first_row + r),
                    next + i32::cast_from(h),
                    plan.clone(),
                    comptime!(Grid {
                        rows: 1,
                        q_step: 0,
                        cols: k_tile / 2,
                        k_step: 2
                    }),
                );
                #[unroll]
                for j in 0..half {
                    s[j] = select(seen[j] == 1u32, s[j], HIDDEN.runtime());
                }
            }
            let mut most = s[0];
            #[unroll]
            for j in 1..half {
                most = max(most, s[j]);
            }
            most = max(most, plane_shuffle_xor(most, 1u32));
            if plane_any(most > top + SLACK) {
                let grown = max(top, most);
                let fade = weight(top - grown);
                top = grown;
                sum *= fade;
                #[unroll]
                for pass in 0..passes {
                    let first = comptime!(pass * s_count);
                    let last = comptime!((first + s_count).min(o_count));
                    sync_plane();
                    #[unroll]
                    for c in first..last {
                        let at = s_at + comptime!((c - first) as u32 * 16);
                        put(&mut scores, at, acc.index(c), s_pitch);
                    }
                    sync_plane();
                    #[unroll]
                    for j in 0..comptime!((last - first) * 8) {
                        let at = s_at + r * s_pitch + comptime!(2 * j as u32) + h;
                        scores[at as usize] = scores[at as usize] * fade;
                    }
                    sync_plane();
                    #[unroll]
                    for c in first..last {
                        let at = s_at + comptime!((c - first) as u32 * 16);
                        cmma::load_with_layout::<f32, f32>(
                            acc.index(c),
                            &scores.slice(at as usize, (at + 256u32) as usize),
                            s_pitch,
                            cmma::MatrixLayout::RowMajor,
                        );
                    }
                }
            }
            #[unroll]
            for j in 0..half {
                let share = select(
                    s[j] > comptime!(HIDDEN / 2.0),
                    weight(s[j] - top),
                    0.0f32.runtime(),
                );
                sum += share;
                let at = p_at + (first_row + r) * p_pitch + comptime!(2 * j as u32) + h;
                operands[at as usize] = F::cast_from(share);
            }
            sync_plane();

            // Output.
            #[unroll]
            for i in 0..s_count {
                let left = operand::<F>(
                    &operands,
                    p_at + first_row * p_pitch + comptime!(i as u32 * 16),
                    p_pitch,
                    cmma::MatrixIdent::A,
                    cmma::MatrixLayout::RowMajor,
                );
                #[unroll]
                for c in 0..o_count {
                    let right = operand::<F>(
                        &operands,
                        comptime!(v_at + i as u32 * 16 * v_pitch + c as u32 * 16).runtime(),
                        v_pitch,
                        cmma::MatrixIdent::B,
                        cmma::MatrixLayout::RowMajor,
                    );
                    let sums = acc.index(c);
                    cmma::execute::<F, F, f32, f32>(&left, &right, sums, sums);
                }
            }
            next = rows::next_key(
                &row,
                table,
                q0,
                q1,
                next + comptime!(k_tile as i32),
                plan.clone(),
            );
        }

        // The result: one number a row, then the rows.
        let total = sum + plane_shuffle_xor(sum, 1u32);
        let at_query = base + first_row + r;
        sync_plane();
        if h == 0u32 {
            scores[(s_end + r) as usize] = select(total > 0.0f32, 1.0f32 / total, 0.0f32.runtime());
            if at_query >= begin && at_query < stop {
                let heads = params[3] * comptime!(plan.group);
                // A sum with a run-time term, so that no constant is infinite.
                let mut value = f32::reinterpret(MINUS_INFINITY + (total > 0.0f32) as u32);
                if total > 0.0f32 {
                    value = top + Log::ln(total);
                }
                lse[((CUBE_POS_Z * heads + head) * q_len + at_query - q_offset) as usize] = value;
            }
        }
        let o_base = CUBE_POS_Z * params[16] + head * params[17] - q_offset * params[18];
        let o_stride = params[18];
        #[unroll]
        for pass in 0..passes {
            let first = comptime!(pass * s_count);
            let last = comptime!((first + s_count).min(o_count));
            let width = comptime!((last - first) as u32 * 16);
            sync_plane();
            #[unroll]
            for c in first..last {
                let at = s_at + comptime!((c - first) as u32 * 16);
                put(&mut scores, at, acc.index(c), s_pitch);
            }
            sync_plane();
            for i in range_stepped(lane, comptime!(16 * width), 32u32) {
                let r = i / width;
                let column = comptime!(first as u32 * 16) + i % width;
                let at = base + first_row + r;
                if at >= begin && at < stop && column < v_head_dim {
                    let x = scores[(s_at + r * s_pitch + i % width) as usize]
                        * scores[(s_end + r) as usize];
                    o[(o_base + at * o_stride + column) as usize] = F::cast_from(x);
                }
            }
        }
    }
}
