//! Rows that choose blocks by content: outputs are those of the reference with the choice that the
//! native code makes, which is tested against f64; caches keep means of keys.

use crate::cache::{SIZES, append};
use crate::{Cuda, Fused, Vulkan, close, numbers, random};
use burn::prelude::*;
use burn::tensor::DType;
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{Operation as LayerOperation, Pool};
use butterfly::{
    Attend, AttentionBackend, Call, Counts, KvCache, Operation, Plan, Sparsity, attention,
    attention_with_lse, pattern, run,
};
use butterfly_cpu::reference::attend_f64;
use butterfly_cpu::{Problem, Route};
use butterfly_ir::{BandTable, Context, rows, sees};

const D: usize = 24;

/// k [heads, T, D] → means [heads, T / pool, D].
fn means(k: &[f32], [tokens, d]: [usize; 2], pool: usize) -> Vec<f32> {
    let of_head = |k: &[f32]| {
        let pools = k[..tokens / pool * pool * d].chunks(pool * d);
        let mean = |keys: &[f32]| -> Vec<f32> {
            let of = |i: usize| keys[i..].iter().step_by(d).sum::<f32>() / pool as f32;
            (0..d).map(of).collect()
        };
        pools.flat_map(mean).collect::<Vec<f32>>()
    };
    k.chunks(tokens * d).flat_map(of_head).collect()
}

/// o and LSE in f64 of a causal prefill of the last q_len of all tokens, with the blocks that the native
/// code chooses.
fn reference(
    [q, k, v]: [&[f32]; 3],
    [batch, q_heads, kv_heads, q_len, tokens]: [usize; 5],
    sparsity: &Sparsity,
) -> (Vec<f64>, Vec<f64>) {
    let routing = sparsity.pattern.routing().expect("a pattern that chooses");
    let (block, pool) = (sparsity.block as usize, routing.pool as usize);
    let context = Context {
        prompt: PROMPT,
        ..Context::new(sparsity.block, tokens as u32, 0)
    };
    let fixed: BandTable = rows::table(&sparsity.pattern, &context, kv_heads as u32);
    let scale = 1.0 / (D as f32).sqrt();
    let table = butterfly_cpu::route(&Route {
        batch,
        q_heads,
        kv_heads,
        q_len,
        head_dim: D,
        q_offset: tokens - q_len,
        block,
        pool,
        every: routing.every as usize,
        scale,
        q,
        means: &means(k, [tokens, D], pool),
        room: tokens / pool,
        blocks: &sparsity.pattern.routed_blocks(kv_heads as u32),
        fixed: &fixed,
    });
    let table = table.expect("a choice");
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    for sequence in 0..batch {
        let of = |x: &[f32]| -> Vec<f32> {
            let each = x.len() / batch;
            x[sequence * each..][..each].to_vec()
        };
        let [q, k, v] = [q, k, v].map(of);
        let patterns: Vec<_> = (0..kv_heads)
            .map(|head| {
                let chosen = |b: usize| -> Vec<u32> {
                    if b < (tokens - q_len) / block {
                        return Vec::new();
                    }
                    let bands = table.row(sequence * kv_heads + head, b);
                    let bands = &bands[fixed.row(head, b).len()..];
                    bands
                        .iter()
                        .map(|band| band.lo as u32 / sparsity.block)
                        .collect()
                };
                let rows: Vec<_> = (0..tokens.div_ceil(block)).map(chosen).collect();
                sparsity.pattern.of_head(head as u32).routed_to(&rows)
            })
            .collect();
        let problem = Problem {
            batch: 1,
            q_heads,
            kv_heads,
            q_len,
            kv_len: tokens,
            kv_room: tokens,
            head_dim: D,
            v_head_dim: D,
            q_offset: tokens - q_len,
            block,
            scale,
            q: &q,
            k: (&k).into(),
            v: (&v).into(),
            rows: &Default::default(),
            score: Default::default(),
        };
        let (of_o, of_lse) = attend_f64(&problem, |head, q, k| {
            sees(&patterns[head], &context, q as u32, k as u32)
        });
        o.extend(of_o);
        lse.extend(of_lse);
    }
    (o, lse)
}

/// Keys, and queries at their end.
const LENGTHS: [(usize, usize); 7] = [
    (131, 1),
    (1100, 1),
    (203, 59),
    (203, 203),
    (160, 160),
    (9, 9),
    (1, 1),
];
/// Of all tokens, those of the prompt.
const PROMPT: u32 = 180;

/// Prefill, its end, and decode, for two sequences whose heads choose apart. In 16 bits the keys of a mean are
/// equal, so that means are exact and the choice does not depend on how they are rounded.
pub(crate) fn agrees<B: AttentionBackend>(
    device: &B::Device,
    dtype: DType,
    lengths: &[(usize, usize)],
) {
    for (sparsity, q_heads) in [
        (
            pattern! { block 16 causal & (window(20) | sink(1) | routed(2, pool=4)) },
            4,
        ),
        (
            pattern! {
                block 16
                causal & per_head {
                    0 => local(1) | routed(1, pool=16, every=4);
                    else => local(0) | sink_tokens(3) | routed(3, pool=16, every=4)
                }
            },
            6,
        ),
        (
            pattern! {
                block 32
                causal & (tail(40) | per_head { 1 => all; else => local(0) | routed(2, pool=32, every=32) })
            },
            2,
        ),
        (
            pattern! { block 8 causal & (local(0) | routed(5, pool=1, every=2)) },
            20,
        ),
        // More means of a block than units of a workgroup.
        (
            pattern! { block 512 causal & (local(0) | routed(1, pool=1, every=64)) },
            4,
        ),
    ] {
        let plan = Plan::new(sparsity.clone()).expect("a plan");
        for &(tokens, q_len) in lengths {
            let normal = |heads, tokens| random::<B, 4>([2, heads, tokens, D], device).cast(dtype);
            let (q, v) = (normal(q_heads, q_len), normal(2, tokens));
            let k = match dtype {
                DType::F32 => normal(2, tokens),
                _ => {
                    let pool = sparsity.pattern.routing().expect("a choice").pool as usize;
                    let pools = tokens.div_ceil(pool);
                    let each = normal(2, pools).reshape([2, 2, pools, 1, D]);
                    let all = each.repeat_dim(3, pool).reshape([2, 2, pools * pool, D]);
                    all.slice([0..2, 0..2, 0..tokens, 0..D])
                }
            };
            let call = Call {
                prompt: Some(PROMPT as usize),
                ..Call::default()
            };
            let (o, lse) = attention_with_lse(q.clone(), k.clone(), v.clone(), &plan, &call)
                .expect("attention");
            let values = [q, k, v].map(|x| numbers(&x));
            let sizes = [2, q_heads, 2, q_len, tokens];
            let values = values.each_ref().map(|x| &x[..]);
            let (want_o, want_lse) = reference(values, sizes, &sparsity);
            let what = format!("{sparsity}: {q_len} of {tokens}");
            match dtype {
                DType::F32 => close(&numbers(&o), &want_o, &what),
                _ => {
                    for (got, want) in numbers(&o).iter().zip(&want_o) {
                        let off = (f64::from(*got) - want).abs();
                        assert!(off <= 2e-2, "{what}: {got}, not {want}");
                    }
                }
            }
            close(&numbers(&lse), &want_lse, &what);
        }
    }
}

/// Through a cache, chunks that end on borders of blocks see what the whole prompt sees, decode what a
/// call without a cache sees, also after tokens were taken back; and ten launches give the same bits.
pub(crate) fn caches_choose<B: AttentionBackend>(device: &B::Device) {
    const T: usize = 203;
    let sparsity =
        pattern! { block 16 causal & (window(20) | sink(1) | routed(2, pool=8, every=2)) };
    let plan = Plan::new(sparsity).expect("a plan");
    let rows = random::<B, 3>([2, T, 128], device);
    let norms = [random::<B, 1>([16], device), random::<B, 1>([16], device)];
    let rotation = random::<B, 2>([T, 8], device);
    let call = Call {
        capacity: Some(T),
        ..Call::default()
    };
    let fill = |cache: &mut KvCache<B>, from: usize, to: usize| {
        let rows = rows.clone().slice([0..2, from..to, 0..128]);
        let rotation = rotation.clone().slice([from..to, 0..8]);
        let inputs = [rows.clone(), rows.clone(), rows];
        let q = cache.append(inputs, Some(&norms), Some(&rotation), append());
        q.expect("append")
    };
    let attend = |cache: &mut KvCache<B>, from: usize, to: usize| {
        let q = fill(cache, from, to);
        cache.attend(q, &plan, &call).expect("attention")
    };
    let exact = |x: &Tensor<B, 4>| numbers(x).into_iter().map(f64::from).collect::<Vec<_>>();
    let new = || KvCache::new(SIZES, 1, 16, device);
    let mut cache = new();
    let whole = attend(&mut cache, 0, T);
    let q = {
        cache.truncate(0);
        fill(&mut cache, 0, T)
    };
    for _ in 0..10 {
        let again = cache.attend(q.clone(), &plan, &call).expect("attention");
        assert_eq!(numbers(&again), numbers(&whole));
    }
    let mut parts = new();
    for (from, to) in [(0, 16), (16, 112), (112, 128), (128, T)] {
        let part = attend(&mut parts, from, to);
        let want = whole.clone().slice([0..2, 0..4, from..to, 0..16]);
        close(&numbers(&part), &exact(&want), "a chunk");
    }
    let decode = |cache: &mut KvCache<B>, at: usize| {
        let q = fill(cache, at, at + 1);
        let got = cache.attend(q.clone(), &plan, &call).expect("attention");
        let [k, v] = cache.tensors();
        let alone = Call {
            kv_len: Some(at + 1),
            ..call.clone()
        };
        let want = attention(q, k, v, &plan, &alone).expect("attention");
        close(&numbers(&got), &exact(&want), "decode");
    };
    let mut cache = new();
    attend(&mut cache, 0, 96);
    for at in 96..131 {
        decode(&mut cache, at);
    }
    cache.truncate(101);
    for at in 101..107 {
        decode(&mut cache, at);
    }
}

/// Room for so many keys that rows are scored two at a time: outputs are those of all rows at once.
fn slabs_agree<B: AttentionBackend>(device: &B::Device, dtype: DType) {
    let sparsity = pattern! { block 16 causal & (local(1) | sink(1) | routed(2, pool=8, every=4)) };
    let plan = Plan::new(sparsity).expect("a plan");
    let normal = |heads| random::<B, 4>([1, heads, 203, D], device).cast(dtype);
    let (q, k, v) = (normal(4), normal(2), normal(2));
    let attend = |capacity| {
        let call = Call {
            capacity: Some(capacity),
            ..Call::default()
        };
        let o = attention(q.clone(), k.clone(), v.clone(), &plan, &call);
        numbers(&o.expect("attention"))
    };
    assert_eq!(attend(1 << 26), attend(203));
}

#[test]
fn vulkan_scores_in_slabs() {
    slabs_agree::<Vulkan>(&WgpuDevice::Cpu, DType::F32);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_scores_in_slabs() {
    for dtype in [DType::F32, DType::BF16] {
        slabs_agree::<Cuda>(&Default::default(), dtype);
    }
}

#[test]
fn cpu_chooses_blocks() {
    agrees::<Flex>(&Default::default(), DType::F32, &LENGTHS);
    caches_choose::<Flex>(&Default::default());
}

#[test]
fn vulkan_chooses_blocks() {
    agrees::<Vulkan>(&WgpuDevice::Cpu, DType::F32, &LENGTHS);
    caches_choose::<Vulkan>(&WgpuDevice::Cpu);
}

#[test]
fn fusion_chooses_blocks() {
    agrees::<Fused>(&WgpuDevice::Cpu, DType::F32, &LENGTHS[..3]);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_chooses_blocks() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        agrees::<Cuda>(&Default::default(), dtype, &LENGTHS);
    }
    caches_choose::<Cuda>(&Default::default());
}

/// Milliseconds of attention for the last `q_len` of 131072 tokens by rows of a table as wide as those with four
/// chosen blocks beside the four fixed ones, and by each pattern.
fn times(q_len: usize, patterns: &[&str]) -> (f64, Vec<f64>) {
    const T: usize = 131_072;
    let device = Default::default();
    let normal =
        |heads, tokens| random::<Cuda, 4>([1, heads, tokens, 128], &device).cast(DType::BF16);
    let (q, k, v) = (normal(16, q_len), normal(4, T), normal(4, T));
    // One block of each quarter of those between the first block and the nearest three.
    let blocks = |b: u32| {
        let between = b.saturating_sub(3).max(1);
        let block = move |i| 1 + (i * between + (b * 7919 + i * 104_729) % between) / 4;
        (0..4).map(move |i| block(i).min(b))
    };
    let rows: Vec<Vec<u32>> = (0..1024).map(|b| blocks(b).collect()).collect();
    let tensor = |x: Tensor<Cuda, 4>| x.into_primitive().tensor();
    let means = {
        let op = LayerOperation::Pool(Pool {
            tokens: 16,
            pools: 0..T / 16,
        });
        let means = Tensor::zeros([1, 4, T / 16, 128], &device);
        let means = run::<Cuda>(&op.into(), vec![tensor(k.clone()), tensor(means)]);
        means.expect("means").remove(0)
    };
    let inputs = [q, k, v].map(tensor);
    // So many that the host's time before the first of them hardly counts.
    let launches = if q_len == 1 { 100 } else { 30 };
    let operation = |far: &str| {
        let pattern = format!("block 128 causal & (local(2) | sink(1) | {far})");
        let plan = Plan::new(Sparsity::parse("speed", &pattern).expect("a pattern"));
        let plan = plan.expect("a plan");
        let mut inputs = inputs.to_vec();
        inputs.extend(plan.routing().map(|_| means.clone()));
        let operation = Operation::Attend(Attend {
            plan,
            index: 0,
            q_offset: T - q_len,
            kv_len: T,
            lags: Vec::new(),
            capacity: T,
            v_in_k: None,
            prompt: T,
            scale: 1.0 / 128f32.sqrt(),
            softcap: None,
            sinks: None,
            counts: Counts::default(),
        });
        (operation, inputs)
    };
    let mut operations = vec![operation(&format!("table({rows:?})"))];
    operations.extend(patterns.iter().map(|far| operation(far)));
    let time = |(operation, inputs): &(Operation, Vec<_>)| {
        Cuda::sync(&device).expect("a device");
        let start = std::time::Instant::now();
        for _ in 0..launches {
            run::<Cuda>(operation, inputs.clone()).expect("attention");
        }
        Cuda::sync(&device).expect("a device");
        start.elapsed().as_secs_f64() * 1e3 / f64::from(launches)
    };
    // By turns, and the first rounds don't count: under load a GPU lowers its clock for all alike, by a tenth within
    // the first second.
    let mut rounds: Vec<Vec<f64>> = (0..12)
        .map(|_| operations.iter().map(time).collect())
        .collect();
    let rounds = rounds.split_off(5);
    let mut medians = (0..operations.len()).map(|i| {
        let mut times: Vec<f64> = rounds.iter().map(|round| round[i]).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let without = medians.next().expect("a first operation");
    (without, medians.collect())
}

/// Scores and selection take no longer than the attention that they select for.
#[test]
#[ignore = "needs an idle Hopper GPU: cargo test --release -p butterfly --test burn -- --ignored cuda_choice"]
fn cuda_choice_takes_no_longer_than_attention() {
    let by = |every: u32| format!("routed(4, pool=16, every={every})");
    let (without, with) = times(131_072, &[&by(8), &by(1)]);
    for (every, with) in [8, 1].iter().zip(&with) {
        let ratio = with / without - 1.0;
        println!(
            "every {every}: {with:.3} ms, {without:.3} without choice, {ratio:.2} for the choice"
        );
    }
    assert!(with[0] / without <= 2.0);
}

/// A choice for one query reads the means once.
#[test]
#[ignore = "needs an idle Hopper GPU: cargo test --release -p butterfly --test burn -- --ignored cuda_choice"]
fn cuda_choice_of_one_query() {
    let (without, with) = times(1, &["routed(4, pool=16)"]);
    let ratio = with[0] / without;
    println!(
        "{:.4} ms, {without:.4} without choice, {ratio:.2} times",
        with[0]
    );
    // Both are times of the host's launches, of which a choice has two more.
    assert!(ratio <= 4.0);
}

/// Means that are missing, too few or of another type are errors.
#[test]
fn means_have_to_fit() {
    let plan = Plan::new(pattern! { block 16 causal & (local(0) | routed(1, pool=4)) });
    let operation = Operation::Attend(Attend {
        plan: plan.expect("a plan"),
        index: 0,
        q_offset: 0,
        kv_len: 50,
        lags: Vec::new(),
        capacity: 50,
        v_in_k: None,
        prompt: 50,
        scale: 1.0,
        softcap: None,
        sinks: None,
        counts: Counts::default(),
    });
    let check = |means: Option<([usize; 4], DType)>| {
        let tensor = |heads: usize| (Shape::from([1, heads, 50, 8]), DType::F32);
        let mut inputs = vec![tensor(4), tensor(2), tensor(2)];
        inputs.extend(means.map(|(shape, dtype)| (Shape::from(shape), dtype)));
        let result = operation.outputs(&inputs);
        result.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(check(Some(([1, 2, 12, 8], DType::F32))), Ok(()));
    for (means, says) in [
        (None, "takes 4 tensors"),
        (
            Some(([1, 2, 11, 8], DType::F32)),
            "at least 12 means of 4 keys",
        ),
        (Some(([1, 4, 12, 8], DType::F32)), "[1, 2, 12, 8]"),
        (Some(([1, 2, 12, 8], DType::F16)), "F32"),
    ] {
        let error = check(means).expect_err(says);
        assert!(error.contains(says), "{error}");
    }
}
