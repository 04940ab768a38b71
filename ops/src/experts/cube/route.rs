//! The choice of experts.

use super::super::{Joined, Route};
use crate::cube::launch::{array, empty, grid, plane};
use crate::cube::unit::sum_of_units;
use ::cubecl::prelude::*;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use butterfly_ir::model::Scores;

/// Units of a workgroup, which chooses for one row: a plane, where planes have so many.
pub(super) const UNITS: u32 = 32;
/// The most groups of experts.
const GROUPS: u32 = 64;
/// Below every score.
const LEAST: f32 = -3.0e38;
/// Added to the sum of weights, so that none is divided by 0.
const SMALLEST_SUM: f32 = 1e-20;

/// What the kernel knows when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    experts: u32,
    chosen: u32,
    /// Logits of a row, and experts of a choice.
    pub(super) width: u32,
    all: u32,
    shared: Joined,
    sigmoid: bool,
    biased: bool,
    normalised: bool,
    /// Groups, and those that take part.
    groups: u32,
    chosen_groups: u32,
    /// Whether the workgroup is a plane.
    pub(super) plane: bool,
}

impl Shape {
    /// That of a choice by rows of `width` logits.
    pub(super) fn of(op: &Route, width: usize, plane: bool) -> Self {
        let groups = op.router.groups;
        Self {
            experts: (width - op.gates()) as u32,
            chosen: op.chosen as u32,
            width: width as u32,
            all: op.all() as u32,
            shared: op.shared,
            sigmoid: op.router.scores == Scores::Sigmoid,
            biased: op.router.biased,
            normalised: op.router.normalised,
            groups: groups.map_or(1, |groups| groups.count),
            chosen_groups: groups.map_or(1, |groups| groups.chosen),
            plane,
        }
    }
}

pub(crate) fn route<R: CubeRuntime>(op: &Route, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let logits = inputs.next().expect("the inputs were counted");
    let bias = inputs.next();
    let mut shape = logits.shape().to_vec();
    let last = shape.len() - 1;
    let width = std::mem::replace(&mut shape[last], op.all());
    let rows = logits.meta.num_elements() / width;
    let ids = empty(&logits, shape.clone(), DType::I32);
    let weights = empty(&logits, shape, DType::F32);
    if rows > 0 {
        // SAFETY: workgroups beyond the last row do nothing; without a bias any buffer stands for it.
        unsafe {
            route_kernel::launch_unchecked::<R>(
                &logits.client,
                grid(rows as u32),
                CubeDim::new_1d(UNITS),
                array(&logits),
                array(bias.as_ref().unwrap_or(&logits)),
                array(&ids),
                array(&weights),
                rows as u32,
                op.scale(),
                Shape::of(op, width, plane(&logits.client) == UNITS),
            );
        }
    }
    vec![ids, weights]
}

#[cube(launch_unchecked)]
fn route_kernel(
    logits: &Array<f32>,
    bias: &Array<f32>,
    ids: &mut Array<i32>,
    weights: &mut Array<f32>,
    rows: u32,
    scale: f32,
    #[comptime] shape: Shape,
) {
    let width = comptime!(shape.width);
    let mut scores = SharedMemory::<f32>::new(comptime!(width as usize));
    let row = CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X;
    if row >= rows {
        terminate!();
    }
    let mut e = UNIT_POS;
    while e < width {
        scores[e as usize] = logits[(row * width + e) as usize];
        e += UNITS;
    }
    meet(comptime!(shape.plane));
    choose(&mut scores, bias, ids, weights, row, scale, shape);
}

/// Waits for all units that choose.
#[cube]
fn meet(#[comptime] plane: bool) {
    if comptime!(plane) {
        sync_plane();
    } else {
        sync_cube();
    }
}

/// Chooses for a row whose logits are in shared memory, and overwrites these; [`UNITS`] units call this, the first of the
/// workgroup.
#[cube]
pub(super) fn choose(
    scores: &mut SharedMemory<f32>,
    bias: &Array<f32>,
    ids: &mut Array<i32>,
    weights: &mut Array<f32>,
    row: u32,
    scale: f32,
    #[comptime] shape: Shape,
) {
    let experts = comptime!(shape.experts);
    let mut ranks = SharedMemory::<f32>::new(comptime!(experts as usize));
    let mut best = SharedMemory::<f32>::new(comptime!(GROUPS as usize));
    let mut numbers = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let mut own_weights = SharedMemory::<f32>::new(comptime!(shape.chosen as usize));
    let first = row * comptime!(shape.all);
    let mut most = 0.0f32;
    let mut sum = 1.0f32;
    if comptime!(!shape.sigmoid) {
        let mut own = LEAST.runtime();
        let mut e = UNIT_POS;
        while e < experts {
            own = max(own, scores[e as usize]);
            e += UNITS;
        }
        most = largest(own, &mut best, comptime!(shape.plane));
        let mut part = 0.0f32;
        let mut e = UNIT_POS;
        while e < experts {
            part += (scores[e as usize] - most).exp();
            e += UNITS;
        }
        sum = total(part, &mut best, comptime!(shape.plane));
    }
    let mut e = UNIT_POS;
    while e < experts {
        let logit = scores[e as usize];
        let score = if comptime!(shape.sigmoid) {
            1.0f32 / (1.0f32 + (-logit).exp())
        } else {
            (logit - most).exp() / sum
        };
        scores[e as usize] = score;
        ranks[e as usize] = score;
        if comptime!(shape.biased) {
            ranks[e as usize] += bias[e as usize];
        }
        e += UNITS;
    }
    meet(comptime!(shape.plane));
    if comptime!(shape.groups > 1) {
        leave_groups_out(&mut ranks, &mut best, shape);
    }
    let mut together = 0.0f32;
    for j in 0..comptime!(shape.chosen) {
        // The unit's best, and of equal ones the first.
        let mut own = LEAST.runtime();
        let mut number = u32::MAX.runtime();
        let mut e = UNIT_POS;
        while e < experts {
            let rank = ranks[e as usize];
            if rank > own {
                own = rank;
                number = e;
            }
            e += UNITS;
        }
        let number = best_of_all(own, number, &mut best, &mut numbers, comptime!(shape.plane));
        // Ranks that are NaN choose no expert: any but the same one again.
        let expert = min(number, comptime!(experts - 1).runtime());
        let weight = scores[expert as usize];
        together += weight;
        if UNIT_POS == 0u32 {
            ranks[expert as usize] = LEAST.runtime();
            ids[(first + j) as usize] = i32::cast_from(expert);
            own_weights[j as usize] = weight;
        }
        meet(comptime!(shape.plane));
    }
    let mut factor = scale;
    if comptime!(shape.normalised) {
        factor = scale / (together + SMALLEST_SUM);
    }
    let mut j = UNIT_POS;
    while j < comptime!(shape.chosen) {
        weights[(first + j) as usize] = own_weights[j as usize] * factor;
        j += UNITS;
    }
    if comptime!(shape.shared != Joined::None) {
        let at = (first + comptime!(shape.chosen)) as usize;
        let mut weight = 1.0f32.runtime();
        if comptime!(shape.shared == Joined::Gated) {
            let logit = scores[experts as usize];
            weight = 1.0f32 / (1.0f32 + (-logit).exp());
        }
        if UNIT_POS == 0u32 {
            ids[at] = i32::cast_from(experts);
            weights[at] = weight;
        }
    }
}

/// Leaves out all groups but the best ones. All units call this.
#[cube]
fn leave_groups_out(
    ranks: &mut SharedMemory<f32>,
    best: &mut SharedMemory<f32>,
    #[comptime] shape: Shape,
) {
    let each = comptime!(shape.experts / shape.groups);
    let mut group = UNIT_POS;
    while group < comptime!(shape.groups) {
        let mut first = LEAST.runtime();
        let mut second = LEAST.runtime();
        for i in 0..each {
            let rank = ranks[(group * each + i) as usize];
            if rank > first {
                second = first;
                first = rank;
            } else if rank > second {
                second = rank;
            }
        }
        // A group may have one expert alone.
        best[group as usize] =
            first + select(comptime!(each > 1).runtime(), second, 0.0f32.runtime());
        group += UNITS;
    }
    meet(comptime!(shape.plane));
    let mut group = UNIT_POS;
    while group < comptime!(shape.groups) {
        let own = best[group as usize];
        let mut before = 0u32;
        for other in 0..comptime!(shape.groups) {
            let sum = best[other as usize];
            if sum > own || (sum == own && other < group) {
                before += 1u32;
            }
        }
        if before >= comptime!(shape.chosen_groups) {
            for i in 0..each {
                ranks[(group * each + i) as usize] = LEAST.runtime();
            }
        }
        group += UNITS;
    }
    meet(comptime!(shape.plane));
}

/// The number that belongs to the best rank of all units, and of equal ones the smallest.
#[cube]
fn best_of_all(
    own: f32,
    number: u32,
    best: &mut SharedMemory<f32>,
    numbers: &mut SharedMemory<u32>,
    #[comptime] plane: bool,
) -> u32 {
    if comptime!(plane) {
        let most = plane_max(own);
        plane_min(select(own == most, number, u32::MAX.runtime()))
    } else {
        best[UNIT_POS as usize] = own;
        numbers[UNIT_POS as usize] = number;
        let mut step = comptime!(UNITS / 2).runtime();
        while step > 0u32 {
            sync_cube();
            if UNIT_POS < step {
                let (own, other) = (UNIT_POS as usize, (UNIT_POS + step) as usize);
                let (rank, number) = (best[other], numbers[other]);
                if rank > best[own] || (rank == best[own] && number < numbers[own]) {
                    best[own] = rank;
                    numbers[own] = number;
                }
            }
            step /= 2u32;
        }
        sync_cube();
        let number = numbers[0];
        sync_cube();
        number
    }
}

#[cube]
fn largest(own: f32, shared: &mut SharedMemory<f32>, #[comptime] plane: bool) -> f32 {
    if comptime!(plane) {
        plane_max(own)
    } else {
        shared[UNIT_POS as usize] = own;
        let mut step = comptime!(UNITS / 2).runtime();
        while step > 0u32 {
            sync_cube();
            if UNIT_POS < step {
                let other = shared[(UNIT_POS + step) as usize];
                shared[UNIT_POS as usize] = max(shared[UNIT_POS as usize], other);
            }
            step /= 2u32;
        }
        sync_cube();
        let all = shared[0];
        sync_cube();
        all
    }
}

#[cube]
fn total(own: f32, shared: &mut SharedMemory<f32>, #[comptime] plane: bool) -> f32 {
    sum_of_units(own, shared, UNITS, comptime!(if plane { UNITS } else { 0 }))
}
