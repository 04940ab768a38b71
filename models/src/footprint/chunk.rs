//! The tensors of a chunk that exist at the same time.
//!
//! In:  a model. Out: for each operation of its layers, the bytes that one token has of each tensor that
//! exists while it runs, and how much memory these take together.

use super::{Place, wide32};
use butterfly_ir::Spread;
use butterfly_ir::model::{AttentionShape, FeedForwardGate, Form, ModelConfig, ModelSizes};
use std::collections::BTreeMap;

/// The tensors that exist while each operation of a layer runs, in bytes of a token; elements have
/// `bytes` bytes, and rows may be `quantised` before they are multiplied.
pub(super) fn steps(
    config: &ModelConfig,
    sizes: &ModelSizes,
    (bytes, quantised): (u128, bool),
    place: Place,
) -> Vec<Vec<u128>> {
    let mut steps = of_layer(config, sizes, (bytes, quantised), place);
    if quantised {
        steps.extend(quantised_rows(config, sizes, bytes, place));
    }
    steps
}

/// Rows, and the same as they are multiplied with weights in FP8.
fn quantised_rows(
    config: &ModelConfig,
    sizes: &ModelSizes,
    bytes: u128,
    place: Place,
) -> Vec<Vec<u128>> {
    let of = |elements: u128| match place {
        // Bytes, and a factor in f32 for every 128 of them.
        Place::Device { hopper: true } => vec![bytes * elements, elements, elements / 32],
        Place::Device { hopper: false } => vec![bytes * elements, bytes * elements],
        Place::Host => vec![4 * elements, 4 * elements],
    };
    let shape = config.attention.kernel_shape(Form::Expanded);
    let values = sizes.linear.map(|shape| [shape.v_heads, shape.v_dim]);
    let heads = [shape.q_heads, shape.v_head_dim];
    let products = [Some(heads), values].into_iter().flatten();
    let mut rows: Vec<u128> = products.map(|[a, b]| wide32(a) * wide32(b)).collect();
    rows.extend([sizes.hidden, sizes.intermediate].map(wide32));
    if let Some(experts) = &sizes.experts {
        let chosen = wide32(experts.chosen);
        let sizes = [sizes.hidden, experts.intermediate].map(wide32);
        rows.extend(sizes.map(|size| chosen * size));
        rows.extend(experts.shared.map(|shared| wide32(shared.intermediate)));
    }
    rows.into_iter().map(of).collect()
}

fn of_layer(
    config: &ModelConfig,
    sizes: &ModelSizes,
    (bytes, quantised): (u128, bool),
    place: Place,
) -> Vec<Vec<u128>> {
    let [hidden, inner] = [sizes.hidden, sizes.intermediate].map(wide32);
    // The residual stream is f32; what is added to it, and its norm, are not.
    let (stream, normed) = (4 * hidden, bytes * hidden);
    let mut steps = vec![vec![stream, stream, normed, normed]];
    if config.layers.iter().any(|kind| kind.is_softmax()) {
        steps.extend(match latents(config, bytes) {
            None => grouped(config, [stream, normed], bytes),
            Some(of) => of.steps([stream, normed]),
        });
    }
    if let Some(shape) = sizes.linear {
        let [k_heads, v_heads] = [shape.k_heads, shape.v_heads].map(wide32);
        let [k_dim, v_dim] = [shape.k_dim, shape.v_dim].map(wide32);
        let (keys, values) = (k_heads * k_dim, v_heads * v_dim);
        let rows = bytes * (2 * keys + 2 * values + 2 * v_heads);
        let result = bytes * values;
        let own = match place {
            // In chunks of 64 tokens: convolved rows, gates, their sums, and two matrices for each chunk and v head.
            Place::Device { hopper: true } if k_dim == 128 && v_dim == 128 => {
                let matrix = bytes * v_heads * 64;
                let convolved = bytes * (2 * keys + values);
                vec![convolved, 8 * v_heads, 4 * v_heads, matrix, matrix]
            }
            // Convolved rows and what is read from the state are f32.
            Place::Device { .. } | Place::Host => vec![4 * (2 * keys + values), 4 * values],
        };
        steps.extend([
            vec![stream, normed, rows],
            [&[stream, rows, result], own.as_slice()].concat(),
            vec![stream, result, normed],
        ]);
    }
    let dense = |inner: u128, more: &[u128]| {
        let inner = bytes * inner;
        let own = match place {
            Place::Device { hopper: true } if sizes.gate == FeedForwardGate::Silu => {
                vec![vec![normed, inner], vec![inner, normed]]
            }
            Place::Device { .. } | Place::Host => vec![
                vec![normed, 2 * inner],
                vec![2 * inner, inner],
                vec![inner, normed],
            ],
        };
        let own = own.into_iter();
        own.map(|own| [&[stream], more, own.as_slice()].concat())
            .collect::<Vec<_>>()
    };
    let Some(experts) = &sizes.experts else {
        steps.extend(dense(inner, &[]));
        return steps;
    };
    if !experts.dense.is_empty() {
        steps.extend(dense(inner, &[]));
    }
    let [count, chosen, size] = [experts.count, experts.chosen, experts.intermediate].map(wide32);
    // Numbers and weights of the chosen experts.
    let choice = 4 * chosen;
    let (size, rows) = (bytes * chosen * size, bytes * chosen * hidden);
    // Routers work in f32.
    steps.push(vec![stream, normed, 4 * hidden, 4 * count]);
    let mut kept = vec![stream, normed, choice, choice];
    if let Some(shared) = experts.shared {
        steps.extend(dense(
            wide32(shared.intermediate),
            &[normed, choice, choice],
        ));
        // What it gives is added at the end.
        kept.push(normed);
    }
    let with_choice = |own: &[u128]| [kept.as_slice(), own].concat();
    // Products of FP8 are gated at once.
    let hopper = place == Place::Device { hopper: true };
    if !(quantised && hopper && sizes.gate == FeedForwardGate::Silu) {
        steps.extend([with_choice(&[2 * size]), with_choice(&[2 * size, size])]);
    }
    steps.extend([with_choice(&[size, rows]), with_choice(&[rows, normed])]);
    steps
}

/// The steps of grouped attention.
fn grouped(config: &ModelConfig, [stream, normed]: [u128; 2], bytes: u128) -> Vec<Vec<u128>> {
    let heads = config.attention.kernel_shape(Form::Expanded);
    let [q, kv, dim] = [heads.q_heads, heads.kv_heads, heads.head_dim].map(wide32);
    let gate = if config.output_gate { 2 } else { 1 };
    let (rows, heads) = (bytes * (gate * q + 2 * kv) * dim, bytes * q * dim);
    vec![
        vec![stream, normed, rows],
        // q and o, then o in the order of tokens, or before and after its gate.
        vec![stream, rows, heads, heads],
        vec![stream, rows, heads, normed],
    ]
}

/// Bytes of a token in the tensors of latent attention.
struct Latents {
    /// The projections, and of these the latent of q.
    rows: u128,
    latent: u128,
    /// All heads: of q, of q against latents, of these without what is rotated, and of o.
    q: u128,
    absorbed: u128,
    sums: u128,
    o: u128,
}

/// Those of a model; `None` if it has another kind of attention.
fn latents(config: &ModelConfig, bytes: u128) -> Option<Latents> {
    let AttentionShape::Mla {
        q_heads,
        q_lora_rank,
        kv_lora_rank,
        nope_dim,
        rope_dim,
        v_dim,
    } = config.attention
    else {
        return None;
    };
    let [heads, rank, nope, rope, v] =
        [q_heads, kv_lora_rank, nope_dim, rope_dim, v_dim].map(wide32);
    let q = heads * (nope + rope);
    Some(Latents {
        rows: bytes * (q_lora_rank.map_or(q, wide32) + rank + rope),
        latent: bytes * q_lora_rank.map_or(0, wide32),
        q: bytes * q,
        absorbed: bytes * heads * (rank + rope),
        sums: bytes * heads * rank,
        o: bytes * heads * v,
    })
}

impl Latents {
    fn steps(&self, [stream, normed]: [u128; 2]) -> Vec<Vec<u128>> {
        let Self {
            rows,
            latent,
            q,
            absorbed,
            sums,
            o,
        } = *self;
        vec![
            vec![stream, normed, rows],
            vec![stream, rows, latent, q],
            // The products, then those with what is rotated behind them.
            vec![stream, rows, q, sums, absorbed],
            vec![stream, rows, absorbed, sums],
            // By heads, then in the order of tokens.
            vec![stream, rows, sums, o, o],
            vec![stream, rows, o, normed],
        ]
    }
}

/// What keys and values that are made of a token's latent take.
pub(super) fn expanded(config: &ModelConfig, bytes: u128, on_host: bool) -> u128 {
    let AttentionShape::Mla {
        q_heads,
        kv_lora_rank,
        nope_dim,
        rope_dim,
        v_dim,
        ..
    } = config.attention
    else {
        return 0;
    };
    let [heads, rank, nope, rope, v] =
        [q_heads, kv_lora_rank, nope_dim, rope_dim, v_dim].map(wide32);
    let results = heads * (nope + rope + v);
    // The host computes in f32, from latents in f32, and then rounds.
    let wide = if on_host && bytes < 4 {
        4 * (rank + rope + results)
    } else {
        0
    };
    bytes * results + wide
}

/// What the results of parts take while Hopper's decode kernels spread long rows over the device: f32, of
/// at most two workgroups for each of its SMs, and each with one kv head's q heads.
pub(super) fn partials(config: &ModelConfig, on_host: bool) -> u128 {
    const WORKGROUPS: u128 = 2 * 132;
    let of = |form| {
        let heads = config.attention.kernel_shape(form);
        let row = heads.v_head_dim + Spread::BESIDE_OUTPUT;
        4 * wide32(heads.group) * wide32(row)
    };
    match on_host {
        true => 0,
        false => WORKGROUPS * of(Form::Expanded).max(of(Form::Absorbed)),
    }
}

/// The memory that these take for each token.
///
/// The host gives memory back and uses it for other sizes. The pool of a device, in which tensors of a
/// chunk have memory of exactly their size, keeps for each size as many as ever exist at once.
pub(super) fn token(steps: &[Vec<u128>], on_host: bool) -> u128 {
    if on_host {
        let sums = steps.iter().map(|step| step.iter().sum());
        return sums.max().unwrap_or_default();
    }
    let mut most: BTreeMap<u128, u128> = BTreeMap::new();
    for step in steps {
        for size in step {
            let alike = step.iter().filter(|other| *other == size).count() as u128;
            let known = most.entry(*size).or_default();
            *known = alike.max(*known);
        }
    }
    most.iter().map(|(size, count)| size * count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_reused_on_devices_and_all_memory_on_hosts() {
        let steps = [vec![4, 4, 2], vec![4, 8], vec![4, 2, 2]];
        assert_eq!(token(&steps, true), 12);
        assert_eq!(token(&steps, false), 2 * 4 + 8 + 2 * 2);
    }
}
