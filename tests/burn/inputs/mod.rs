//! Random inputs of every operation. Valid inputs give the same results on every backend, whatever
//! their strides; invalid ones are errors, and neither launch nor panic.

mod case;
mod numbers;

use crate::{Fused, Vulkan};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata, TensorPrimitive};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::Operation as LayerOperation;
use butterfly::{AttentionBackend, Operation, run};
use case::{Case, broken, case, cases};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Values that are the same on every backend.
fn values(shape: &[usize], seed: usize) -> Vec<f32> {
    let at = |i: usize| ((i * 37 + seed * 101) % 199) as f32 / 199.0 - 0.5;
    (0..shape.iter().product()).map(at).collect()
}

/// A tensor of any rank; with `strided`, its last two dimensions are swapped in memory.
fn tensor<B: Backend>(
    (shape, dtype): &(Vec<usize>, DType),
    seed: usize,
    strided: bool,
    device: &B::Device,
) -> FloatTensor<B> {
    let values = values(shape, seed);
    let data = |values, shape: Vec<usize>| {
        let data = TensorData::new::<f32, _>(values, shape).convert_dtype(*dtype);
        B::float_from_data(data, device)
    };
    let rank = shape.len();
    if !strided || rank < 2 {
        return data(values, shape.clone());
    }
    let (rows, columns) = (shape[rank - 2], shape[rank - 1]);
    let matrices = values.chunks((rows * columns).max(1));
    let swapped = matrices.flat_map(|matrix| {
        (0..rows * columns).map(move |i| matrix[i % rows.max(1) * columns + i / rows.max(1)])
    });
    let mut other = shape.clone();
    other.swap(rank - 2, rank - 1);
    B::float_swap_dims(data(swapped.collect(), other), rank - 2, rank - 1)
}

fn inputs<B: Backend>(case: &Case, strided: usize, device: &B::Device) -> Vec<FloatTensor<B>> {
    let inputs = case.inputs.iter().enumerate();
    inputs
        .map(|(i, input)| tensor::<B>(input, i, strided >> i & 1 == 1, device))
        .collect()
}

fn read<B: Backend>(x: FloatTensor<B>) -> Vec<f32> {
    let n = x.shape().num_elements();
    if x.shape().iter().any(|n| *n == 0) {
        return Vec::new();
    }
    let flat = B::float_reshape(x, Shape::from([n]));
    let flat = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(flat));
    flat.to_data().convert::<f32>().into_vec().expect("f32")
}

fn outputs<B: AttentionBackend>(case: &Case, strided: usize, device: &B::Device) -> Vec<Vec<f32>> {
    let shapes = case.shapes();
    let want = case.operation.outputs(&shapes).expect("right inputs");
    B::prepare(&case.operation, &shapes, device).expect("right inputs");
    let given =
        run::<B>(&case.operation, inputs::<B>(case, strided, device)).expect("right inputs");
    let got: Vec<_> = given.iter().map(|x| (x.shape(), x.dtype())).collect();
    assert_eq!(got, want);
    given.into_iter().map(read::<B>).collect()
}

fn assert_close(got: &[Vec<f32>], want: &[Vec<f32>], dtype: DType, what: &str) {
    let most = if dtype == DType::F32 { 2e-4 } else { 2e-2 };
    for (got, want) in got.iter().zip(want) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let off = (got - want).abs();
            assert!(
                off <= most * (1.0 + want.abs()),
                "{what}: {i}: {got}, not {want}"
            );
        }
    }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

#[test]
fn right_inputs_run_however_they_lie() {
    let cases = cases(&[DType::F32, DType::F16, DType::BF16]);
    let mut runner = runner(300);
    let result = runner.run(&(cases, 0..256usize), |(case, strided)| {
        let want = outputs::<Flex>(&case, 0, &Default::default());
        let got = outputs::<Flex>(&case, strided, &Default::default());
        // Matrix products may add in another order.
        let dtype = case.inputs.last().expect("an input").1;
        assert_close(&got, &want, dtype, "strided");
        Ok(())
    });
    result.expect("right inputs");
}

#[test]
fn right_inputs_run_alike_on_devices() {
    let mut runner = runner(40);
    let cases = cases(&[DType::F32, DType::F16]);
    let result = runner.run(&(cases, 0..256usize), |(case, strided)| {
        let dtype = case.inputs.last().expect("an input").1;
        let want = outputs::<Flex>(&case, 0, &Default::default());
        let got = outputs::<Vulkan>(&case, strided, &WgpuDevice::Cpu);
        assert_close(&got, &want, dtype, "vulkan");
        let got = outputs::<Fused>(&case, strided, &WgpuDevice::Cpu);
        assert_close(&got, &want, dtype, "fusion");
        Ok(())
    });
    result.expect("right inputs");
}

fn refused<B: AttentionBackend>(case: &Case, device: &B::Device) {
    let shapes = case.shapes();
    assert!(case.operation.outputs(&shapes).is_err(), "outputs");
    assert!(
        B::prepare(&case.operation, &shapes, device).is_err(),
        "prepare"
    );
    let result = run::<B>(&case.operation, inputs::<B>(case, 0, device));
    assert!(result.is_err(), "run");
}

#[test]
fn wrong_inputs_are_errors() {
    let cases = cases(&[DType::F32, DType::F16]);
    let mut runner = runner(400);
    let broken = (cases, 0..8usize, any::<usize>()).prop_filter_map(
        "cannot be broken so",
        |(case, way, pick)| {
            let i = pick % case.inputs.len();
            let free = match way {
                2 => case.any_rank.contains(&i),
                // Backends do not support tensors of rank 0.
                3 => case.any_rank.contains(&i) || case.inputs[i].0.len() < 2,
                4 => case.any_type.contains(&i),
                _ => false,
            };
            (!free).then(|| broken(case, way, pick))
        },
    );
    let result = runner.run(&broken, |case| {
        refused::<Flex>(&case, &Default::default());
        refused::<Vulkan>(&case, &WgpuDevice::Cpu);
        refused::<Fused>(&case, &WgpuDevice::Cpu);
        Ok(())
    });
    result.expect("wrong inputs");
}

/// Inputs without tokens are valid.
#[test]
fn no_tokens_run() {
    for kind in 0..8 {
        for flags in [[false, false], [true, true]] {
            let mut case = case(kind, [1, 3, 2, 2, 2], flags, DType::F32);
            match (&mut case.operation, case.inputs.as_mut_slice()) {
                (Operation::Attend(attend), inputs) => {
                    attend.kv_len = attend.q_offset;
                    inputs[0].0[2] = 0;
                }
                (Operation::Layer(LayerOperation::Append(_)), inputs) => {
                    for input in &mut inputs[..3] {
                        input.0[1] = 0;
                    }
                    if flags[1] {
                        inputs[7].0[0] = 0;
                    }
                }
                (
                    Operation::Layer(LayerOperation::AddNorm(_) | LayerOperation::GateOutput(_)),
                    inputs,
                ) => {
                    inputs[0].0[1] = 0;
                    inputs[1].0[1] = 0;
                }
                (_, inputs) => inputs[0].0[1] = 0,
            }
            let want = outputs::<Flex>(&case, 0, &Default::default());
            assert_eq!(outputs::<Vulkan>(&case, 0, &WgpuDevice::Cpu), want);
            assert_eq!(outputs::<Fused>(&case, 0, &WgpuDevice::Cpu), want);
        }
    }
}
