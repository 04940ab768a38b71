//! Sequences of different lengths in one call and in one cache, against each sequence alone.

use crate::cache::{SIZES, append};
use crate::{Cuda, Fused, Vulkan, numbers, random, reference, sparsity};
use burn::prelude::*;
use burn::tensor::DType;
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::{
    Append, AttentionBackend, Call, KvCache, Plan, Sparsity, attention_with_lse, kept_at_most,
    pattern,
};

/// What sets a call apart.
struct Case {
    sparsity: Sparsity,
    /// Hq and Hkv.
    heads: [usize; 2],
    /// D and Dv.
    dims: [usize; 2],
    /// q_len and kv_len of the longest sequence.
    lengths: [usize; 2],
    lags: Vec<usize>,
    softcap: Option<f32>,
    sinks: bool,
}

impl Case {
    /// Each sequence gets what it gets alone, but for the order of sums, and what f64 gives if there is no softcap or sink.
    fn agrees<B: AttentionBackend>(&self, (dtype, most): (DType, f64), device: &B::Device) {
        let ([q_heads, kv_heads], [d, dv]) = (self.heads, self.dims);
        let [q_len, kv_len] = self.lengths;
        let batch = self.lags.len();
        let tensor = |heads, tokens, dim, sequences| {
            random::<B, 4>([sequences, heads, tokens, dim], device).cast(dtype)
        };
        let q = tensor(q_heads, q_len, d, batch);
        // One more sequence, which is not read, and room for more keys.
        let room = kv_len + 13;
        let k = tensor(kv_heads, room, d, batch + 1);
        let v = tensor(kv_heads, room, dv, batch + 1);
        let plan = Plan::new(self.sparsity.clone()).expect("a plan");
        let sinks = |i: usize| (i as f32 - 1.5) / 2.0;
        let call = Call {
            index: 2,
            kv_len: Some(kv_len),
            capacity: Some(kv_len + 100),
            softcap: self.softcap,
            sinks: self.sinks.then(|| (0..q_heads).map(sinks).collect()),
            ..Call::default()
        };
        let together = Call {
            lags: self.lags.clone(),
            ..call.clone()
        };
        let run = |q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, call: &Call| {
            let (o, lse) = attention_with_lse(q, k, v, &plan, call).expect("attention");
            [numbers(&o), numbers(&lse)]
        };
        let all = run(q.clone(), k.clone(), v.clone(), &together);
        for (sequence, lag) in self.lags.iter().enumerate() {
            let of = |x: &Tensor<B, 4>| x.clone().narrow(0, sequence, 1);
            let [q, k, v] = [&q, &k, &v].map(of);
            let length = kv_len - lag;
            let alone = Call {
                kv_len: Some(length),
                ..call.clone()
            };
            let one = run(q.clone(), k.clone(), v.clone(), &alone);
            let close = |got: &[f32], want: &[f64], what: &str| {
                assert_eq!(got.len(), want.len());
                for (i, (got, want)) in got.iter().zip(want).enumerate() {
                    let off = (f64::from(*got) - want).abs();
                    assert!(
                        off <= most * (1.0 + want.abs()) || f64::from(*got) == *want,
                        "{what} of sequence {sequence} behind by {lag}, {dtype:?}, {i}: {got}, not {want}"
                    );
                }
            };
            for (all, one) in all.iter().zip(&one) {
                let one: Vec<f64> = one.iter().map(|x| f64::from(*x)).collect();
                let each = one.len();
                close(&all[sequence * each..][..each], &one, "what it gets alone");
            }
            if self.softcap.is_none() && !self.sinks {
                let at = (length, length - q_len, kv_len + 100, 2);
                let (o, lse) = reference([&q, &k, &v], &self.sparsity, at, length as u32);
                for (all, want) in all.iter().zip([o, lse]) {
                    let each = want.len();
                    close(&all[sequence * each..][..each], &want, "the reference");
                }
            }
        }
    }
}

fn patterns() -> [Sparsity; 4] {
    [
        sparsity(),
        // Limited by the end of the keys.
        pattern!(block 32 local(2) | sink(1)),
        pattern! {
            block 32
            causal & (local(0) | table([
                [0], [0], [1], [0], [2], [0, 3], [1], [2], [0], [4], [5], [1], [0]
            ]))
        },
        pattern!(block 32 causal & per_head { 0 => all; else => window(40) }),
    ]
}

fn calls<B: AttentionBackend>(numbers: (DType, f64), device: &B::Device) {
    for (i, sparsity) in patterns().into_iter().enumerate() {
        for (q_len, lags) in [(1, vec![0, 5, 149, 40, 40]), (3, vec![33, 0, 64])] {
            for (softcap, sinks) in [(None, false), (Some(5.0), true), (None, true)] {
                Case {
                    sparsity: sparsity.clone(),
                    heads: [4, 2],
                    dims: [16, 24 - 8 * (i % 2)],
                    lengths: [q_len, 150],
                    lags: lags.clone(),
                    softcap,
                    sinks,
                }
                .agrees::<B>(numbers, device);
            }
        }
    }
}

#[test]
fn sequences_of_different_lengths_attend_as_alone() {
    calls::<Flex>((DType::F32, 2e-5), &Default::default());
    calls::<Flex>((DType::BF16, 2e-2), &Default::default());
    calls::<Vulkan>((DType::F32, 2e-5), &WgpuDevice::Cpu);
}

/// By the portable kernels; on Hopper also by those for a cluster, for a workgroup alone, and for the whole device.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_sequences_of_different_lengths_attend_as_alone() {
    let device = Default::default();
    calls::<Cuda>((DType::F32, 2e-5), &device);
    let numbers = [(DType::BF16, 2e-2), (DType::F16, 4e-3)];
    for numbers in numbers {
        calls::<Cuda>(numbers, &device);
        for (dims, kv_len, sequences) in [
            ([128, 128], 1000, 3),
            ([64, 64], 3000, 64),
            ([256, 256], 700, 40),
            ([128, 128], 40_000, 3),
        ] {
            for sparsity in [sparsity(), pattern!(block 128 causal)] {
                let lag = |sequence: usize| sequence * 977 % (kv_len - 3);
                Case {
                    sparsity,
                    heads: [8, 2],
                    dims,
                    lengths: [1 + sequences % 3, kv_len],
                    lags: (0..sequences).map(lag).collect(),
                    softcap: None,
                    sinks: false,
                }
                .agrees::<Cuda>(numbers, &device);
            }
        }
    }
}

/// Lengths of sequences, the longest first.
const LENGTHS: [usize; 4] = [90, 61, 61, 17];

/// Prompts of different lengths are read, each as long as it is, then all go on token by token: keys, values and q are those
/// of each sequence alone.
fn fills<B: AttentionBackend>(window: Option<usize>, device: &B::Device) {
    const NEW: usize = 40;
    let [_, kv_heads, head_dim] = SIZES;
    let norms = [random::<B, 1>([16], device), random::<B, 1>([16], device)];
    let rotation = random::<B, 2>([LENGTHS[0] + NEW, 8], device);
    let rows = random::<B, 3>([LENGTHS.len(), LENGTHS[0] + NEW, 128], device);
    let cache = |sequences: usize| {
        let sizes = [sequences, kv_heads, head_dim];
        match window {
            None => KvCache::<B>::new(sizes, 1, 8, device),
            Some(window) => KvCache::with_window(sizes, 1, 8, window, (device, DType::F32)),
        }
    };
    // Appends `tokens` tokens of some sequences, those from `from` on of each.
    let fill = |cache: &mut KvCache<B>, sequences: &[usize], from: &[usize], tokens: usize| {
        let of = |(sequence, from): (&usize, &usize)| {
            rows.clone()
                .slice([*sequence..sequence + 1, *from..from + tokens, 0..128])
        };
        let rows = Tensor::cat(sequences.iter().zip(from).map(of).collect(), 0);
        let even = cache
            .lags()
            .iter()
            .take(sequences.len())
            .all(|lag| *lag == 0);
        let turns = if even { &from[..1] } else { from };
        let turns = turns
            .iter()
            .map(|from| rotation.clone().slice([*from..from + tokens, 0..8]));
        let turns = Tensor::cat(turns.collect(), 0);
        let inputs = [rows.clone(), rows.clone(), rows];
        let q = cache.append(inputs, Some(&norms), Some(&turns), append());
        numbers(&q.expect("append"))
    };
    let mut together = cache(LENGTHS.len());
    let mut at = 0;
    while at < LENGTHS[0] {
        let open: Vec<usize> = (0..LENGTHS.len()).filter(|i| LENGTHS[*i] > at).collect();
        let end = open.iter().map(|i| LENGTHS[*i]).min().expect("the longest");
        let tokens = (end - at).min(20);
        fill(&mut together, &open, &vec![at; open.len()], tokens);
        at += tokens;
    }
    let lags = LENGTHS.map(|length| LENGTHS[0] - length);
    assert_eq!((together.len(), together.lags()), (LENGTHS[0], &lags[..]));
    let mut alone: Vec<KvCache<B>> = LENGTHS.iter().map(|_| cache(1)).collect();
    for (sequence, cache) in alone.iter_mut().enumerate() {
        fill(cache, &[sequence], &[0], LENGTHS[sequence]);
    }
    for step in 0..NEW {
        let from = LENGTHS.map(|length| length + step);
        let q = fill(&mut together, &[0, 1, 2, 3], &from, 1);
        for (sequence, cache) in alone.iter_mut().enumerate() {
            let one = fill(cache, &[sequence], &[from[sequence]], 1);
            assert_eq!(q[sequence * one.len()..][..one.len()], one);
        }
        // A step that is taken back, as after a failure, changes nothing.
        let mut back = together.clone();
        fill(&mut back, &[0, 1], &[0, 0], 1);
        assert!(back.go_back(together.len(), &lags));
        assert_eq!(back.lags(), together.lags());
    }
    if let Some(window) = window {
        let most = kept_at_most(window as u64, (20 + lags[3]) as u64, 8) as usize;
        assert!(together.first() > 0 && together.room() <= most);
    }
    for (sequence, cache) in alone.iter().enumerate() {
        let length = LENGTHS[sequence] + NEW;
        assert_eq!(cache.len(), length);
        let first = cache.first().max(together.first());
        for (all, one) in together.tensors().into_iter().zip(cache.tensors()) {
            let part = |first_kept: usize, of: usize| {
                let tokens = first - first_kept..length - first_kept;
                [of..of + 1, 0..kv_heads, tokens, 0..head_dim]
            };
            let all = all.slice(part(together.first(), sequence));
            let one = one.slice(part(cache.first(), 0));
            assert_eq!(numbers(&all), numbers(&one), "sequence {sequence}");
        }
    }
    // Shorter than some: these are no longer behind.
    together.truncate(LENGTHS[1]);
    assert!(together.is_empty() || together.lags() == [0, 0, 0, LENGTHS[1] - LENGTHS[3] - NEW]);
}

#[test]
fn caches_hold_sequences_of_different_lengths() {
    for window in [None, Some(20)] {
        fills::<Flex>(window, &Default::default());
        fills::<Vulkan>(window, &WgpuDevice::Cpu);
    }
    fills::<Fused>(None, &WgpuDevice::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_caches_hold_sequences_of_different_lengths() {
    fills::<Cuda>(None, &Default::default());
    fills::<Cuda>(Some(20), &Default::default());
}

/// What cannot be run is said before anything runs.
fn refused<B: AttentionBackend>(device: &B::Device) {
    let says = |sparsity: Sparsity, q_len: usize, sequences: usize, lags: &[usize]| {
        let tensor = |heads, tokens| random::<B, 4>([sequences, heads, tokens, 16], device);
        let call = Call {
            lags: lags.to_vec(),
            ..Call::default()
        };
        let plan = Plan::new(sparsity).expect("a plan");
        let (q, k, v) = (tensor(4, q_len), tensor(2, 64), tensor(2, 64));
        let result = attention_with_lse(q, k, v, &plan, &call);
        result.expect_err("refused").to_string()
    };
    let causal = || pattern!(block 32 causal);
    for (said, wanted) in [
        (
            says(causal(), 1, 2, &[0]),
            "there are 1 lags for 2 sequences",
        ),
        (
            says(causal(), 2, 2, &[0, 63]),
            "a sequence is 63 tokens behind, but the longest has only 62 before its queries",
        ),
        (
            says(causal(), 5, 2, &[0, 1]),
            "take at most 4 queries at a time, not 5",
        ),
        (
            says(causal(), 1, 65, &[0; 65]),
            "65 sequences of different lengths are more than 64",
        ),
        (
            says(
                pattern!(block 32 causal & (local(0) | tail(9))),
                1,
                2,
                &[0, 1],
            ),
            "`tail` counts from the end of the longest prompt",
        ),
        (
            says(
                pattern!(block 32 causal & (local(0) | routed(1))),
                1,
                2,
                &[0, 1],
            ),
            "`routed` chooses blocks for sequences of equal length",
        ),
    ] {
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn lags_that_do_not_fit_are_errors() {
    refused::<Flex>(&Default::default());
    refused::<Vulkan>(&WgpuDevice::Cpu);
}

/// Rows of fewer sequences than the cache has, and lags that pass the position, stay within the caches.
#[test]
fn lags_beyond_the_position_write_at_its_start() {
    fn written<B: AttentionBackend>(device: &B::Device) {
        let append = Append {
            norm: None,
            rotated: 0,
            position: 3,
            lagging: true,
            ..append()
        };
        let rows = Tensor::<B, 3>::ones([2, 1, 128], device);
        let cache = Tensor::<B, 4>::zeros([3, 2, 8, 16], device);
        let lags = Tensor::<B, 1, Int>::from_data(TensorData::from([1, 9]), (device, DType::I32));
        let float = |x: Tensor<B, 3>| x.into_primitive().tensor();
        let mut inputs = vec![float(rows.clone()), float(rows.clone()), float(rows)];
        inputs.extend([cache.clone(), cache].map(|x| x.into_primitive().tensor()));
        inputs.push(B::integers(lags.into_primitive()));
        let operation = butterfly::ops::Operation::Append(append);
        let outputs = butterfly::run::<B>(&operation.into(), inputs).expect("append");
        for cache in &outputs[1..] {
            let cache = crate::values::data::<B>(cache.clone()).convert::<f32>();
            let cache: Vec<f32> = cache.into_vec().expect("f32");
            for (i, x) in cache.iter().enumerate() {
                let (sequence, token) = (i / (2 * 8 * 16), i / 16 % 8);
                let wanted = [Some(2), Some(0), None][sequence] == Some(token);
                assert_eq!(*x == 1.0, wanted, "{sequence} {token}");
            }
        }
    }
    written::<Flex>(&Default::default());
    written::<Vulkan>(&WgpuDevice::Cpu);
}
