//! Attention by a kernel of the plan, on the device that holds the tensors.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::route::route;
use crate::{Attend, OperationError};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use butterfly_ir::LaunchScalars;
use butterfly_ops::cube::{capability, empty, first_elements};
use butterfly_runtime::{Call, Device, Launches, Ready, Tensors, enqueue};
use cubecl::client::ComputeClient;
use half::{bf16, f16};

/// The kernel for inputs of these shapes and element types on the device of `client`.
pub(super) fn kernel<R: CubeRuntime + Launches>(
    op: &Attend,
    inputs: &[(Shape, DType)],
    client: &ComputeClient<R>,
) -> Result<Ready, OperationError> {
    let device = R::device(client);
    let sm = match device {
        Device::Cuda => Some(capability()?),
        Device::Vulkan | Device::Webgpu => None,
    };
    op.plan.kernel(device, sm, op.shape(inputs))
}

pub(super) fn attend<R: CubeRuntime + Launches>(
    op: &Attend,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let shapes: Vec<_> = inputs.iter().map(|x| (x.shape(), x.dtype())).collect();
    let kernel = kernel(op, &shapes, &inputs[0].client)?;
    let mut inputs = inputs.into_iter().map(dense_heads);
    let lost = "the inputs were counted";
    let mut next = || inputs.next().expect(lost);
    let (q, k) = (next(), next());
    let v = match op.v_in_k {
        None => next(),
        Some(length) => first_elements(&k, length),
    };
    let [batch, q_heads, q_len, _] = dims(&q);
    let kv_heads = op.kv_heads(&shapes);
    let shared = kv_heads > dims(&k)[1];
    let v_head_dim = dims(&v)[3];
    // In memory [B, q_len, Hq, Dv], as the output projection reads it without a copy.
    let mut o = empty(&q, [batch, q_len, q_heads, v_head_dim], q.dtype);
    o.meta.swap(1, 2);
    let lse = empty(&q, [batch, q_heads, q_len], DType::F32);
    if q_len == 0 {
        return Ok(vec![o, lse]);
    }
    let rows = op
        .plan
        .device_table(&q.client, &q.device, op, [kv_heads, q_len]);
    let rows = match (op.routing(), rows) {
        (Some(routing), Some(fixed)) => {
            let tensors = [&q, &next()];
            Some(match q.dtype {
                DType::F16 => route::<R, f16>(op, routing, tensors, &fixed),
                DType::BF16 => route::<R, bf16>(op, routing, tensors, &fixed),
                _ => route::<R, f32>(op, routing, tensors, &fixed),
            }?)
        }
        (_, rows) => rows,
    };
    let lags: Vec<u32> = op.lags.iter().map(|lag| *lag as u32).collect();
    let call = Call {
        scalars: LaunchScalars {
            q_len: q_len as u32,
            kv_len: op.kv_len as u32,
            q_offset: op.q_offset as u32,
            kv_heads: kv_heads as u32,
            blocks: (op.capacity as u32).div_ceil(op.plan.sparsity().block),
            index: op.index,
            prompt: op.prompt as u32,
            table: rows
                .as_ref()
                .map_or_else(Default::default, |rows| rows.layout()),
            scale_bits: op.scale.to_bits(),
            q_strides: strides(&q),
            k_strides: of_heads(strides(&k), shared),
            v_strides: of_heads(strides(&v), shared),
            o_strides: strides(&o),
        },
        batch: batch as u32,
        score: op.score(),
        v_in_k: op.v_in_k.is_some(),
        lags: &lags,
    };
    let tensors = Tensors {
        q: &q.handle,
        k: &k.handle,
        v: &v.handle,
        o: &o.handle,
        lse: &lse.handle,
        rows: rows.as_ref(),
    };
    enqueue(&q.client, &kernel, &call, &tensors)?;
    let role = kernel.spec().role.name();
    op.counts
        .add(format!("{} {role} {}", kernel.device(), kernel.key()));
    Ok(vec![o, lse])
}

/// Strides of keys or values: all heads read those of the first if they are `shared`.
fn of_heads([sequence, head, token]: [u64; 3], shared: bool) -> [u64; 3] {
    [sequence, if shared { 0 } else { head }, token]
}

fn dims<R: CubeRuntime>(x: &CubeTensor<R>) -> [usize; 4] {
    let shape = x.meta.shape();
    [shape[0], shape[1], shape[2], shape[3]]
}

/// The tensor with a contiguous last dimension, as kernels require; it is rarely necessary to copy
/// it.
fn dense_heads<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    match x.meta.strides()[3] == 1 {
        true => x,
        false => into_contiguous(x),
    }
}

/// Strides in elements from one sequence, head and token to the next. The stride of a dimension of
/// size 1 is multiplied by 0 only, so it is replaced by a number that every kernel accepts where it
/// would be too large.
fn strides<R: CubeRuntime>(x: &CubeTensor<R>) -> [u64; 3] {
    const NO_STEP: usize = 1 << 31;
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let step = |d: usize| match shape[d] == 1 {
        true => strides[d].min(NO_STEP),
        false => strides[d],
    };
    [0, 1, 2].map(|d| step(d) as u64)
}
