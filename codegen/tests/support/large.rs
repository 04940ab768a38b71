//! A KV cache with more elements than 32 bits can count. It is zero except for the keys that some
//! queries see.

use crate::support::{Case, Launch, Map, Run, cases, noise, seen};
use butterfly_ir::{Dtype, LaunchScalars, Role, Rows, Target};
use half::bf16;
use std::collections::BTreeSet;

const HEADS: usize = 17;
const KEYS: usize = 1 << 20;
const DIM: usize = 256;
const QUERIES: usize = 3;

/// Element `column` of a row of q, k or v, as bf16 holds it.
fn element(seed: u32, head: usize, token: usize, column: usize) -> bf16 {
    bf16::from_f32(noise(seed + head as u32, token * DIM + column))
}

/// Bytes of a tensor `[HEADS, tokens, DIM]` that is zero except for the tokens `there`.
fn tensor(seed: u32, tokens: usize, there: impl Iterator<Item = usize> + Clone) -> Vec<u8> {
    let mut bytes = vec![0; HEADS * tokens * DIM * 2];
    for head in 0..HEADS {
        for token in there.clone() {
            for column in 0..DIM {
                let at = 2 * ((head * tokens + token) * DIM + column);
                let value = element(seed, head, token, column).to_le_bytes();
                bytes[at..at + 2].copy_from_slice(&value);
            }
        }
    }
    bytes
}

/// Checks the last queries of a long sequence, with each head compared with an f64 reference.
pub(crate) fn check(role: Role, target: Target, gpu: Run<'_>) {
    let mut case: Case = cases::case(role, DIM as u32);
    (case.spec.dtype, case.spec.group, case.spec.block) = (Dtype::Bf16, 1, 128);
    case.spec.rows = Rows::ClosedForm(cases::butterfly());
    (case.target, case.kv_heads, case.index) = (target, HEADS as u32, 12);
    (case.q_len, case.kv_len, case.capacity) = (QUERIES as u32, KEYS as u32, KEYS as u32);
    case.q_offset = (KEYS - QUERIES) as u32;

    let positions = (KEYS - QUERIES..KEYS).map(|position| position as u32);
    let keys: BTreeSet<u32> = positions.flat_map(|at| seen(&case, 0, at)).collect();
    let keys: Vec<usize> = keys.into_iter().map(|key| key as usize).collect();
    let (k, v) = (
        tensor(20, KEYS, keys.iter().copied()),
        tensor(40, KEYS, keys.iter().copied()),
    );
    assert!(k.len() as u64 / 2 > u64::from(u32::MAX));

    let kernel = butterfly_codegen::emit(&case.spec, target).expect("emits");
    let strides = |tokens: usize| [HEADS * tokens * DIM, tokens * DIM, DIM].map(|n| n as u64);
    let scale = 2.0 / (DIM as f32).sqrt();
    let scalars = LaunchScalars {
        q_len: case.q_len,
        kv_len: case.kv_len,
        q_offset: case.q_offset,
        kv_heads: case.kv_heads,
        blocks: case.capacity.div_ceil(case.spec.block),
        index: case.index,
        prompt: case.prompt,
        table: Default::default(),
        scale_bits: scale.to_bits(),
        q_strides: strides(QUERIES),
        k_strides: strides(KEYS),
        v_strides: strides(KEYS),
        o_strides: strides(QUERIES),
    };
    let boxes = kernel.geometry.boxes.expect("a kernel with tensor maps");
    let ([heads, tokens], keys_at_once) = (boxes.q, [1, 1, boxes.k, 64]);
    let map = |length: usize, tile| Map {
        bf16: true,
        shape: [1, HEADS as u32, length as u32, DIM as u32],
        strides: strides(length),
        tile,
    };
    let launch = Launch {
        inputs: vec![tensor(1, QUERIES, 0..QUERIES), k, v],
        o: vec![0; HEADS * QUERIES * DIM * 2],
        lse_bytes: HEADS * QUERIES * 4,
        grid: kernel.geometry.grid(&case.spec, &scalars, 1),
        keys: 0,
        maps: vec![
            map(QUERIES, [1, heads, tokens, 64]),
            map(KEYS, keys_at_once),
            map(KEYS, keys_at_once),
            map(QUERIES, [1, 1, tokens, 64]),
        ],
        by_value: Some(scalars.by_value(&case.spec, 1, &Default::default(), &[])),
    };
    let (o, lse) = gpu(&kernel, &launch);
    for head in 0..HEADS {
        for query in 0..QUERIES {
            let seen = seen(&case, 0, (KEYS - QUERIES + query) as u32);
            let value = |seed, token, column| element(seed, head, token, column).to_f64();
            let logits: Vec<f64> = (seen.iter())
                .map(|key| {
                    let products =
                        (0..DIM).map(|c| value(1, query, c) * value(20, *key as usize, c));
                    products.sum::<f64>() * f64::from(scale)
                })
                .collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let end = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
            let at = head * QUERIES + query;
            let bytes = [0, 1, 2, 3].map(|i| lse[4 * at + i]);
            let off = (f64::from(f32::from_le_bytes(bytes)) - end).abs();
            assert!(
                off <= 1e-4,
                "{role:?}: lse of head {head}, query {query} is {off} off"
            );
            for c in 0..DIM {
                let weighted = logits.iter().zip(&seen);
                let weighted =
                    weighted.map(|(x, key)| (x - end).exp() * value(40, *key as usize, c));
                let want: f64 = weighted.sum();
                let at = 2 * (at * DIM + c);
                let got = bf16::from_le_bytes([o[at], o[at + 1]]).to_f64();
                let near = (got - want).abs() <= 1.6e-2;
                assert!(
                    near,
                    "{role:?}: o of head {head}, query {query}, column {c} is {got}, not {want}"
                );
            }
        }
    }
}
