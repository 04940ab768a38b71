//! Attention on Burn tensors: every backend against the f64 reference, and the module and
//! operations around it.

mod argmax;
mod cache;
mod delta;
mod experts;
mod few;
mod gates;
mod inputs;
mod large;
mod latent;
mod linear;
mod normed;
mod packed;
mod quantised;
mod replace;
mod routed;

mod uneven;
mod values;

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::{DType, Distribution};
use burn_cubecl::CubeBackend;
use burn_flex::Flex;
use burn_fusion::Fusion;
use burn_wgpu::{WgpuDevice, WgpuRuntime};
use butterfly::{
    AttentionBackend, AttentionConfig, Call, OperationError, Plan, Sparsity, attention,
    attention_with_lse, pattern,
};
use butterfly_cpu::Problem;
use butterfly_cpu::reference::attend_f64;
use butterfly_ir::{Context, sees};

type Vulkan = CubeBackend<WgpuRuntime, f32, i32, u8>;
type Fused = Fusion<Vulkan>;
type Cuda = CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

fn sparsity() -> Sparsity {
    pattern! {
        block 32
        causal & (local(1) | partner(causal_shift, radix=2) | sink(1))
    }
}

fn random<B: Backend, const D: usize>(shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn numbers<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Vec<f32> {
    x.to_data().convert::<f32>().into_vec().expect("f32")
}

/// The f64 reference for the first `kv_len` of the keys and values in `k` and `v`.
fn reference<B: Backend>(
    [q, k, v]: [&Tensor<B, 4>; 3],
    sparsity: &Sparsity,
    (kv_len, q_offset, capacity, index): (usize, usize, usize, u32),
    prompt: u32,
) -> (Vec<f64>, Vec<f64>) {
    let [batch, q_heads, q_len, head_dim] = q.dims();
    let [_, kv_heads, kv_room, _] = k.dims();
    let values = [q, k, v].map(numbers);
    let problem = Problem {
        batch,
        q_heads,
        kv_heads,
        q_len,
        kv_len,
        kv_room,
        head_dim,
        v_head_dim: v.dims()[3],
        q_offset,
        block: sparsity.block as usize,
        scale: 1.0 / (head_dim as f32).sqrt(),
        q: &values[0],
        k: (&values[1]).into(),
        v: (&values[2]).into(),
        rows: &Default::default(),
        score: Default::default(),
    };
    let context = Context {
        capacity: capacity as u32,
        prompt,
        ..Context::new(sparsity.block, kv_len as u32, index)
    };
    attend_f64(&problem, |head, q, k| {
        let context = context.of_head(head as u32);
        sees(&sparsity.pattern, &context, q as u32, k as u32)
    })
}

fn close(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        let off = (f64::from(*got) - want).abs();
        assert!(off <= 2e-5 + 1e-5 * want.abs(), "{what}: {got}, not {want}");
    }
}

/// Prefill, a chunk in the middle and decode, with a capacity and caches that have room for more
/// keys.
fn agrees<B: AttentionBackend>(device: &B::Device) {
    let layers = pattern! {
        block 32
        causal & (tail(40) | per_layer {
            3 => local(1);
            else => per_head { 0 => all; else => local(0) | sink(1) }
        })
    };
    for sparsity in [
        sparsity(),
        layers.of_layer(0),
        pattern! {
            block 32
            causal & (local(0) | table([
                [0], [0], [1], [0], [2], [0, 3], [1], [2], [0], [4], [5], [1], [0]
            ]))
        },
        pattern! {
            block 32
            causal & per_head {
                1 => local(0) | tail(9);
                else => local(0) | table([
                    [0], [0], [1], [0], [2], [0, 3], [1], [2], [0], [4], [5], [1], [0]
                ])
            }
        },
    ] {
        let plan = Plan::new(sparsity.clone()).expect("a plan");
        for (q_len, kv_len, room, capacity, index) in [
            (1, 1, 1, 1, 0),
            (150, 150, 150, 150, 1),
            (70, 150, 192, 400, 2),
            (1, 150, 192, 400, 3),
            (3, 33, 64, 33, 1),
        ] {
            let q = random::<B, 4>([2, 4, q_len, 16], device);
            let k = random::<B, 4>([2, 2, room, 16], device);
            let v = random::<B, 4>([2, 2, room, 24], device);
            let call = Call {
                index,
                kv_len: Some(kv_len),
                capacity: Some(capacity),
                prompt: Some(100),
                ..Call::default()
            };
            let (o, lse) = attention_with_lse(q.clone(), k.clone(), v.clone(), &plan, &call)
                .expect("attention");
            let at = (kv_len, kv_len - q_len, capacity, index);
            let (want_o, want_lse) = reference([&q, &k, &v], &sparsity, at, 100);
            close(&numbers(&o), &want_o, "o");
            close(&numbers(&lse), &want_lse, "lse");
            assert_eq!(call.counts.get().values().sum::<u64>(), 1);
        }
    }
}

#[test]
fn cpu_agrees_with_the_reference() {
    agrees::<Flex>(&Default::default());
}

#[test]
fn vulkan_agrees_with_the_reference() {
    agrees::<Vulkan>(&WgpuDevice::Cpu);
}

#[test]
fn fusion_agrees_with_the_reference() {
    agrees::<Fused>(&WgpuDevice::Cpu);
}

/// A plan whose pattern differs by layer says so; that of a layer runs.
#[test]
fn a_plan_of_several_layers_asks_for_one() {
    let sparsity = pattern!(block 16 causal & per_layer { 2 => local(1); else => all });
    let plan = Plan::new(sparsity).expect("a plan");
    let device = Default::default();
    let x = || random::<Flex, 4>([1, 1, 40, 16], &device);
    let call = Call::default();
    let run = |plan: &Plan| attention_with_lse(x(), x(), x(), plan, &call);
    let error = run(&plan).expect_err("several layers").to_string();
    assert!(error.contains("`plan.of_layer(layer)`"), "{error}");
    let of_layer = plan.of_layer(2).expect("a plan");
    assert_eq!(of_layer.sparsity().pattern, pattern!(causal & local(1)));
    assert!(run(&of_layer).is_ok());
}

/// Attention is ordered with the operations around it: its inputs are computed just before, and its
/// output is used right after.
fn keeps_order<B: AttentionBackend>(device: &B::Device) {
    let plan = Plan::new(sparsity()).expect("a plan");
    let x = random::<B, 4>([1, 4, 100, 16], device);
    let (k, v) = (
        random::<B, 4>([1, 2, 100, 16], device),
        random([1, 2, 100, 16], device),
    );
    let whole = attention(
        x.clone() * 2.0,
        k.clone() + 0.5,
        v.clone(),
        &plan,
        &Call::default(),
    );
    let whole = numbers(&(whole.expect("attention") * 3.0));
    let parts = [x * 2.0, k + 0.5, v].map(|x| Tensor::<B, 4>::from_data(x.into_data(), device));
    let [q, k, v] = parts.each_ref();
    let (o, _) = reference([q, k, v], &sparsity(), (100, 0, 100, 0), 100);
    let o: Vec<f64> = o.iter().map(|x| 3.0 * x).collect();
    for (got, want) in whole.iter().zip(&o) {
        assert!((f64::from(*got) - want).abs() < 1e-4);
    }
}

#[test]
fn operations_keep_their_order() {
    keeps_order::<Flex>(&Default::default());
    keeps_order::<Vulkan>(&WgpuDevice::Cpu);
    keeps_order::<Fused>(&WgpuDevice::Cpu);
}

/// The outputs of a chunk are bit for bit those of a prefill of the whole text.
fn chunks_are_exact<B: AttentionBackend>(device: &B::Device) {
    let plan = Plan::new(sparsity()).expect("a plan");
    let q = random::<B, 4>([1, 4, 160, 16], device);
    let (k, v) = (
        random::<B, 4>([1, 2, 160, 16], device),
        random([1, 2, 160, 16], device),
    );
    let run = |from: usize, to: usize| {
        let call = Call {
            kv_len: Some(to),
            capacity: Some(160),
            ..Call::default()
        };
        let q = q.clone().slice([0..1, 0..4, from..to, 0..16]);
        attention(q, k.clone(), v.clone(), &plan, &call).expect("attention")
    };
    let whole = numbers(&run(0, 160));
    let parts = Tensor::cat(
        [(0, 64), (64, 128), (128, 160)]
            .map(|(a, b)| run(a, b))
            .into(),
        2,
    );
    assert_eq!(whole, numbers(&parts));
}

#[test]
fn chunks_on_block_borders_are_exact() {
    chunks_are_exact::<Flex>(&Default::default());
    chunks_are_exact::<Vulkan>(&WgpuDevice::Cpu);
}

#[test]
fn a_module_replaces_another() {
    let device = Default::default();
    let config = AttentionConfig::new(64, 4, 2);
    let module = config.init::<Flex>(Plan::new(sparsity()).expect("a plan"), 1, &device);
    assert_eq!(module.num_params(), 2 * (64 * 64 + 64) + 2 * (64 * 32 + 32));
    let x = random::<Flex, 3>([2, 70, 64], &device);
    let y = module.forward(x.clone()).expect("attention");
    assert_eq!(y.dims(), [2, 70, 64]);
    // A change of the last token changes no earlier output.
    let tail = random::<Flex, 3>([2, 1, 64], &device);
    let changed = x.slice_assign([0..2, 69..70, 0..64], tail);
    let z = module.forward(changed).expect("attention");
    let head = |y: Tensor<Flex, 3>| numbers(&y.slice([0..2, 0..69, 0..64]));
    assert_eq!(head(y), head(z));
}

#[test]
fn text_json_and_macro_are_one_pattern() {
    let text = "block 32\ncausal & (local(1) | partner(causal_shift, radix=2) | sink(1))";
    let json = r#"{"rule": "causal_shift", "block_size": 32, "local_window": 1, "sink": 1,
        "partner_count": 1, "radix": 2}"#;
    let parse = |text| {
        Sparsity::parse_any("test", text)
            .expect("a pattern")
            .sparsity
    };
    let device = Default::default();
    let q = random::<Flex, 4>([1, 2, 300, 16], &device);
    let outputs = [sparsity(), parse(text), parse(json)].map(|sparsity| {
        let plan = Plan::new(sparsity).expect("a plan");
        let call = Call {
            index: 2,
            ..Call::default()
        };
        numbers(&attention(q.clone(), q.clone(), q.clone(), &plan, &call).expect("attention"))
    });
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(outputs[0], outputs[2]);
}

#[test]
fn errors_name_the_tensor() {
    let device = Default::default();
    let plan = Plan::new(sparsity()).expect("a plan");
    let x = |shape| random::<Flex, 4>(shape, &device);
    let text = |q, k, v, call: Call| {
        let result = attention(x(q), x(k), x(v), &plan, &call);
        result.expect_err("refused").to_string()
    };
    let (q, k) = ([1, 4, 10, 16], [1, 2, 10, 16]);
    assert_eq!(
        text(q, [1, 3, 10, 16], [1, 3, 10, 16], Call::default()),
        "attend: `q` has shape [1, 4, 10, 16], expected a number of heads that is a multiple of the 3 of k"
    );
    assert_eq!(
        text(q, k, [1, 2, 9, 16], Call::default()),
        "attend: `v` has shape [1, 2, 9, 16], expected [1, 2, 10, 16]"
    );
    assert_eq!(
        text(q, [1, 2, 9, 16], [1, 2, 9, 16], Call::default()),
        "attend: 10 queries are more than the 9 keys"
    );
    let capacity = Call {
        capacity: Some(5),
        ..Call::default()
    };
    assert_eq!(
        text(q, k, k, capacity),
        "attend: 10 keys are more than the capacity of 5 tokens: plan for more"
    );
}

#[test]
fn gradients_are_refused() {
    type B = burn::backend::Autodiff<Flex>;
    let x = random::<B, 4>([1, 2, 10, 16], &Default::default());
    let plan = Plan::new(sparsity()).expect("a plan");
    let result = attention(x.clone(), x.clone(), x, &plan, &Call::default());
    assert!(matches!(result, Err(OperationError::Gradients("attend"))));
}

/// Ten launches of heads that differ, with a tail, give the same bits.
fn heads_repeat<B: AttentionBackend>(device: &B::Device, dtype: DType) {
    let sparsity = pattern! {
        block 64 causal & (tail(70) | per_head { 0 => all; else => window(90) | sink(1) })
    };
    let plan = Plan::new(sparsity).expect("a plan");
    let normal = |heads| random::<B, 4>([2, heads, 500, 64], device).cast(dtype);
    let (q, k, v) = (normal(6), normal(3), normal(3));
    let attend = || {
        let o = attention(q.clone(), k.clone(), v.clone(), &plan, &Call::default());
        numbers(&o.expect("attention"))
    };
    let first = attend();
    for _ in 1..10 {
        assert_eq!(attend(), first);
    }
}

#[test]
fn heads_repeat_on_cpu_and_vulkan() {
    heads_repeat::<Flex>(&Default::default(), DType::F32);
    heads_repeat::<Vulkan>(&WgpuDevice::Cpu, DType::F32);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_heads_repeat() {
    for dtype in [DType::F32, DType::BF16] {
        heads_repeat::<Cuda>(&Default::default(), dtype);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_agrees_with_the_reference() {
    let device = Default::default();
    agrees::<Cuda>(&device);
    agrees::<Fusion<Cuda>>(&device);
    keeps_order::<Fusion<Cuda>>(&device);
    cache::grows::<Cuda>(&device);
    chunks_are_exact::<Cuda>(&device);
}

/// `Plan::new` refuses the same values that the parser of pattern text refuses.
#[test]
fn patterns_out_of_range_make_no_plan() {
    use butterfly_ir::build::{all, causal, window};
    let block = Sparsity {
        block: 0,
        ..Sparsity::from(causal())
    };
    let deep = (0..100).fold(causal(), |inner, _| causal() & (all() | inner));
    let empty = causal() & window(0);
    for (sparsity, what) in [
        (block, "block"),
        (Sparsity::from(deep), "deep"),
        (Sparsity::from(empty), "window"),
    ] {
        let error = Plan::new(sparsity).expect_err("out of range").to_string();
        assert!(error.contains(what), "{error}");
    }
}
