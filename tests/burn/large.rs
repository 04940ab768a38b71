//! KV caches of 2^32 elements, which take 17 GB of GPU memory.

use crate::numbers;
use burn::prelude::*;
use burn::tensor::{DType, TensorPrimitive};
use burn_cubecl::CubeBackend;
use butterfly::ops::Operation as LayerOperation;
use butterfly::{Append, Call, Plan, attention, run};

type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

const HEADS: usize = 16;
const ROOM: usize = 1 << 20;
const DIM: usize = 256;

/// The queries of the last token, all ones, and caches of zeros to which ones were appended as keys
/// and values of the last token.
fn appended() -> [Tensor<Cuda, 4>; 3] {
    let device = Default::default();
    let append = Append {
        q_heads: HEADS,
        kv_heads: HEADS,
        head_dim: DIM,
        q_step: DIM,
        starts: [0; 3],
        position: ROOM - 1,
        lagging: false,
        norm: None,
        rotated: 0,
        interleaved: false,
    };
    let bf16 = (&device, DType::BF16);
    let rows = Tensor::<Cuda, 3>::ones([1, 1, HEADS * DIM], bf16);
    let cache = || Tensor::<Cuda, 4>::zeros([1, HEADS, ROOM, DIM], bf16);
    let rows = || rows.clone().into_primitive().tensor();
    let mut inputs = vec![rows(), rows(), rows()];
    inputs.extend([cache(), cache()].map(|cache| cache.into_primitive().tensor()));
    let outputs = run::<Cuda>(&LayerOperation::Append(append).into(), inputs).expect("append");
    let mut outputs = outputs.into_iter().map(TensorPrimitive::Float);
    [(); 3].map(|()| Tensor::from_primitive(outputs.next().expect("three outputs")))
}

#[test]
#[ignore = "needs an NVIDIA GPU of 40 GB: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_appends_beyond_32_bits() {
    let [_, k, v] = appended();
    for cache in [k, v] {
        let tokens = |from, to| {
            let part = cache.clone().slice([0..1, 0..HEADS, from..to, 0..DIM]);
            numbers(&part)
        };
        assert!(tokens(ROOM - 1, ROOM).iter().all(|x| *x == 1.0));
        // The place where 32-bit indices would have written, and the neighbours of the last token.
        assert!(tokens(0, 8).iter().all(|x| *x == 0.0));
        assert!(tokens(ROOM - 8, ROOM - 1).iter().all(|x| *x == 0.0));
    }
}

/// The last key has nearly all the weight, so the output is its value.
#[test]
#[ignore = "needs an NVIDIA GPU of 40 GB: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_attends_beyond_32_bits() {
    let [q, k, v] = appended();
    let call = Call {
        scale: Some(1.0),
        ..Call::default()
    };
    let o = attention(q, k, v, &Plan::dense(), &call).expect("attention");
    assert!(numbers(&o).iter().all(|x| (x - 1.0).abs() < 1e-2));
}
