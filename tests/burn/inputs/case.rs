//! Every operation with the smallest inputs that it accepts, and what breaks them.

use crate::{latent, sparsity};
use burn::tensor::{DType, Shape};
use butterfly::ops::{Activation, AddNorm, GateOutput, Norm, Operation as LayerOperation, Project};
use butterfly::{Append, Attend, Counts, Delta, Operation, Plan};
use proptest::prelude::*;

/// An operation, and the smallest inputs that it accepts.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) operation: Operation,
    pub(super) inputs: Vec<(Vec<usize>, DType)>,
    /// Dimensions that may be larger: input and dimension.
    pub(super) may_grow: Vec<(usize, usize)>,
    /// Inputs whose element type does not depend on the others.
    pub(super) any_type: Vec<usize>,
    /// Inputs of any rank.
    pub(super) any_rank: Vec<usize>,
}

impl Case {
    pub(super) fn shapes(&self) -> Vec<(Shape, DType)> {
        let inputs = self.inputs.iter();
        inputs
            .map(|(shape, dtype)| (Shape::from(shape.clone()), *dtype))
            .collect()
    }
}

/// The case of a kind of operation; the sizes in `n` are small, and at least 1.
pub(super) fn case(kind: usize, n: [usize; 5], flags: [bool; 2], dtype: DType) -> Case {
    let [batch, tokens, heads, group, more] = n;
    let f32 = DType::F32;
    let (mut may_grow, mut any_type, mut any_rank) = (vec![], vec![], vec![]);
    let (operation, inputs) = match kind {
        0 => {
            let (hq, kv_len) = (2 * heads * group, tokens + more);
            // Values of their own, or part of the keys.
            let inside = (more == 2).then_some(8);
            may_grow = match inside {
                None => vec![(2, 3)],
                Some(_) => vec![(1, 2)],
            };
            let attend = Attend {
                plan: Plan::new(sparsity()).expect("a plan"),
                index: more as u32,
                q_offset: more,
                kv_len,
                lags: Vec::new(),
                capacity: kv_len + more,
                v_in_k: inside,
                prompt: 1,
                scale: 0.25,
                softcap: flags[0].then_some(3.0),
                sinks: flags[1].then(|| vec![0.5; hq]),
                counts: Counts::default(),
            };
            let v = (vec![batch, 2 * heads, kv_len + 3, 8], dtype);
            let mut inputs = vec![
                (vec![batch, hq, tokens, 16], dtype),
                (vec![batch, 2 * heads, kv_len + 3, 16], dtype),
            ];
            inputs.extend(inside.is_none().then_some(v));
            (Operation::Attend(attend), inputs)
        }
        1 => {
            let (hq, d, room) = (heads * group, 8, tokens + more);
            let (q_end, kv_end) = (hq * d, heads * d);
            may_grow = vec![(0, 2), (1, 2), (2, 2)];
            let append = Append {
                q_heads: hq,
                kv_heads: heads,
                head_dim: d,
                q_step: d,
                starts: [0, more, 2],
                position: more,
                lagging: false,
                norm: flags[0].then_some(1e-6),
                rotated: if flags[1] { 4 } else { 0 },
                interleaved: flags[0],
            };
            let cache = (vec![batch, heads, room, d], dtype);
            let mut inputs = vec![
                (vec![batch, tokens, q_end], dtype),
                (vec![batch, tokens, kv_end + more], dtype),
                (vec![batch, tokens, kv_end + 2], dtype),
                cache.clone(),
                cache,
            ];
            if flags[0] {
                inputs.extend([(vec![d], f32), (vec![d], f32)]);
            }
            if flags[1] {
                inputs.push((vec![tokens, 4], f32));
            }
            (LayerOperation::Append(append).into(), inputs)
        }
        2 => {
            may_grow = vec![(0, 0), (0, 1), (1, 0)];
            // The weight has a type of its own.
            (any_type, any_rank) = (vec![0], vec![0]);
            let inputs = vec![
                (vec![batch, tokens, 8 * heads], dtype),
                (vec![3 * more, 8 * heads], dtype),
            ];
            let mut project = Project::dense(3 * more, dtype);
            if flags[0] {
                project.products = Plan::dense().products();
            }
            (LayerOperation::Project(project).into(), inputs)
        }
        3 => {
            may_grow = vec![(0, 0), (0, 1)];
            any_rank = vec![0];
            let epsilon = 1e-5;
            let inputs = vec![
                (vec![batch, tokens, 3 * heads], f32),
                (vec![3 * heads], f32),
            ];
            (LayerOperation::Norm(Norm { epsilon, dtype }).into(), inputs)
        }
        4 => {
            any_type = vec![1];
            let x = vec![batch, tokens, 4 * heads];
            let inputs = vec![(x.clone(), f32), (x, dtype), (vec![4 * heads], f32)];
            (
                LayerOperation::AddNorm(AddNorm { epsilon: 1e-5 }).into(),
                inputs,
            )
        }
        5 => {
            (may_grow, any_type, any_rank) = (vec![(0, 0), (0, 1)], vec![0], vec![0]);
            let inputs = vec![(vec![batch, tokens, 2 * heads * more], dtype)];
            let activation = match flags {
                [false, _] => Activation::Silu,
                [true, false] => Activation::Gelu,
                [true, true] => Activation::Clamped {
                    alpha: 1.702,
                    limit: 0.25,
                    alternate: true,
                },
            };
            (LayerOperation::Gated(activation).into(), inputs)
        }
        6 => {
            may_grow = vec![(1, 2)];
            let head_dim = 2 * more;
            let n = heads * head_dim;
            let inputs = vec![
                (vec![batch, tokens, n], dtype),
                (vec![batch, tokens, 2 * n], dtype),
            ];
            (
                LayerOperation::GateOutput(GateOutput { head_dim }).into(),
                inputs,
            )
        }
        7 => {
            may_grow = vec![(0, 1), (0, 2)];
            let delta = Delta {
                k_heads: heads,
                v_heads: heads * group,
                k_dim: 8,
                v_dim: 4 * more,
                taps: 1 + more,
                tiled: false,
                epsilon: 1e-6,
                rules: Default::default(),
            };
            let (channels, v_heads) = (delta.channels(), delta.v_heads);
            let inputs = vec![
                (vec![batch, tokens, delta.width()], dtype),
                (vec![delta.taps, channels], f32),
                (vec![v_heads], f32),
                (vec![v_heads], f32),
                (vec![delta.v_dim], f32),
                (vec![batch, delta.taps - 1, channels], dtype),
                (vec![batch, v_heads, delta.k_dim, delta.v_dim], f32),
            ];
            (LayerOperation::Delta(delta).into(), inputs)
        }
        _ => {
            let (operation, inputs, grow, types) = latent::parts(kind - 8, n, flags, dtype);
            (may_grow, any_type) = (grow, types);
            (operation.into(), inputs)
        }
    };
    Case {
        operation,
        inputs,
        may_grow,
        any_type,
        any_rank,
    }
}

pub(super) fn cases(dtypes: &'static [DType]) -> impl Strategy<Value = Case> {
    let sizes = [1..3usize, 1..40, 1..3, 1..3, 1..4];
    (
        0..13usize,
        sizes,
        any::<[bool; 2]>(),
        prop::sample::select(dtypes),
    )
        .prop_map(|(kind, n, flags, dtype)| case(kind, n, flags, dtype))
}

/// Breaks one thing of a case: `way` says what kind, `pick` says which input.
pub(super) fn broken(mut case: Case, way: usize, pick: usize) -> Case {
    let count = case.inputs.len();
    let i = pick % count;
    let rank = case.inputs[i].0.len();
    match way {
        0 => {
            let fixed: Vec<(usize, usize)> = (0..count)
                .flat_map(|i| (0..case.inputs[i].0.len()).map(move |d| (i, d)))
                .filter(|at| !case.may_grow.contains(at))
                .take(3)
                .collect();
            let (i, d) = fixed[pick % fixed.len()];
            case.inputs[i].0[d] += 1;
        }
        // A shorter last dimension. For attention it is that of q, since v may have any head size.
        1 => match case.operation {
            Operation::Attend(_) => case.inputs[0].0[3] -= 1,
            _ => case.inputs[i].0[rank - 1] -= 1,
        },
        2 if !case.any_rank.contains(&i) => case.inputs[i].0.insert(0, 1),
        3 => {
            case.inputs[i].0.remove(0);
        }
        4 if !case.any_type.contains(&i) => {
            case.inputs[i].1 = match case.inputs[i].1 {
                DType::F32 => DType::F16,
                _ => DType::F32,
            };
        }
        5 => {
            case.inputs.remove(i);
        }
        6 => {
            let again = case.inputs[i].clone();
            case.inputs.push(again);
        }
        _ => {
            case.inputs[i].1 = DType::F64;
        }
    }
    case
}
