//! Numbers that operations refuse.

use super::case::{Case, case};
use super::refused;
use crate::{Fused, Vulkan};
use burn::tensor::DType;
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{GateOutput, Norm, Operation as LayerOperation};
use butterfly::{Append, Attend, Delta, Operation};

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
