//! Random inputs of every operation. Valid inputs give the same results on every backend, whatever
//! their strides; invalid ones are errors, and neither launch nor panic.

use crate::{Fused, Vulkan, latent, sparsity};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata, TensorPrimitive};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{Activation, AddNorm, GateOutput, Norm, Operation as LayerOperation, Project};
use butterfly::{Append, Attend, AttentionBackend, Counts, Delta, Operation, Plan, run};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// An operation, and the smallest inputs that it accepts.
#[derive(Clone, Debug)]
struct Case {
    operation: Operation,
    inputs: Vec<(Vec<usize>, DType)>,
    /// Dimensions that may be larger: input and dimension.
    may_grow: Vec<(usize, usize)>,
    /// Inputs whose element type does not depend on the others.
    any_type: Vec<usize>,
    /// Inputs of any rank.
    any_rank: Vec<usize>,
}

impl Case {
    fn shapes(&self) -> Vec<(Shape, DType)> {
        let inputs = self.inputs.iter();
        inputs
            .map(|(shape, dtype)| (Shape::from(shape.clone()), *dtype))
            .collect()
    }
}

/// The case of a kind of operation; the sizes in `n` are small, and at least 1.
fn case(kind: usize, n: [usize; 5], flags: [bool; 2], dtype: DType) -> Case {
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

fn cases(dtypes: &'static [DType]) -> impl Strategy<Value = Case> {
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
fn broken(mut case: Case, way: usize, pick: usize) -> Case {
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

/// Parameters of operations that are zero, too large or NaN.
#[test]
fn wrong_numbers_are_errors() {
    let huge = usize::MAX;
    let of = |kind, flags| case(kind, [1, 3, 2, 2, 2], flags, DType::F32);
    let mut wrong = Vec::new();
    let case = of(0, [true, true]);
    let Operation::Attend(right) = &case.operation else {
        unreachable!("kind 0")
    };
    for attend in [
        Attend {
            q_offset: huge,
            ..right.clone()
        },
        Attend {
            kv_len: huge,
            ..right.clone()
        },
        Attend {
            capacity: 0,
            ..right.clone()
        },
        Attend {
            capacity: huge,
            ..right.clone()
        },
        Attend {
            capacity: 1 << 30,
            ..right.clone()
        },
        Attend {
            scale: f32::NAN,
            ..right.clone()
        },
        Attend {
            softcap: Some(0.0),
            ..right.clone()
        },
        Attend {
            softcap: Some(f32::INFINITY),
            ..right.clone()
        },
        Attend {
            v_in_k: Some(17),
            ..right.clone()
        },
        Attend {
            v_in_k: Some(0),
            ..right.clone()
        },
        Attend {
            sinks: Some(vec![]),
            ..right.clone()
        },
        Attend {
            sinks: Some(vec![0.0; 7]),
            ..right.clone()
        },
        Attend {
            sinks: Some(vec![f32::NAN; 8]),
            ..right.clone()
        },
    ] {
        wrong.push(Case {
            operation: Operation::Attend(attend),
            ..case.clone()
        });
    }
    let case = of(1, [true, true]);
    let Operation::Layer(LayerOperation::Append(right)) = &case.operation else {
        unreachable!("kind 1")
    };
    for append in [
        Append {
            q_heads: 0,
            ..right.clone()
        },
        Append {
            q_heads: huge,
            ..right.clone()
        },
        Append {
            kv_heads: 0,
            ..right.clone()
        },
        Append {
            kv_heads: huge,
            ..right.clone()
        },
        Append {
            head_dim: 0,
            ..right.clone()
        },
        Append {
            head_dim: huge,
            ..right.clone()
        },
        Append {
            q_step: 0,
            ..right.clone()
        },
        Append {
            q_step: huge,
            ..right.clone()
        },
        Append {
            starts: [huge; 3],
            ..right.clone()
        },
        Append {
            position: huge,
            ..right.clone()
        },
        Append {
            norm: Some(f32::NAN),
            ..right.clone()
        },
        Append {
            rotated: 3,
            ..right.clone()
        },
        Append {
            rotated: huge - 1,
            ..right.clone()
        },
    ] {
        wrong.push(Case {
            operation: LayerOperation::Append(append).into(),
            ..case.clone()
        });
    }
    let case = of(3, [false, false]);
    for (epsilon, dtype) in [
        (f32::NAN, DType::F32),
        (-1.0, DType::F32),
        (0.0, DType::I32),
    ] {
        wrong.push(Case {
            operation: LayerOperation::Norm(Norm { epsilon, dtype }).into(),
            ..case.clone()
        });
    }
    let case = of(6, [false, false]);
    for head_dim in [0, 3, huge] {
        wrong.push(Case {
            operation: LayerOperation::GateOutput(GateOutput { head_dim }).into(),
            ..case.clone()
        });
    }
    let case = of(7, [false, false]);
    let Operation::Layer(LayerOperation::Delta(right)) = &case.operation else {
        unreachable!("kind 7")
    };
    let right = || right.clone();
    for delta in [
        Delta {
            k_heads: 0,
            ..right()
        },
        Delta {
            k_heads: huge,
            ..right()
        },
        Delta {
            v_heads: 0,
            ..right()
        },
        Delta {
            v_heads: huge,
            ..right()
        },
        Delta {
            k_dim: 0,
            ..right()
        },
        Delta {
            k_dim: huge,
            ..right()
        },
        Delta {
            v_dim: 0,
            ..right()
        },
        Delta {
            v_dim: huge,
            ..right()
        },
        Delta { taps: 0, ..right() },
        Delta {
            taps: huge,
            ..right()
        },
        Delta {
            epsilon: f32::INFINITY,
            ..right()
        },
    ] {
        wrong.push(Case {
            operation: LayerOperation::Delta(delta).into(),
            ..case.clone()
        });
    }
    for case in &wrong {
        refused::<Flex>(case, &Default::default());
        refused::<Vulkan>(case, &WgpuDevice::Cpu);
        refused::<Fused>(case, &WgpuDevice::Cpu);
    }
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
