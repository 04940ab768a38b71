//! The operations of latent attention against f64, and attention over keys that hold the values.

use crate::values::{floats, number, rounded};
use crate::{Cuda, Vulkan, numbers, sparsity};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata, TensorPrimitive};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{
    Absorb, Expand, Latent, Latents, Operation as LayerOperation, Products, Rotate, Unabsorb, Up,
};
use butterfly::{AttentionBackend, Call, KvCache, Operation, Plan, attention, run};

/// An operation of latent attention with the smallest inputs that it takes, the dimensions that may be
/// larger (input and dimension), and the inputs of any float type.
pub(crate) type Parts = (
    LayerOperation,
    Vec<(Vec<usize>, DType)>,
    Vec<(usize, usize)>,
    Vec<usize>,
);

/// The operation number `kind` of five.
pub(crate) fn parts(kind: usize, n: [usize; 5], flags: [bool; 2], dtype: DType) -> Parts {
    let [batch, tokens, heads, group, more] = n;
    // Without a rotation any row would be one of heads to rotate.
    let [has_q, turns] = [flags[0], flags[1] || kind == 3];
    let (rotated, interleaved) = (if turns { 4 } else { 0 }, has_q);
    let (rest, start) = (4 + 2 * (more - 1), more - 1);
    let up = Up {
        heads,
        nope: 2 * group,
        v: 3 * more,
        rank: 8 * group,
    };
    let weight = (vec![up.rows(), up.rank], dtype);
    let table = turns.then(|| (vec![tokens, 4], DType::F32));
    let q = (vec![batch, tokens, start + heads * (up.nope + rest)], dtype);
    // Without a rotation nothing else tells the number of tokens.
    let mut of_q = vec![(0, 0), (0, 2)];
    of_q.extend((!turns).then_some((0, 1)));
    match kind {
        0 => {
            let width = up.rank + rest;
            let latent = |start, rank| Latent {
                start,
                rank,
                epsilon: 1e-6,
            };
            let latents = Latents {
                q: has_q.then(|| latent(start, 6)),
                kv: latent(start + 6, up.rank),
                rest,
                rotated,
                interleaved,
                position: more,
            };
            let mut inputs = vec![
                (vec![batch, tokens, start + 6 + width], dtype),
                (vec![batch, 1, tokens + more, width], dtype),
            ];
            inputs.extend(has_q.then(|| (vec![6], DType::F32)));
            inputs.push((vec![up.rank], DType::F32));
            inputs.extend(table);
            let may_grow = vec![(0, 2), (1, 2)];
            (LayerOperation::Latents(latents), inputs, may_grow, vec![])
        }
        1 => {
            let absorb = Absorb {
                up,
                start,
                rest,
                rotated,
                interleaved,
                products: Products::default(),
            };
            let inputs = [q, weight].into_iter().chain(table).collect();
            (LayerOperation::Absorb(absorb), inputs, of_q, vec![0, 1])
        }
        2 => {
            let o = (vec![batch, heads, tokens, up.rank], dtype);
            let may_grow = vec![(0, 0), (0, 2)];
            let products = Products::default();
            let operation = LayerOperation::Unabsorb(Unabsorb { up, products });
            (operation, vec![o, weight], may_grow, vec![0, 1])
        }
        3 => {
            let rotate = Rotate {
                heads,
                start,
                nope: up.nope,
                rest,
                rotated,
                interleaved,
            };
            let inputs = [q].into_iter().chain(table).collect();
            (LayerOperation::Rotate(rotate), inputs, of_q, vec![0])
        }
        _ => {
            let expand = Expand {
                up,
                rest,
                tokens,
                products: Products::default(),
            };
            let latents = (vec![batch, tokens, up.rank + rest], dtype);
            let may_grow = vec![(0, 0), (0, 1)];
            (
                LayerOperation::Expand(expand),
                vec![latents, weight],
                may_grow,
                vec![0, 1],
            )
        }
    }
}

/// Sizes that are no multiples of what kernels compute at once.
const UP: Up = Up {
    heads: 3,
    nope: 24,
    v: 40,
    rank: 72,
};
const REST: usize = 16;
const ROTATED: usize = 12;

/// Numbers of a tensor, as the type rounds them.
fn random(dtype: DType, seed: usize, shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    (0..count)
        .map(|i| rounded(dtype, number(seed * 100_003 + i)))
        .collect()
}

fn outputs<B: AttentionBackend>(
    operation: LayerOperation,
    inputs: Vec<FloatTensor<B>>,
) -> Vec<Vec<f32>> {
    let operation = Operation::from(operation);
    let outputs = run::<B>(&operation, inputs).expect("it fits");
    let read = |x: FloatTensor<B>| {
        let count = x.shape().num_elements();
        let flat = B::float_reshape(x, Shape::from([count]));
        let flat = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(flat));
        flat.into_data().convert::<f32>().into_vec().expect("f32")
    };
    outputs.into_iter().map(read).collect()
}

/// Rotates a vector by the rows of a table.
fn turned(x: &mut [f64], table: &[f32], interleaved: bool) {
    let half = table.len() / 2;
    for i in 0..half {
        let (a, b) = match interleaved {
            true => (2 * i, 2 * i + 1),
            false => (i, i + half),
        };
        let (cos, sin) = (f64::from(table[i]), f64::from(table[half + i]));
        (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
    }
}

fn normalised(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f64> {
    let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let factor = (square / x.len() as f64 + f64::from(epsilon)).sqrt();
    let pairs = x.iter().zip(weight);
    pairs
        .map(|(x, w)| f64::from(*x) / factor * f64::from(*w))
        .collect()
}

fn close(what: &str, got: &[f32], want: &[f64], most: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(
            off <= most * (1.0 + want.abs()),
            "{what}, {i}: {got}, not {want}"
        );
    }
}

/// Norms, rotation, and where the cache is written.
fn latents_agree<B: AttentionBackend>(device: &B::Device, dtype: DType, most: f64) {
    let (batch, tokens, room, position, q_rank) = (2, 5, 9, 3, 50);
    let width = UP.rank + REST;
    for (interleaved, has_q) in [(false, true), (true, true), (true, false)] {
        let row = 7 + q_rank + width;
        let latents = Latents {
            q: has_q.then_some(Latent {
                start: 7,
                rank: q_rank,
                epsilon: 1e-5,
            }),
            kv: Latent {
                start: 7 + q_rank,
                rank: UP.rank,
                epsilon: 1e-6,
            },
            rest: REST,
            rotated: ROTATED,
            interleaved,
            position,
        };
        let shapes = [vec![batch, tokens, row], vec![batch, 1, room, width]];
        let [rows, cache] = [0, 1].map(|i| random(dtype, i, &shapes[i]));
        let [of_q, of_kv] = [q_rank, UP.rank].map(|n| random(DType::F32, n, &[n]));
        let table = random(DType::F32, 9, &[tokens, ROTATED]);
        let float = |x: &[f32], shape: &[usize]| floats::<B>(x, shape, dtype, device);
        let exact = |x: &[f32], shape: &[usize]| floats::<B>(x, shape, DType::F32, device);
        let mut inputs = vec![float(&rows, &shapes[0]), float(&cache, &shapes[1])];
        inputs.extend(has_q.then(|| exact(&of_q, &[q_rank])));
        inputs.push(exact(&of_kv, &[UP.rank]));
        inputs.push(exact(&table, &[tokens, ROTATED]));
        let mut got = outputs::<B>(LayerOperation::Latents(latents), inputs);
        let (mut q, mut kept): (Vec<f64>, Vec<f64>) =
            (vec![], cache.iter().map(|x| f64::from(*x)).collect());
        for (i, row) in rows.chunks(row).enumerate() {
            let (sequence, token) = (i / tokens, i % tokens);
            q.extend(normalised(&row[7..7 + q_rank], &of_q, 1e-5));
            let latent = &row[7 + q_rank..];
            let mut x = normalised(&latent[..UP.rank], &of_kv, 1e-6);
            let mut rest: Vec<f64> = latent[UP.rank..].iter().map(|x| f64::from(*x)).collect();
            turned(&mut rest, &table[token * ROTATED..][..ROTATED], interleaved);
            x.extend(rest);
            let at = (sequence * room + position + token) * width;
            kept[at..at + width].copy_from_slice(&x);
        }
        close("cache", &got.pop().expect("a cache"), &kept, most);
        assert_eq!(got.len(), usize::from(has_q));
        for got in got {
            close("q latent", &got, &q, most);
        }
    }
}

/// Scores against latents are those against keys, and sums of latents become sums of values. The first q head begins
/// at element `start` of each row.
fn products_agree<B: AttentionBackend>(
    device: &B::Device,
    [dtype, stored]: [DType; 2],
    [tokens, start]: [usize; 2],
    most: f64,
) {
    let batch = 2;
    let plan = Plan::new(sparsity()).expect("a plan");
    let head = UP.nope + REST;
    let row = start + UP.heads * head;
    let weight = random(stored, 1, &[UP.rows(), UP.rank]);
    let table = random(DType::F32, 2, &[tokens, ROTATED]);
    let w = |head: usize, row: usize, column: usize| {
        f64::from(weight[(head * (UP.nope + UP.v) + row) * UP.rank + column])
    };
    let stored = || floats::<B>(&weight, &[UP.rows(), UP.rank], stored, device);
    let rows = random(dtype, 3, &[batch, tokens, row]);
    let q = || floats::<B>(&rows, &[batch, tokens, row], dtype, device);
    let rotation = || floats::<B>(&table, &[tokens, ROTATED], DType::F32, device);
    // The absorbed q, and what is rotated alone, by sequence, head and token.
    let (mut absorbed, mut split) = (Vec::new(), Vec::new());
    for i in 0..batch * UP.heads * tokens {
        let (sequence, of, token) = (i / tokens / UP.heads, i / tokens % UP.heads, i % tokens);
        let x = &rows[(sequence * tokens + token) * row + start + of * head..][..head];
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let (nope, rest) = x.split_at(UP.nope);
        let mut rest = rest.to_vec();
        turned(&mut rest, &table[token * ROTATED..][..ROTATED], true);
        let product = |r: usize| (0..UP.nope).map(|n| nope[n] * w(of, n, r)).sum::<f64>();
        absorbed.extend((0..UP.rank).map(product).chain(rest.iter().copied()));
        split.extend(nope.iter().copied().chain(rest));
    }
    let absorb = Absorb {
        up: UP,
        start,
        rest: REST,
        rotated: ROTATED,
        interleaved: true,
        products: plan.products(),
    };
    let got = outputs::<B>(
        LayerOperation::Absorb(absorb),
        vec![q(), stored(), rotation()],
    );
    close("absorb", &got[0], &absorbed, most * (UP.nope as f64).sqrt());
    let rotate = Rotate {
        heads: UP.heads,
        start,
        nope: UP.nope,
        rest: REST,
        rotated: ROTATED,
        interleaved: true,
    };
    let got = outputs::<B>(LayerOperation::Rotate(rotate), vec![q(), rotation()]);
    close("rotate", &got[0], &split, most);

    let shape = [batch, UP.heads, tokens, UP.rank];
    let o = random(dtype, 4, &shape);
    let mut values = Vec::new();
    for i in 0..batch * tokens * UP.heads {
        let (sequence, token, of) = (i / UP.heads / tokens, i / UP.heads % tokens, i % UP.heads);
        let x = &o[((sequence * UP.heads + of) * tokens + token) * UP.rank..][..UP.rank];
        let product = |v: usize| {
            let terms = x.iter().enumerate();
            terms
                .map(|(r, x)| f64::from(*x) * w(of, UP.nope + v, r))
                .sum::<f64>()
        };
        values.extend((0..UP.v).map(product));
    }
    let inputs = vec![floats::<B>(&o, &shape, dtype, device), stored()];
    let unabsorb = Unabsorb {
        up: UP,
        products: plan.products(),
    };
    let got = outputs::<B>(LayerOperation::Unabsorb(unabsorb), inputs);
    close("unabsorb", &got[0], &values, most * (UP.rank as f64).sqrt());
}

/// The keys and values of the first `tokens` of 50 latents.
fn expansion_agrees<B: AttentionBackend>(
    device: &B::Device,
    [dtype, stored]: [DType; 2],
    tokens: usize,
    most: f64,
) {
    let (batch, room, width) = (2, 50, UP.rank + REST);
    let of_head = UP.nope + UP.v;
    let shapes = [vec![batch, room, width], vec![UP.rows(), UP.rank]];
    let latents = random(dtype, 0, &shapes[0]);
    let weight = random(stored, 1, &shapes[1]);
    let expand = Expand {
        up: UP,
        rest: REST,
        tokens,
        products: Plan::new(sparsity()).expect("a plan").products(),
    };
    let inputs = vec![
        floats::<B>(&latents, &shapes[0], dtype, device),
        floats::<B>(&weight, &shapes[1], stored, device),
    ];
    let got = outputs::<B>(LayerOperation::Expand(expand), inputs);
    // Those of one token of a head: the rest may be anything.
    let of =
        |x: &[f32], i: usize, token: usize, d: usize| x[(i * room + token) * d..][..d].to_vec();
    for (i, token) in (0..batch * UP.heads).flat_map(|i| (0..tokens).map(move |t| (i, t))) {
        let (sequence, head) = (i / UP.heads, i % UP.heads);
        let latent = &latents[(sequence * room + token) * width..][..width];
        let made = |row: usize| -> f64 {
            let row = &weight[(head * of_head + row) * UP.rank..][..UP.rank];
            let terms = row.iter().zip(latent);
            terms.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        };
        let shared = latent[UP.rank..].iter().map(|x| f64::from(*x));
        let key: Vec<f64> = (0..UP.nope).map(made).chain(shared).collect();
        let value: Vec<f64> = (UP.nope..of_head).map(made).collect();
        let most = most * (UP.rank as f64).sqrt();
        close("keys", &of(&got[0], i, token, UP.nope + REST), &key, most);
        close("values", &of(&got[1], i, token, UP.v), &value, most);
    }
}

fn agree<B: AttentionBackend>(device: &B::Device, dtype: DType, most: f64) {
    latents_agree::<B>(device, dtype, most);
    for tokens in [1, 37, 50] {
        expansion_agrees::<B>(device, [dtype, dtype], tokens, most);
    }
    // Matrix instructions read rows that begin at multiples of eight elements.
    for sizes in [[1, 5], [3, 5], [40, 5], [40, 8], [200, 8]] {
        products_agree::<B>(device, [dtype, dtype], sizes, most);
    }
}

#[test]
fn operations_agree_with_f64() {
    for (dtype, most) in [(DType::F32, 1e-5), (DType::F16, 1e-3), (DType::BF16, 8e-3)] {
        agree::<Flex>(&Default::default(), dtype, most);
    }
    // On the host, weights stay in the type of their file.
    let mixed = [DType::F32, DType::BF16];
    products_agree::<Flex>(&Default::default(), mixed, [7, 5], 1e-5);
    expansion_agrees::<Flex>(&Default::default(), mixed, 7, 1e-5);
    agree::<Vulkan>(&WgpuDevice::Cpu, DType::F32, 1e-5);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_operations_agree_with_f64() {
    for (dtype, most) in [(DType::F32, 1e-5), (DType::F16, 1e-3), (DType::BF16, 8e-3)] {
        agree::<Cuda>(&Default::default(), dtype, most);
    }
}

/// A cache of latents gives what attention with keys and values of their own gives, and is appended to,
/// shared and cut as others are.
fn cache_agrees<B: AttentionBackend>(device: &B::Device) {
    let (heads, rank, rest) = (4, 32, 16);
    let (width, tokens) = (rank + rest, 90);
    let plan = Plan::new(sparsity()).expect("a plan");
    let latents = Latents {
        q: None,
        kv: Latent {
            start: 0,
            rank,
            epsilon: 1e-6,
        },
        rest,
        rotated: 0,
        interleaved: false,
        position: 0,
    };
    let rows: Tensor<B, 3> = crate::random([1, tokens, width], device);
    let norm = Tensor::<B, 1>::ones([rank], device);
    let q: Tensor<B, 4> = crate::random([1, heads, tokens, width], device);
    let call = |queries: usize| Call {
        capacity: Some(tokens),
        prompt: Some(tokens),
        kv_len: Some(queries),
        ..Call::default()
    };
    let cache = || KvCache::<B>::of_latents([1, width, rank], 1, 32, None, (device, DType::F32));
    let append = |cache: &mut KvCache<B>, rows: Tensor<B, 3>| {
        let norms = [norm.clone()];
        let latent = cache.append_latents(rows, &norms, None, latents.clone());
        assert!(latent.expect("it fits").is_none());
    };
    let mut whole = cache();
    append(&mut whole, rows.clone());
    let [k, v] = whole.tensors();
    assert_eq!((k.dims()[1], v.dims()[3]), (1, rank));
    let [k, v] = [k, v].map(|x| x.narrow(2, 0, tokens));
    let want = attention(q.clone(), k.clone(), v, &plan, &call(tokens)).expect("attention");
    let got = whole
        .attend(q.clone(), &plan, &call(tokens))
        .expect("attention");
    near(&numbers(&got), &numbers(&want));

    let mut parts = cache();
    let mut at = 0;
    for count in [40, 1, 1, 30, 2, 16] {
        let before = parts.clone();
        append(&mut parts, rows.clone().narrow(1, at, count));
        assert_eq!((before.len(), parts.len()), (at, at + count));
        let queries = q.clone().narrow(2, at, count);
        let got = parts
            .attend(queries, &plan, &call(at + count))
            .expect("attention");
        near(&numbers(&got), &numbers(&want.clone().narrow(2, at, count)));
        at += count;
    }
    assert!(parts.truncate(50));
    append(&mut parts, rows.narrow(1, 50, tokens - 50));
    let [kept, _] = parts.tensors();
    near(&numbers(&kept.narrow(2, 0, tokens)), &numbers(&k));
}

fn near(got: &[f32], want: &[f32]) {
    let want: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
    close("attention", got, &want, 1e-4);
}

#[test]
fn a_cache_of_latents_is_like_others() {
    cache_agrees::<Flex>(&Default::default());
    cache_agrees::<Vulkan>(&WgpuDevice::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_caches_of_latents_are_like_others() {
    cache_agrees::<Cuda>(&Default::default());
}

/// One token attends to a long cache of latents, which are read once, as to values that have memory of their
/// own; ten calls give the same bits.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_long_rows_of_latents() {
    let device = Default::default();
    let (heads, rank, rest) = (20, 512, 64);
    let width = rank + rest;
    let latents = Latents {
        q: None,
        kv: Latent {
            start: 0,
            rank,
            epsilon: 1e-6,
        },
        rest,
        rotated: 0,
        interleaved: false,
        position: 0,
    };
    let norms = [Tensor::<Cuda, 1>::ones([rank], &device)];
    let plan = Plan::dense();
    // Up to 2048 keys clusters have them, unless there are too many queries.
    for (tokens, batch, queries) in [
        (200, 1, 1),
        (257, 1, 1),
        (700, 1, 3),
        (2048, 4, 3),
        (2048, 5, 3),
        (3000, 1, 1),
        (9001, 1, 1),
    ] {
        let rows: Tensor<Cuda, 3> =
            crate::random([batch, tokens, width], &device).cast(DType::BF16);
        let bf16 = (&device, DType::BF16);
        let mut cache = KvCache::<Cuda>::of_latents([batch, width, rank], 1, 32, None, bf16);
        let appended = cache.append_latents(rows, &norms, None, latents.clone());
        assert!(appended.expect("it fits").is_none());
        let call = Call {
            capacity: Some(tokens),
            prompt: Some(tokens),
            kv_len: Some(tokens),
            ..Call::default()
        };
        let q: Tensor<Cuda, 4> =
            crate::random([batch, heads, queries, width], &device).cast(DType::BF16);
        let [k, v] = cache.tensors().map(|x| x.narrow(2, 0, tokens));
        let want = attention(q.clone(), k, v, &plan, &call).expect("attention");
        let want: Vec<f64> = numbers(&want).iter().map(|x| f64::from(*x)).collect();
        let mut of_latents = || {
            let o = cache.attend(q.clone(), &plan, &call).expect("attention");
            numbers(&o)
        };
        let got = of_latents();
        close("long rows of latents", &got, &want, 1e-2);
        assert!((1..10).all(|_| of_latents() == got));
    }
}
