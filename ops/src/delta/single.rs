//! The gated delta rule for a single token, in one kernel.
//!
//! A workgroup computes a head of v from the convolution to the gated norm, so that nothing but results leaves it. The
//! heads of q and k are computed again by each head of v that they serve. State goes through registers, in vectors of
//! neighbouring columns, and is asked for first: all that is computed before it is needed happens while it comes.
//!
//! Results have the same bits as those of the kernels for many tokens. What these compute for one token is shared
//! (`token.rs`), and sums over the rows of the state have the order of `walk.rs`: row `r` belongs to class
//! `r % classes`, the rows of a class are added one after the other, and the sums of classes as a tree, neighbours
//! first. Teams of units own neighbouring classes, each team all columns.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::layout::Layout;
use super::token::{
    change_of, convolved, gate, gated, k_head_of, keep, normalised, read_of, squared, updated,
};
use crate::Delta;
use crate::cube::launch::{array, empty};
use crate::cube::unit::sum_of_units;
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Computes the outputs for one token of each sequence.
pub(super) fn delta<R: CubeRuntime, F: FloatElement>(
    op: &Delta,
    inputs: &[CubeTensor<R>; 7],
    layout: Layout,
) -> Vec<CubeTensor<R>> {
    let [rows, convolution, decay, bias, norm, last, state] = inputs;
    let batch = rows.shape()[0];
    let out = empty(rows, [batch, 1, op.v_heads * op.v_dim], F::dtype());
    let kept = empty(rows, last.shape(), F::dtype());
    let new_state = empty(rows, state.shape(), DType::F32);
    // SAFETY: the shapes were checked, each tensor is contiguous but for the sequences of the rows, and there is a
    // workgroup for each head of v of each sequence. Rows of the state divide into vectors.
    unsafe {
        single::launch_unchecked::<F, R>(
            &rows.client,
            CubeCount::Static(1, op.v_heads as u32, batch as u32),
            CubeDim::new_1d(layout.units),
            layout.lanes as usize,
            array(rows),
            array(convolution),
            array(decay),
            array(bias),
            array(norm),
            array(last),
            array(state),
            array(&out),
            array(&kept),
            array(&new_state),
            rows.meta.strides()[0] as u32,
            op.epsilon,
            layout,
        );
    }
    vec![out, kept, new_state]
}

/// Sum of numbers, a power of two of them: neighbours first, as by shuffles.
#[cube]
fn tree(numbers: &mut Array<f32>, #[comptime] count: u32) -> f32 {
    #[unroll]
    for step in 0..comptime!(count.trailing_zeros()) {
        #[unroll]
        for pair in 0..comptime!(count >> (step + 1)) {
            let at = comptime!((pair << (step + 1)) as usize);
            let other = numbers[comptime!(((pair << (step + 1)) + (1u32 << step)) as usize)];
            numbers[at] += other;
        }
    }
    numbers[0]
}

/// A workgroup computes a head of v.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn single<F: Float, N: Size>(
    rows: &Array<F>,
    convolution: &Array<f32>,
    decays: &Array<f32>,
    biases: &Array<f32>,
    norm: &Array<f32>,
    last: &Array<F>,
    state: &Array<Vector<f32, N>>,
    out: &mut Array<F>,
    kept: &mut Array<F>,
    new_state: &mut Array<Vector<f32, N>>,
    row_batch: u32,
    epsilon: f32,
    #[comptime] layout: Layout,
) {
    let shape = comptime!(layout.shape);
    let k_dim = comptime!(layout.shape.k_dim);
    let v_dim = comptime!(layout.shape.v_dim);
    let lanes = comptime!(layout.lanes);
    let teams = comptime!(layout.teams);
    let longer = comptime!(layout.head());
    let vectors = comptime!(layout.vectors());
    let classes = comptime!(layout.classes());
    let own = comptime!(layout.own());
    let steps = comptime!(layout.steps());

    let (head, sequence) = (CUBE_POS_Y, CUBE_POS_Z);
    let unit = UNIT_POS;
    let in_team = unit < comptime!(layout.teams * layout.vectors());
    // Units in no team compute as the last one does, and write nothing.
    let team = min(unit / vectors, comptime!(layout.teams - 1).runtime());
    let vector = unit % vectors;
    let of_head = sequence * comptime!(layout.shape.v_heads) + head;
    let state_base = of_head * comptime!(layout.shape.k_dim * layout.vectors()) + vector;

    let mut memory = Array::<Vector<f32, N>>::new(comptime!((own * steps) as usize));
    #[unroll]
    for c in 0..own {
        #[unroll]
        for i in 0..steps {
            let row = comptime!(i * classes + c) + team * own;
            memory[comptime!((c * steps + i) as usize)] =
                state[(state_base + row * vectors) as usize];
        }
    }
    let row_base = sequence * row_batch;
    let element = min(unit, comptime!(layout.shape.v_dim - 1).runtime());
    let z = row_base + comptime!(layout.shape.channels()) + head * v_dim + element;
    let z = f32::cast_from(rows[z as usize]);
    let weight = norm[element as usize];
    let (decay, bias) = (decays[head as usize], biases[head as usize]);
    let forget = gate(rows, 0u32.runtime(), row_base, head, decay, bias, shape);
    let learn = gate(rows, 1u32.runtime(), row_base, head, decay, bias, shape);

    // q, k and v after the convolution: three heads, each with room for the longer.
    let mut mixed = SharedMemory::<f32>::new(comptime!((3 * longer) as usize));
    let mut shared = SharedMemory::<f32>::new(comptime!((layout.units + longer) as usize));
    let k_head = k_head_of(head, shape);
    // The first head of v that this head of k serves, which keeps its rows of q and k.
    let keeper = if comptime!(layout.shape.tiled) {
        k_head
    } else {
        k_head * comptime!(layout.shape.v_heads / layout.shape.k_heads)
    };
    let (group, within) = (unit / longer, unit % longer);
    #[unroll]
    for turn in 0..comptime!(3u32.div_ceil(layout.heads())) {
        // 0 is q, 1 is k, and 2 is v.
        let which = comptime!(turn * layout.heads()) + group;
        let is_v = which >= 2u32;
        let mut dim = k_dim.runtime();
        let mut start =
            which * comptime!(layout.shape.k_heads * layout.shape.k_dim) + k_head * k_dim;
        if is_v {
            dim = v_dim.runtime();
            start = comptime!(2 * layout.shape.k_heads * layout.shape.k_dim) + head * v_dim;
        }
        let channel = start + min(within, dim - 1u32);
        let mut value = convolved(
            rows,
            convolution,
            last,
            channel,
            0u32.runtime(),
            sequence,
            row_batch,
            0u32.runtime(),
            shape,
        );
        let mut square = squared(value);
        if within >= dim {
            square = 0.0f32;
        }
        let square = sum_of_units(square, &mut shared, longer, comptime!(layout.shape.plane));
        if !is_v {
            value = normalised(value, square, which == 0u32, shape);
        }
        if group < comptime!(layout.heads()) && which < 3u32 && within < dim {
            mixed[(which * longer + within) as usize] = value;
            if is_v || head == keeper {
                keep(
                    rows,
                    last,
                    kept,
                    channel,
                    1u32.runtime(),
                    sequence,
                    row_batch,
                    0u32.runtime(),
                    shape,
                );
            }
        }
    }
    sync_cube();

    // What the team's rows add to `S^T k`, `S^T q` and `k . q`. Columns are stored lane by lane, so that neighbouring
    // units write neighbouring numbers.
    let mut by_k = Array::<Vector<f32, N>>::new(comptime!(own as usize));
    let mut by_q = Array::<Vector<f32, N>>::new(comptime!(own as usize));
    let mut both = Array::<f32>::new(comptime!(own as usize));
    #[unroll]
    for c in 0..own {
        let mut sum_by_k = Vector::<f32, N>::new(0.0f32);
        let mut sum_by_q = Vector::<f32, N>::new(0.0f32);
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..steps {
            let row = comptime!(i * classes + c) + team * own;
            let q = mixed[row as usize];
            let k = mixed[(row + longer) as usize];
            let (q_all, k_all) = (Vector::<f32, N>::new(q), Vector::<f32, N>::new(k));
            let values = memory[comptime!((c * steps + i) as usize)];
            sum_by_k = fma(values, k_all, sum_by_k);
            sum_by_q = fma(values, q_all, sum_by_q);
            sum = fma(k, q, sum);
        }
        by_k[c as usize] = sum_by_k;
        by_q[c as usize] = sum_by_q;
        both[c as usize] = sum;
    }
    let mut sums = SharedMemory::<f32>::new(comptime!((2 * teams * v_dim) as usize));
    let mut products = SharedMemory::<f32>::new(comptime!(teams as usize));
    let mut numbers = Array::<f32>::new(comptime!(own.max(layout.teams) as usize));
    #[unroll]
    for lane in 0..lanes {
        let to = team * v_dim + comptime!(lane * vectors) + vector;
        #[unroll]
        for c in 0..own {
            let of_class = by_k[c as usize];
            numbers[c as usize] = of_class[lane as usize];
        }
        let sum_by_k = tree(&mut numbers, own);
        #[unroll]
        for c in 0..own {
            let of_class = by_q[c as usize];
            numbers[c as usize] = of_class[lane as usize];
        }
        let sum_by_q = tree(&mut numbers, own);
        if in_team {
            sums[to as usize] = sum_by_k;
            sums[(to + comptime!(teams * v_dim)) as usize] = sum_by_q;
        }
    }
    let sum = tree(&mut both, own);
    if in_team && vector == 0u32 {
        products[team as usize] = sum;
    }
    sync_cube();

    let mut changes = SharedMemory::<f32>::new(comptime!(v_dim as usize));
    let mut read = SharedMemory::<f32>::new(comptime!(v_dim as usize));
    if unit < v_dim {
        let column = unit % vectors * lanes + unit / vectors;
        #[unroll]
        for t in 0..teams {
            numbers[t as usize] = sums[(comptime!(t * v_dim) + unit) as usize];
        }
        let by_k = tree(&mut numbers, teams);
        #[unroll]
        for t in 0..teams {
            numbers[t as usize] = sums[(comptime!((teams + t) * v_dim) + unit) as usize];
        }
        let by_q = tree(&mut numbers, teams);
        #[unroll]
        for t in 0..teams {
            numbers[t as usize] = products[t as usize];
        }
        let both = tree(&mut numbers, teams);
        let value = mixed[(column + comptime!(2 * longer)) as usize];
        let change = change_of(value, by_k, forget, learn);
        changes[unit as usize] = change;
        read[column as usize] = read_of(by_q, both, forget, change);
    }
    sync_cube();

    let mut change = Vector::<f32, N>::new(changes[vector as usize]);
    #[unroll]
    for lane in 1..lanes {
        change[lane as usize] = changes[(comptime!(lane * vectors) + vector) as usize];
    }
    let forget_all = Vector::<f32, N>::new(forget);
    if in_team {
        #[unroll]
        for c in 0..own {
            #[unroll]
            for i in 0..steps {
                let row = comptime!(i * classes + c) + team * own;
                let key = Vector::<f32, N>::new(mixed[(row + longer) as usize]);
                let values = memory[comptime!((c * steps + i) as usize)];
                new_state[(state_base + row * vectors) as usize] =
                    updated(values, forget_all, key, change);
            }
        }
    }
    let x = read[element as usize];
    let square = sum_of_units(
        squared(x),
        &mut shared,
        v_dim,
        comptime!(layout.shape.plane),
    );
    if unit < v_dim {
        let result = gated(x, square, weight, z, epsilon, shape);
        out[(of_head * v_dim + unit) as usize] = F::cast_from(result);
    }
}
