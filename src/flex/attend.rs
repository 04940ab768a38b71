//! Attention by the native kernel.

use crate::{Attend, OperationError};
use burn::tensor::{DType, Shape as Dims, TensorMetadata};
use burn_flex::FlexTensor;
use butterfly_cpu::{Elements, Problem};
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
    let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]].map(|x| x.shape().to_vec());
    if q[2] == 0 {
        let o = tensor(Vec::<E>::new(), [q[0], q[1], 0, v[3]]);
        return Ok(vec![o, tensor(Vec::<f32>::new(), [q[0], q[1], 0])]);
    }
    let [q_values, k_values, v_values] = [0, 1, 2].map(|i| elements::<E>(&inputs[i]));
    let q_values = floats(&q_values);
    let wrong = |error: butterfly_cpu::ProblemError| OperationError::Argument {
        operation: "attend",
        what: error.to_string(),
    };
    let fixed = op.plan.table(op, [k[1], q[2]]);
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
                means: &elements::<f32>(&inputs[3]),
                room: inputs[3].shape()[2],
                blocks: &op.plan.routed_blocks(k[1]),
                fixed: &fixed,
            };
            Some(butterfly_cpu::route(&route).map_err(wrong)?)
        }
    };
    let problem = Problem {
        batch: q[0],
        q_heads: q[1],
        kv_heads: k[1],
        q_len: q[2],
        kv_len: op.kv_len,
        kv_room: k[2],
        head_dim: q[3],
        v_head_dim: v[3],
        q_offset: op.q_offset,
        block: op.plan.sparsity().block as usize,
        scale: op.scale,
        q: &q_values,
        k: stored(&k_values),
        v: stored(&v_values),
        rows: chosen.as_ref().unwrap_or(&fixed),
        score: op.score(),
    };
    let result = butterfly_cpu::attend(&problem, None).map_err(wrong)?;
    op.counts.add(name);
    let shape = [q[0], q[1], q[2], v[3]];
    Ok(vec![
        rounded::<E>(result.o, shape),
        tensor(result.lse, [q[0], q[1], q[2]]),
    ])
}

/// Elements in the type in which they are stored.
fn stored<E: Stored>(elements: &[E]) -> Elements<'_> {
    match E::dtype() {
        DType::F16 => Elements::F16(bytemuck::cast_slice(elements)),
        DType::BF16 => Elements::Bf16(bytemuck::cast_slice(elements)),
        _ => Elements::F32(bytemuck::cast_slice(elements)),
    }
}
