//! Experts on the host.

use super::{Choose, Experts, Joined, Route, Section, Shared};
use crate::flex::elements::{Stored, elements, floats, rounded, sigmoid, tensor};
use crate::gate::flex::activate;
use crate::linear::flex::Bytes;
use crate::linear::rows::{Rows, multiply};
use crate::normed::flex::normed;
use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use butterfly_ir::model::{ExpertGroups, Scores};
use rayon::prelude::*;

pub(crate) fn route(op: &Route, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let mut shape = inputs[0].shape().to_vec();
    let width = shape[shape.len() - 1];
    let logits = elements::<f32>(&inputs[0]);
    let bias = op.router.biased.then(|| elements::<f32>(&inputs[1]));
    let (rows, all) = (logits.len() / width, op.all());
    let mut ids = vec![0i32; rows * all];
    let mut weights = vec![0.0f32; rows * all];
    let choices = ids.chunks_mut(all).zip(weights.chunks_mut(all));
    for (logits, (ids, weights)) in logits.chunks(width).zip(choices) {
        let (logits, gate) = logits.split_at(width - op.gates());
        let (ids, last) = ids.split_at_mut(op.chosen);
        let (weights, of_last) = weights.split_at_mut(op.chosen);
        choose(op, logits, bias.as_deref(), ids, weights);
        last.fill(i32::try_from(logits.len()).unwrap_or(i32::MAX));
        of_last.fill(match op.shared {
            Joined::None | Joined::Plain => 1.0,
            Joined::Gated => sigmoid(gate[0]),
        });
    }
    let last = shape.len() - 1;
    shape[last] = all;
    let bytes = burn::tensor::Bytes::from_elems(ids);
    let layout = burn_flex::Layout::contiguous(shape.clone().into());
    let ids = FlexTensor::new(bytes, layout, burn::tensor::DType::I32);
    vec![ids, tensor(weights, shape)]
}

pub(crate) fn choose_by_norm<E: Stored>(
    op: &Choose,
    mut inputs: Vec<FlexTensor>,
) -> Vec<FlexTensor> {
    let bias = inputs.split_off(op.of_normed(inputs.len()));
    let mut outputs = normed::<E>(&op.normed, inputs);
    let given: Vec<_> = outputs.pop().into_iter().chain(bias).collect();
    outputs.extend(route(&op.route, &given));
    outputs
}

/// The choice of one row.
fn choose(op: &Route, logits: &[f32], bias: Option<&[f32]>, ids: &mut [i32], weights: &mut [f32]) {
    let scores: Vec<f32> = match op.router.scores {
        Scores::Sigmoid => logits.iter().map(|x| sigmoid(*x)).collect(),
        Scores::Softmax => {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp: Vec<f32> = logits.iter().map(|x| (x - most).exp()).collect();
            let sum: f32 = exp.iter().sum();
            exp.iter().map(|x| x / sum).collect()
        }
    };
    let mut ranks = scores.clone();
    if let Some(bias) = bias {
        ranks.iter_mut().zip(bias).for_each(|(rank, x)| *rank += x);
    }
    if let Some(groups) = op.router.groups {
        leave_groups_out(groups, &mut ranks);
    }
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    // A stable sort: of equal ranks the smaller number comes first.
    order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]));
    let mut sum = 0.0;
    for ((id, weight), expert) in ids.iter_mut().zip(weights.iter_mut()).zip(order) {
        *id = i32::try_from(expert).unwrap_or(i32::MAX);
        *weight = scores[expert];
        sum += scores[expert];
    }
    let scale = op.scale();
    let factor = match op.router.normalised {
        true => scale / (sum + SMALLEST_SUM),
        false => scale,
    };
    weights.iter_mut().for_each(|weight| *weight *= factor);
}

/// Added to the sum of weights, so that none is divided by 0.
pub(super) const SMALLEST_SUM: f32 = 1e-20;

/// Leaves out all groups but the best ones.
fn leave_groups_out(groups: ExpertGroups, ranks: &mut [f32]) {
    let (count, chosen) = (groups.count as usize, groups.chosen as usize);
    let each = ranks.len() / count;
    let of_group = |ranks: &[f32]| {
        let mut best = [f32::NEG_INFINITY; 2];
        for rank in ranks {
            if *rank > best[0] {
                best = [*rank, best[0]];
            } else if *rank > best[1] {
                best[1] = *rank;
            }
        }
        best.iter().filter(|rank| rank.is_finite()).sum::<f32>()
    };
    let sums: Vec<f32> = ranks.chunks(each).map(of_group).collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| sums[*b].total_cmp(&sums[*a]));
    for group in &order[chosen..] {
        ranks[group * each..][..each].fill(f32::NEG_INFINITY);
    }
}

pub(crate) fn experts<E: Stored>(op: &Experts, inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let shape = inputs[0].shape().to_vec();
    let hidden = shape[shape.len() - 1];
    let given = elements::<E>(&inputs[0]);
    let x = floats(&given);
    let ids = inputs[1].to_contiguous();
    // Ids that no expert has stand for the last one.
    let number = |id: &i32| (*id as u32 as usize).min(op.count - 1);
    let ids: Vec<usize> = ids.storage::<i32>().iter().map(number).collect();
    let weights = elements::<f32>(&inputs[2]);
    let size = op.size();
    let chosen = ids.len() / (x.len() / hidden).max(1);
    let mut at = 3;
    let mut bytes = |sections: &[Section]| -> Vec<Bytes<'_>> {
        let bytes = sections.iter().map(|section| {
            let tensors = &inputs[at..at + section.tensors(op.count)];
            at += tensors.len();
            Bytes::of(tensors)
        });
        bytes.collect()
    };
    let (inner, outer) = (bytes(&op.inner), bytes(&op.outer));
    let biases = op
        .biased
        .then(|| [at, at + 1].map(|i| elements::<f32>(&inputs[i])));
    // The choices, sorted by expert; those of one expert in the order of rows.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|choice| ids[*choice]);
    let many = ids.len() > Experts::FEW;
    // Rows of all choices, or their sums.
    let mut y = vec![
        0.0f32;
        if op.apart {
            ids.len() * hidden
        } else {
            x.len()
        }
    ];
    for choices in order.chunk_by(|a, b| ids[*a] == ids[*b]) {
        let expert = ids[choices[0]];
        let rows = choices.len();
        let mut own = vec![0.0; rows * hidden];
        for (row, choice) in own.chunks_exact_mut(hidden).zip(choices) {
            row.copy_from_slice(&x[choice / chosen * hidden..][..hidden]);
        }
        let add = |y: &mut [f32], which: usize| {
            if let Some(biases) = &biases {
                let width = biases[which].len() / op.count;
                let bias = &biases[which][expert * width..][..width];
                for row in y.chunks_exact_mut(width) {
                    row.iter_mut().zip(bias).for_each(|(y, x)| *y += x);
                }
            }
        };
        let mut wide = vec![0.0; rows * 2 * size];
        let weight = of_expert(&op.inner, &inner, expert, hidden);
        multiply(&own, (rows, many), &weight, &mut wide);
        add(&mut wide, 0);
        let mut gated = vec![0.0; rows * size];
        let pairs = gated.par_chunks_mut(size).zip(wide.par_chunks(2 * size));
        pairs.for_each(|(out, row)| activate(op.activation, row, out));
        let weight = of_expert(&op.outer, &outer, expert, size);
        multiply(&gated, (rows, many), &weight, &mut own);
        add(&mut own, 1);
        for (row, choice) in own.chunks_exact(hidden).zip(choices) {
            if op.apart {
                y[choice * hidden..][..hidden].copy_from_slice(row);
                continue;
            }
            let out = &mut y[choice / chosen * hidden..][..hidden];
            let weight = weights[*choice];
            out.iter_mut().zip(row).for_each(|(y, x)| *y += weight * x);
        }
    }
    if op.apart {
        let rows = [inputs[1].shape().as_slice(), &[hidden]].concat();
        return vec![rounded::<E>(y, rows)];
    }
    add_shared::<E>(op.shared, inputs, &x, &mut y);
    vec![rounded::<E>(y, shape)]
}

/// The sums over k of weight * row → [.., H], of rows [.., k, H] and weights [.., k].
pub(crate) fn combine<E: Stored>(inputs: &[FlexTensor]) -> Vec<FlexTensor> {
    let mut shape = inputs[0].shape().to_vec();
    let hidden = shape.pop().expect("rows");
    let chosen = shape.pop().expect("several for each sum");
    shape.push(hidden);
    let given = elements::<E>(&inputs[0]);
    let (rows, weights) = (floats(&given), elements::<f32>(&inputs[1]));
    let mut y = vec![0.0f32; rows.len() / chosen];
    let sums = y.chunks_exact_mut(hidden);
    let terms = rows.chunks_exact(chosen * hidden);
    for ((y, rows), weights) in sums.zip(terms).zip(weights.chunks_exact(chosen)) {
        for (row, weight) in rows.chunks_exact(hidden).zip(weights) {
            y.iter_mut().zip(row).for_each(|(y, x)| *y += weight * x);
        }
    }
    vec![rounded::<E>(y, shape)]
}

/// Adds what is shared to the rows of y; `inputs` end with it.
fn add_shared<E: Stored>(shared: Shared, inputs: &[FlexTensor], x: &[f32], y: &mut [f32]) {
    let hidden = *inputs[0].shape().last().expect("rows");
    let (rows, gate) = match (shared, inputs) {
        (Shared::Rows, [.., rows]) => (rows, None),
        (Shared::Gated, [.., rows, gate]) => (rows, Some(elements::<f32>(gate))),
        _ => return,
    };
    let rows = elements::<E>(rows);
    let rows = floats(&rows);
    let all = y.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden));
    for ((y, x), row) in all.zip(rows.chunks_exact(hidden)) {
        let factor = match &gate {
            None => 1.0,
            Some(gate) => {
                let logit: f32 = x.iter().zip(gate.iter()).map(|(x, g)| x * g).sum();
                1.0 / (1.0 + (-logit).exp())
            }
        };
        y.iter_mut().zip(row).for_each(|(y, x)| *y += factor * x);
    }
}

/// The rows of an expert, of `k` elements each.
fn of_expert<'a>(
    sections: &[Section],
    bytes: &'a [Bytes<'_>],
    expert: usize,
    k: usize,
) -> Vec<Rows<'a>> {
    let rows = |(section, bytes): (&Section, &'a Bytes<'_>)| {
        let sizes = section.sizes(k).expect("the inputs were checked");
        let tensors = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| match section.joined {
                true => &bytes.tensor(i)[expert * size..][..*size],
                false => bytes.tensor(expert * sizes.len() + i),
            });
        let tensors: Vec<&[u8]> = tensors.collect();
        let rows = Rows::new(section.storage, [section.rows, k], &tensors);
        rows.expect("the inputs were checked")
    };
    sections.iter().zip(bytes).map(rows).collect()
}
