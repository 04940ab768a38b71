//! KV caches: they grow by whole blocks, and errors leave them unchanged.

use crate::{Fused, Vulkan, numbers, random};
use burn::prelude::*;
use burn::tensor::DType;
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::{Append, AttentionBackend, KvCache, OperationError, kept_at_most};

pub(crate) const SIZES: [usize; 3] = [2, 2, 16];

pub(crate) fn append() -> Append {
    Append {
        q_heads: 4,
        kv_heads: 2,
        head_dim: 16,
        q_step: 16,
        starts: [0, 64, 96],
        position: 0,
        lagging: false,
        norm: Some(1e-6),
        rotated: 8,
        interleaved: false,
    }
}

/// Appending in chunks gives the same keys and values as appending at once, and does not change
/// older clones of the cache.
pub(crate) fn grows<B: AttentionBackend>(device: &B::Device) {
    let rows = random::<B, 3>([2, 90, 128], device);
    let norms = [random::<B, 1>([16], device), random::<B, 1>([16], device)];
    let rotation = random::<B, 2>([90, 8], device);
    let fill = |cache: &mut KvCache<B>, from: usize, to: usize| {
        let rows = rows.clone().slice([0..2, from..to, 0..128]);
        let rotation = rotation.clone().slice([from..to, 0..8]);
        let inputs = [rows.clone(), rows.clone(), rows];
        let q = cache.append(inputs, Some(&norms), Some(&rotation), append());
        numbers(&q.expect("append"))
    };
    let mut whole = KvCache::new(SIZES, 90, 32, device);
    fill(&mut whole, 0, 90);
    let mut parts = KvCache::new(SIZES, 1, 32, device);
    fill(&mut parts, 0, 1);
    fill(&mut parts, 1, 40);
    let before = parts.clone();
    let kept = numbers(&before.tensors()[0]);
    fill(&mut parts, 40, 90);
    assert_eq!((parts.len(), parts.room() % 32), (90, 0));
    let first = |cache: &KvCache<B>, i: usize| {
        let [b, h, _, d] = cache.tensors()[i].dims();
        let len = cache.len();
        numbers(&cache.tensors()[i].clone().slice([0..b, 0..h, 0..len, 0..d]))
    };
    for i in [0, 1] {
        assert_eq!(first(&whole, i), first(&parts, i));
    }
    assert_eq!(numbers(&before.tensors()[0]), kept);
    parts.truncate(40);
    assert_eq!(parts.len(), 40);
}

#[test]
fn caches_grow_by_blocks() {
    grows::<Flex>(&Default::default());
    grows::<Vulkan>(&WgpuDevice::Cpu);
    grows::<Fused>(&WgpuDevice::Cpu);
}

/// A cache with a window keeps what the next token sees, in whole blocks, and no more than it says;
/// older clones do not change, and it can go back to before the last append.
pub(crate) fn forgets<B: AttentionBackend>(tokens: usize, device: &B::Device) {
    const WINDOW: usize = 20;
    let rows = random::<B, 3>([2, tokens, 128], device);
    let append = Append {
        norm: None,
        rotated: 0,
        interleaved: false,
        ..append()
    };
    let fill = |cache: &mut KvCache<B>, from: usize, to: usize| {
        let rows = rows.clone().slice([0..2, from..to, 0..128]);
        let inputs = [rows.clone(), rows.clone(), rows];
        let q = cache.append(inputs, None, None, append.clone());
        q.expect("append");
    };
    let values = |cache: &KvCache<B>, from: usize, to: usize| {
        let part = from - cache.first()..to - cache.first();
        cache.tensors().map(|x| {
            let [b, h, _, d] = x.dims();
            numbers(&x.slice([0..b, 0..h, part.clone(), 0..d]))
        })
    };
    let options = (device, DType::F32);
    let mut whole = KvCache::new(SIZES, tokens, 8, options);
    fill(&mut whole, 0, tokens);
    for chunk in [1, 7, 64] {
        let most = kept_at_most(WINDOW as u64, chunk as u64, 8) as usize;
        assert!(most <= WINDOW + chunk + 2 * 8);
        // With memory for all tokens from the start, for what is kept, and for a part of it.
        for capacity in [tokens, most, 1] {
            let mut cache = KvCache::with_window(SIZES, capacity, 8, WINDOW, options);
            assert_eq!((cache.len(), cache.room()), (0, 0));
            let mut drops = 0;
            for from in (0..tokens).step_by(chunk) {
                let to = (from + chunk).min(tokens);
                let (first, before) = (cache.first(), cache.clone());
                let kept = values(&before, first, from);
                fill(&mut cache, from, to);
                drops += usize::from(cache.first() > first);
                assert_eq!((cache.len(), cache.first() % 8), (to, 0));
                assert!(cache.first() == 0 || cache.first() + WINDOW - 1 <= from);
                assert!(cache.kept() <= cache.room() && cache.room() <= most);
                let there = values(&cache, cache.first(), to);
                assert!(
                    there == values(&whole, cache.first(), to),
                    "{chunk} to {to}"
                );
                assert!(values(&before, first, from) == kept, "{chunk} to {to}");
                // Undo and redo.
                assert!(cache.truncate(from), "{chunk} from {from}");
                fill(&mut cache, from, to);
                let again = values(&cache, cache.first(), to);
                assert!(
                    again == values(&whole, cache.first(), to),
                    "{chunk} to {to}"
                );
            }
            assert!(drops > 1, "{chunk}: {drops}");
            // What the token at 100 sees is gone.
            assert!(!cache.truncate(100));
            assert_eq!((cache.len(), cache.first(), cache.kept()), (0, 0, 0));
        }
    }
}

// A test for each backend, since one leaves a core idle for a minute.
#[test]
fn a_cache_with_a_window_forgets() {
    forgets::<Flex>(300, &Default::default());
}

#[test]
fn a_cache_with_a_window_forgets_on_vulkan() {
    forgets::<Vulkan>(200, &WgpuDevice::Cpu);
}

#[test]
fn a_cache_with_a_window_forgets_with_fusion() {
    forgets::<Fused>(200, &WgpuDevice::Cpu);
}

/// After every kind of wrong input the cache is unchanged, and can still be appended to.
fn survives<B: AttentionBackend>(device: &B::Device) {
    let norms = [random::<B, 1>([16], device), random::<B, 1>([16], device)];
    let rotation = random::<B, 2>([5, 8], device);
    let rows = |shape| random::<B, 3>(shape, device);
    let mut cache = KvCache::<B>::new(SIZES, 8, 8, device);
    let good = |cache: &mut KvCache<B>, tokens| {
        let x = rows([2, tokens, 128]);
        let rotation = rotation.clone().slice([0..tokens, 0..8]);
        let inputs = [x.clone(), x.clone(), x];
        cache
            .append(inputs, Some(&norms), Some(&rotation), append())
            .expect("right inputs");
    };
    good(&mut cache, 5);
    let before = cache.tensors().map(|x| numbers(&x));

    let x = rows([2, 5, 128]);
    let narrow = rows([2, 5, 63]);
    let three = [x.clone(), x.clone(), x.clone()];
    let wide_norms = [random::<B, 1>([8], device), random::<B, 1>([8], device)];
    let other_batch = rows([3, 5, 128]);
    let half = x.clone().cast(DType::F16);
    let wrong: [([Tensor<B, 3>; 3], Option<&_>, Option<&_>, Append); 9] = [
        // Wrong shape of each tensor.
        (
            [narrow.clone(), x.clone(), x.clone()],
            Some(&norms),
            Some(&rotation),
            append(),
        ),
        (
            [x.clone(), narrow, x.clone()],
            Some(&norms),
            Some(&rotation),
            append(),
        ),
        (
            [x.clone(), x.clone(), other_batch],
            Some(&norms),
            Some(&rotation),
            append(),
        ),
        (three.clone(), Some(&wide_norms), Some(&rotation), append()),
        // Wrong element type.
        (
            [x.clone(), half.clone(), x.clone()],
            Some(&norms),
            Some(&rotation),
            append(),
        ),
        (
            [half.clone(), half.clone(), half],
            Some(&norms),
            Some(&rotation),
            append(),
        ),
        // A missing tensor, and one too many.
        (three.clone(), None, Some(&rotation), append()),
        (
            three.clone(),
            Some(&norms),
            Some(&rotation),
            Append {
                rotated: 0,
                interleaved: false,
                ..append()
            },
        ),
        // Wrong number in `Append`.
        (
            three,
            Some(&norms),
            Some(&rotation),
            Append {
                q_heads: 0,
                ..append()
            },
        ),
    ];
    for (i, (inputs, norms, rotation, append)) in wrong.into_iter().enumerate() {
        let mut copy = cache.clone();
        let result = copy.append(inputs, norms, rotation, append);
        assert!(result.is_err(), "{i}");
        assert_eq!((copy.len(), copy.room()), (5, 8), "{i}");
        assert_eq!(copy.tensors().map(|x| numbers(&x)), before, "{i}");
        good(&mut copy, 5);
        assert_eq!(copy.len(), 10, "{i}");
    }
}

#[test]
fn a_cache_survives_wrong_inputs() {
    survives::<Flex>(&Default::default());
    survives::<Vulkan>(&WgpuDevice::Cpu);
    survives::<Fused>(&WgpuDevice::Cpu);
}

/// As above, for a backend that refuses every operation.
#[test]
fn a_cache_survives_a_backend_that_refuses() {
    type B = burn::backend::Autodiff<Flex>;
    let device = Default::default();
    let mut cache = KvCache::<B>::new(SIZES, 8, 8, &device);
    let before = cache.tensors().map(|x| numbers(&x));
    let x = random::<B, 3>([2, 5, 128], &device);
    let append = Append {
        norm: None,
        rotated: 0,
        interleaved: false,
        ..append()
    };
    let result = cache.append([x.clone(), x.clone(), x], None, None, append);
    assert!(matches!(result, Err(OperationError::Gradients("append"))));
    assert_eq!((cache.len(), cache.room()), (0, 8));
    assert_eq!(cache.tensors().map(|x| numbers(&x)), before);
}
