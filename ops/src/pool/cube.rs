//! Means of consecutive keys.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use crate::Pool;
use crate::cube::launch::{array, owned};
use ::cubecl::prelude::*;
use burn::tensor::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units that share a mean.
const UNITS: u32 = 64;

pub(crate) fn pool<R: CubeRuntime, F: FloatElement>(
    op: &Pool,
    inputs: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("the inputs were counted");
    let k = into_contiguous(next());
    // Updated in place, unless another tensor still shares its memory.
    let means = owned(next());
    let shape = k.shape();
    let lists = shape[0] * shape[1];
    if !op.pools.is_empty() {
        // SAFETY: the shapes were checked; the grid is the means to write, for every head.
        unsafe {
            pool_kernel::launch_unchecked::<F, R>(
                &k.client,
                CubeCount::Static(op.pools.len() as u32, lists as u32, 1),
                CubeDim::new_1d(UNITS),
                AddressType::from_len(k.meta.num_elements()),
                array(&k),
                array(&means),
                shape[2] as u32,
                means.shape()[2] as u32,
                op.pools.start as u32,
                op.tokens as u32,
                shape[3] as u32,
            );
        }
    }
    vec![means]
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn pool_kernel<F: Float>(
    k: &Array<F>,
    means: &mut Array<f32>,
    room: u32,
    pools: u32,
    first: u32,
    #[comptime] tokens: u32,
    #[comptime] d: u32,
) {
    let pool = first + CUBE_POS_X;
    let head = CUBE_POS_Y as usize;
    let from = head * room as usize + (pool * tokens) as usize;
    let to = (CUBE_POS_Y * pools + pool) * d;
    let own = comptime!(d.div_ceil(UNITS));
    #[unroll]
    for i in 0..own {
        let at = comptime!(i * UNITS) + UNIT_POS;
        if at < d {
            let mut sum = 0.0f32;
            for token in 0..tokens {
                sum += f32::cast_from(k[(from + token as usize) * d as usize + at as usize]);
            }
            means[(to + at) as usize] = sum / comptime!(tokens as f32).runtime();
        }
    }
}
