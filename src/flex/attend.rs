//! Attention by the native kernel.

use crate::{Attend, OperationError};
use burn::tensor::{DType, Shape as Dims, TensorMetadata};
use burn_flex::FlexTensor;
use butterfly_cpu::{Attention, Elements, Problem, ProblemError, Values};
use butterfly_ops::flex::{Stored, elements, floats, rounded, tensor};

/// The name of the kernel, if the plan has one for such inputs.
pub(super) fn kernel(op: &Attend, inputs: &[(Dims, DType)]) -> Result<String, OperationError> {
    op.plan.native(op.shape(inputs))
}

pub(super) fn attend<E: Stored>(
    op: &Attend,
    inputs: &[FlexTensor],
) -> Result<Vec<FlexTensor>, OperationError> {
    let shapes: Vec<_> = inputs.iter().map(|x| (x.shape(), x.dtype())).collect();
    let name = kernel(op, &shapes)?;
    let [q, k] = [&inputs[0], &inputs[1]].map(|x| x.shape().to_vec());
    let v_head_dim = op.v_in_k.unwrap_or_else(|| inputs[2].shape()[3]);
    if q[2] == 0 {
        let o = tensor(Vec::<E>::new(), [q[0], q[1], 0, v_head_dim]);
        return Ok(vec![o, tensor(Vec::<f32>::new(), [q[0], q[1], 0])]);
    }
    let [q_values, k_values] = [0, 1].map(|i| elements::<E>(&inputs[i]));
    let q_values = floats(&q_values);
    // There may be keys and values of further sequences.
    let k_values = &k_values[..q[0] * k[1] * k[2] * k[3]];
    let v_values = match op.v_in_k {
        None => Some(elements::<E>(&inputs[2])),
        Some(_) => None,
    };
    let wrong = |error: butterfly_cpu::ProblemError| OperationError::Argument {
        operation: "attend",
        what: error.to_string(),
    };
    let kv_heads = op.kv_heads(&shapes);
    let fixed = op.plan.table(op, [kv_heads, q[2]]);
    let chosen = match op.routing() {
        None => None,
        Some(routing) => {
            let route = butterfly_cpu::Route {
                batch: q[0],
                q_heads: q[1],
                kv_heads: k[1],
                q_len: q[2],
                head_dim: q[3],
                q_offset: op.q_offset,
                block: op.plan.sparsity().block as usize,
                pool: routing.pool as usize,
                every: routing.every as usize,
                scale: op.scale,
                q: &q_values,
                means: &elements::<f32>(&inputs[op.means()]),
                room: inputs[op.means()].shape()[2],
                blocks: &op.plan.routed_blocks(k[1]),
                fixed: &fixed,
            };
            Some(butterfly_cpu::route(&route).map_err(wrong)?)
        }
    };
    let problem = Problem {
        batch: q[0],
        q_heads: q[1],
        kv_heads,
        q_len: q[2],
        kv_len: op.kv_len,
        kv_room: k[2],
        head_dim: q[3],
        v_head_dim,
        q_offset: op.q_offset,
        block: op.plan.sparsity().block as usize,
        scale: op.scale,
        q: &q_values,
        k: stored(k_values),
        v: match &v_values {
            Some(values) => Values::Own(stored(&values[..q[0] * k[1] * k[2] * v_head_dim])),
            None => Values::InKeys {
                shared: kv_heads > k[1],
            },
        },
        rows: chosen.as_ref().unwrap_or(&fixed),
        score: op.score(),
    };
    let result = match op.lags.as_slice() {
        [] => butterfly_cpu::attend(&problem, None),
        lags => one_by_one(&problem, lags),
    };
    let result = result.map_err(wrong)?;
    op.counts.add(name);
    let shape = [q[0], q[1], q[2], v_head_dim];
    Ok(vec![
        rounded::<E>(result.o, shape),
        tensor(result.lse, [q[0], q[1], q[2]]),
    ])
}

/// Attention of sequences that are so many tokens behind the longest. Their rows of a table are the same, since no
/// pattern that chooses by content takes them.
fn one_by_one(problem: &Problem<'_>, lags: &[usize]) -> Result<Attention, ProblemError> {
    let mut all = Attention::default();
    for (sequence, lag) in lags.iter().enumerate() {
        let one = butterfly_cpu::attend(&problem.of_sequence(sequence, *lag), None)?;
        all.o.extend(one.o);
        all.lse.extend(one.lse);
    }
    Ok(all)
}

/// Elements in the type in which they are stored.
fn stored<E: Stored>(elements: &[E]) -> Elements<'_> {
    match E::dtype() {
        DType::F16 => Elements::F16(bytemuck::cast_slice(elements)),
        DType::BF16 => Elements::Bf16(bytemuck::cast_slice(elements)),
        _ => Elements::F32(bytemuck::cast_slice(elements)),
    }
}
