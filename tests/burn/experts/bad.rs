//! Inputs that do not fit: each is an error that says what does not, on every backend, before anything runs.

use super::weights::{DENSE, FLOAT8, Q4_0};
use crate::Vulkan;
use burn::tensor::{DType, Shape};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{
    Activation, Experts, Joined, Operation as LayerOperation, Route, Section, Shared, Storage,
};
use butterfly::{AttentionBackend, Operation};
use butterfly_ir::model::{ExpertGroups, Router, Scores};

type Input = (Shape, DType);
type Inputs = Vec<Input>;

fn tensor(shape: &[usize], dtype: DType) -> Input {
    (Shape::from(shape.to_vec()), dtype)
}

/// What the host and a device say.
fn prepared(operation: LayerOperation, inputs: &[Input]) -> [Result<(), String>; 2] {
    let operation = Operation::from(operation);
    let host = Flex::prepare(&operation, inputs, &Default::default());
    let device = Vulkan::prepare(&operation, inputs, &WgpuDevice::Cpu);
    [host, device].map(|result| result.map_err(|error| error.to_string()))
}

/// The message of an error that does not depend on the backend.
fn said(operation: LayerOperation, inputs: &[Input]) -> String {
    let error = operation.outputs(inputs).expect_err("refused").to_string();
    for result in prepared(operation, inputs) {
        assert_eq!(result, Err(error.clone()));
    }
    error
}

/// What a device says of inputs that the host takes.
fn said_by_device(operation: LayerOperation, inputs: &[Input]) -> String {
    let [host, device] = prepared(operation, inputs);
    assert_eq!(host, Ok(()));
    device.expect_err("refused")
}

/// Two of eight experts for each of three rows, with a bias.
fn route() -> (Route, Inputs) {
    let router = Router {
        scores: Scores::Sigmoid,
        biased: true,
        groups: None,
        normalised: true,
        scale: 1.0,
    };
    let chosen = 2;
    let inputs = vec![tensor(&[1, 3, 8], DType::F32), tensor(&[8], DType::F32)];
    let shared = Joined::None;
    (
        Route {
            chosen,
            router,
            shared,
        },
        inputs,
    )
}

fn groups(count: u32, chosen: u32) -> Option<ExpertGroups> {
    Some(ExpertGroups { count, chosen })
}

#[test]
fn choices_that_do_not_fit() {
    type Change = fn(&mut Route, &mut Inputs);
    let cases: &[(Change, &str)] = &[
        (
            |_, inputs| inputs.truncate(1),
            "takes 2 tensors (logits, bias), but 1 are given",
        ),
        (
            |_, inputs| inputs[0] = tensor(&[1, 3, 0], DType::F32),
            "`logits` has shape [1, 3, 0], expected at least one element in a row",
        ),
        (
            |_, inputs| inputs[0].1 = DType::BF16,
            "`logits` is BF16, expected F32",
        ),
        (
            |_, inputs| inputs[1] = tensor(&[7], DType::F32),
            "`bias` has shape [7], expected [8]",
        ),
        (
            |_, inputs| inputs[1] = tensor(&[1, 8], DType::F32),
            "`bias` has shape [1, 8], expected [8]",
        ),
        (
            |_, inputs| inputs[1].1 = DType::F16,
            "`bias` is F16, expected F32",
        ),
        (
            |route, _| route.chosen = 0,
            "k is 0, but must be at least 1",
        ),
        (|route, _| route.chosen = 9, "9 of 8 experts"),
        (
            |route, _| route.chosen = usize::MAX,
            "18446744073709551615 of 8 experts",
        ),
        (
            |route, _| route.router.groups = groups(0, 1),
            "groups is 0, but must be at least 1",
        ),
        (
            |route, _| route.router.groups = groups(4, 0),
            "chosen groups is 0, but must be at least 1",
        ),
        (
            |route, _| route.router.groups = groups(3, 1),
            "1 of 3 groups of 8 experts",
        ),
        (
            |route, _| route.router.groups = groups(4, 5),
            "5 of 4 groups of 8 experts",
        ),
        (
            |route, _| {
                route.router.groups = groups(4, 2);
                route.chosen = 5;
            },
            "5 of 4 experts",
        ),
        (
            |route, _| route.router.scale = f64::NAN,
            "scale is NaN, but must be finite",
        ),
        (
            |route, _| route.router.scale = f64::INFINITY,
            "scale is inf, but must be finite",
        ),
    ];
    let (right, inputs) = route();
    assert_eq!(
        prepared(LayerOperation::Route(right), &inputs),
        [Ok(()), Ok(())]
    );
    for (change, says) in cases {
        let (mut route, mut inputs) = route();
        change(&mut route, &mut inputs);
        let error = said(LayerOperation::Route(route), &inputs);
        assert_eq!(error, format!("route: {says}"));
    }
}

#[test]
fn choices_that_no_device_makes() {
    let more = |experts: usize, groups: Option<ExpertGroups>| {
        let (mut route, mut inputs) = route();
        route.router.groups = groups;
        inputs[0] = tensor(&[1, 3, experts], DType::F32);
        inputs[1] = tensor(&[experts], DType::F32);
        said_by_device(LayerOperation::Route(route), &inputs)
    };
    let error = more(1025, None);
    let says = "route: 1025 experts, but kernels of this device take at most 1024; run the model on the CPU";
    assert_eq!(error, says);
    let error = more(130, groups(65, 2));
    let says = "route: 65 groups of experts, but kernels of this device take at most 64";
    assert!(error.starts_with(says), "{error}");
}

/// A gate is one more logit than there are experts, and rows that are apart have nothing added to them.
#[test]
fn rows_apart_and_gates_that_do_not_fit() {
    let (op, mut inputs) = route();
    let shared = Joined::Gated;
    let gated = LayerOperation::Route(Route { shared, ..op });
    let error = said(gated.clone(), &inputs);
    assert!(
        error.contains("`bias` has shape [8], expected [7]"),
        "{error}"
    );
    inputs[1] = tensor(&[7], DType::F32);
    let outputs = gated.outputs(&inputs).expect("seven experts and a gate");
    assert_eq!(outputs[0], tensor(&[1, 3, 3], DType::I32));
    inputs[0] = tensor(&[1, 3, 1], DType::F32);
    let error = said(gated, &inputs);
    assert!(error.contains("experts is 0"), "{error}");

    let (op, inputs) = experts();
    let apart = LayerOperation::Experts(Experts { apart: true, ..op });
    let error = said(apart, &inputs);
    assert!(error.contains("rows of experts apart"), "{error}");
    let factors = tensor(&[1, 3, 2], DType::F32);
    let rows = tensor(&[1, 3, 3, 16], DType::BF16);
    let error = said(LayerOperation::Combine, &[rows, factors]);
    let says = "`rows` has shape [1, 3, 3, 16], expected [1, 3, 2, 16]";
    assert!(error.contains(says), "{error}");
}

fn section(storage: Storage, rows: usize) -> Section {
    let joined = true;
    Section {
        storage,
        rows,
        joined,
    }
}

/// Four experts, H 16 and I 24, for three rows of which each has chosen two, with biases and a gated shared one.
fn experts() -> (Experts, Inputs) {
    let experts = Experts {
        count: 4,
        inner: [section(DENSE, 48)].into(),
        outer: [section(DENSE, 16)].into(),
        activation: Activation::Silu,
        biased: true,
        shared: Shared::Gated,
        apart: false,
        products: Default::default(),
    };
    let inputs = vec![
        tensor(&[1, 3, 16], DType::F32),
        tensor(&[1, 3, 2], DType::I32),
        tensor(&[1, 3, 2], DType::F32),
        tensor(&[192, 16], DType::F32),
        tensor(&[64, 24], DType::F32),
        tensor(&[4, 48], DType::F32),
        tensor(&[4, 16], DType::F32),
        tensor(&[1, 3, 16], DType::F32),
        tensor(&[16], DType::F32),
    ];
    (experts, inputs)
}

type Change = fn(&mut Experts, &mut Inputs);

#[track_caller]
fn refuses(cases: &[(Change, &str)]) {
    let (right, inputs) = experts();
    let right = LayerOperation::Experts(right);
    assert_eq!(prepared(right, &inputs), [Ok(()), Ok(())]);
    for (change, says) in cases {
        let (mut experts, mut inputs) = experts();
        change(&mut experts, &mut inputs);
        let error = said(LayerOperation::Experts(experts), &inputs);
        assert_eq!(error, format!("experts: {says}"));
    }
}

#[test]
fn rows_and_choices_that_do_not_fit() {
    refuses(&[
        (
            |_, inputs| inputs.truncate(6),
            "takes 9 tensors (x, ids, weights, weight, weight, inner bias, outer bias, shared, shared gate), but 6 are given",
        ),
        (
            |_, inputs| inputs[0].1 = DType::I32,
            "tensors of I32; cast them to f32, f16 or bf16",
        ),
        (
            |_, inputs| inputs[0] = tensor(&[1, 3, 0], DType::F32),
            "`x` has shape [1, 3, 0], expected at least one element in a row",
        ),
        (
            |_, inputs| inputs[0] = tensor(&[3, 16], DType::F32),
            "`ids` has shape [1, 3, 2], expected [3, 2]",
        ),
        (
            |_, inputs| inputs[1] = tensor(&[1, 3, 0], DType::I32),
            "`ids` has shape [1, 3, 0], expected at least one element in a row",
        ),
        (
            |_, inputs| inputs[1] = tensor(&[1, 2, 2], DType::I32),
            "`ids` has shape [1, 2, 2], expected [1, 3, 2]",
        ),
        (
            |_, inputs| inputs[1].1 = DType::I64,
            "`ids` is I64, expected I32",
        ),
        (
            |_, inputs| inputs[1].1 = DType::F32,
            "`ids` is F32, expected I32",
        ),
        (
            |_, inputs| inputs[2] = tensor(&[1, 3, 1], DType::F32),
            "`weights` has shape [1, 3, 1], expected [1, 3, 2]",
        ),
        (
            |_, inputs| inputs[2].1 = DType::BF16,
            "`weights` is BF16, expected F32",
        ),
        (
            |_, inputs| inputs[7] = tensor(&[1, 2, 16], DType::F32),
            "`shared` has shape [1, 2, 16], expected [1, 3, 16]",
        ),
        (
            |_, inputs| inputs[7].1 = DType::BF16,
            "`shared` is BF16, expected F32",
        ),
        (
            |_, inputs| inputs[8] = tensor(&[1, 16], DType::F32),
            "`shared gate` has shape [1, 16], expected [16]",
        ),
        (
            |_, inputs| inputs[8].1 = DType::BF16,
            "`shared gate` is BF16, expected F32",
        ),
        (
            |experts, _| experts.count = 0,
            "experts is 0, but must be at least 1",
        ),
        (
            |_, inputs| inputs[5] = tensor(&[4, 24], DType::F32),
            "`inner bias` has shape [4, 24], expected [4, 48]",
        ),
        (
            |_, inputs| inputs[6] = tensor(&[3, 16], DType::F32),
            "`outer bias` has shape [3, 16], expected [4, 16]",
        ),
        (
            |_, inputs| inputs[6].1 = DType::F16,
            "`outer bias` is F16, expected F32",
        ),
    ]);
}

#[test]
fn weights_that_do_not_fit() {
    refuses(&[
        (
            |experts, _| experts.inner = [section(DENSE, 1)].into(),
            "I is 0, but must be at least 1",
        ),
        (
            |experts, _| experts.inner = [section(DENSE, 47)].into(),
            "inner weights of 47 rows, expected 46",
        ),
        (
            |experts, _| experts.outer = [section(DENSE, 15)].into(),
            "outer weights of 15 rows, expected 16",
        ),
        (
            |experts, inputs| {
                experts.inner = [section(DENSE, 24), section(DENSE, 23)].into();
                inputs.insert(4, tensor(&[92, 16], DType::F32));
            },
            "inner weights of 47 rows, expected 46",
        ),
        (
            |experts, inputs| {
                experts.inner = [section(DENSE, 48), section(DENSE, 0)].into();
                inputs.insert(4, tensor(&[0, 16], DType::F32));
            },
            "N is 0, but must be at least 1",
        ),
        (
            |experts, inputs| {
                experts.inner = [section(DENSE, usize::MAX), section(DENSE, 48)].into();
                inputs.insert(4, tensor(&[192, 16], DType::F32));
            },
            "inner weights of 18446744073709551615 rows, expected 18446744073709551614",
        ),
        (
            |_, inputs| inputs[3] = tensor(&[192, 8], DType::F32),
            "`weight` has shape [192, 8], expected [192, 16]",
        ),
        (
            |_, inputs| inputs[4] = tensor(&[16, 24], DType::F32),
            "`weight` has shape [16, 24], expected [64, 24]",
        ),
        (
            |_, inputs| inputs[3].1 = DType::F16,
            "`weight` is F16, expected F32",
        ),
        (
            |experts, _| experts.inner = [section(Storage::Dense(DType::I32), 48)].into(),
            "tensors of I32; cast them to f32, f16 or bf16",
        ),
        (
            |experts, _| experts.inner = [section(Q4_0, 48)].into(),
            "rows of 16 elements are no whole number of blocks of 32 (Q4_0)",
        ),
        // 48 rows of 16 floats of 8 bits, and one factor, for each expert.
        (
            |experts, inputs| {
                experts.inner = [section(FLOAT8, 48)].into();
                inputs[3] = tensor(&[3071], DType::U8);
                inputs.insert(4, tensor(&[16], DType::U8));
            },
            "`weight` has shape [3071], expected the 3072 bytes of the rows",
        ),
        (
            |experts, inputs| {
                experts.inner = [section(FLOAT8, 48)].into();
                inputs[3] = tensor(&[3072], DType::U8);
                inputs.insert(4, tensor(&[4], DType::U8));
            },
            "`scales` has shape [4], expected the 16 bytes of the rows",
        ),
        (
            |experts, inputs| {
                experts.inner = [section(FLOAT8, 48)].into();
                inputs[3] = tensor(&[3072], DType::F32);
                inputs.insert(4, tensor(&[16], DType::U8));
            },
            "`weight` is F32, expected U8",
        ),
        (
            |experts, _| {
                experts.inner = [Section {
                    joined: false,
                    ..section(DENSE, 48)
                }]
                .into();
            },
            "takes 12 tensors (x, ids, weights, weight, weight, weight, weight, weight, inner bias, outer bias, shared, shared gate), but 9 are given",
        ),
    ]);
}

#[test]
fn weights_that_no_device_takes() {
    let (mut apart, mut inputs) = experts();
    apart.inner = [Section {
        joined: false,
        ..section(DENSE, 48)
    }]
    .into();
    let each = tensor(&[48, 16], DType::F32);
    inputs.splice(3..4, [each.clone(), each.clone(), each.clone(), each]);
    assert_eq!(
        said_by_device(LayerOperation::Experts(apart), &inputs),
        "experts: weights of each expert in tensors of their own: devices take one for all"
    );

    let sized = |count: usize, hidden: usize, size: usize| {
        let (mut experts, mut inputs) = experts();
        experts.count = count;
        experts.inner = [section(DENSE, 2 * size)].into();
        experts.outer = [section(DENSE, hidden)].into();
        inputs[0] = tensor(&[1, 3, hidden], DType::F32);
        inputs[3] = tensor(&[count * 2 * size, hidden], DType::F32);
        inputs[4] = tensor(&[count * hidden, size], DType::F32);
        inputs[5] = tensor(&[count, 2 * size], DType::F32);
        inputs[6] = tensor(&[count, hidden], DType::F32);
        inputs[7] = inputs[0].clone();
        inputs[8] = tensor(&[hidden], DType::F32);
        said_by_device(LayerOperation::Experts(experts), &inputs)
    };
    for (hidden, size, columns) in [(12, 24, 12), (16, 20, 20)] {
        assert_eq!(
            sized(4, hidden, size),
            format!(
                "experts: rows of {columns} elements: devices multiply rows of a multiple of 8 with experts"
            )
        );
    }
    let error = sized(1025, 16, 24);
    let says = "experts: 1025 experts, but kernels of this device take at most 1024";
    assert!(error.starts_with(says), "{error}");
}
