use super::*;
use crate::reference;
use butterfly_ir::{Band, Context, Sparsity, rows};

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// k [heads, kv_len, D] → means [heads, kv_len / pool, D].
fn means_of(k: &[f32], [kv_len, d]: [usize; 2], pool: usize) -> Vec<f32> {
    let of_head = |k: &[f32]| {
        let pools = k[..kv_len / pool * pool * d].chunks(pool * d);
        let mean = |keys: &[f32]| -> Vec<f32> {
            let of = |i: usize| keys[i..].iter().step_by(d).sum::<f32>() / pool as f32;
            (0..d).map(of).collect()
        };
        pools.flat_map(mean).collect::<Vec<f32>>()
    };
    k.chunks(kv_len * d).flat_map(of_head).collect()
}

struct Case {
    sizes: [usize; 3],
    d: usize,
    kv_len: usize,
    q_len: usize,
    blocks: Vec<u32>,
    pool: usize,
    every: usize,
}

/// The choice of every row is the best by the definition in f64, up to rounding, and does not depend
/// on whether queries come in one launch or block by block.
#[test]
fn rows_choose_the_best_blocks() {
    let text = "block 16 causal & (window(20) | sink(1))";
    let sparsity = Sparsity::parse("test", text).expect("a pattern");
    for (i, case) in [
        Case {
            sizes: [1, 1, 1],
            d: 16,
            kv_len: 160,
            q_len: 160,
            blocks: vec![2],
            pool: 4,
            every: 1,
        },
        Case {
            sizes: [2, 4, 2],
            d: 24,
            kv_len: 203,
            q_len: 203,
            blocks: vec![3, 1],
            pool: 16,
            every: 4,
        },
        Case {
            sizes: [1, 6, 2],
            d: 8,
            kv_len: 203,
            q_len: 60,
            blocks: vec![0, 4],
            pool: 8,
            every: 16,
        },
        Case {
            sizes: [3, 2, 1],
            d: 5,
            kv_len: 190,
            q_len: 1,
            blocks: vec![2],
            pool: 1,
            every: 8,
        },
        Case {
            sizes: [1, 1, 1],
            d: 16,
            kv_len: 9,
            q_len: 9,
            blocks: vec![2],
            pool: 4,
            every: 2,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let Case {
            sizes: [batch, q_heads, kv_heads],
            d,
            kv_len,
            q_len,
            blocks,
            pool: per,
            every,
        } = case;
        let q = random(batch * q_heads * q_len * d, i as u64);
        let k = random(batch * kv_heads * kv_len * d, 77 + i as u64);
        let room = kv_len / per;
        let means = means_of(&k, [kv_len, d], per);
        let context = Context::new(16, kv_len as u32, 0);
        let fixed = rows::table(&sparsity.pattern, &context, kv_heads as u32);
        let choice = Route {
            batch,
            q_heads,
            kv_heads,
            q_len,
            head_dim: d,
            q_offset: kv_len - q_len,
            block: 16,
            pool: per,
            every,
            scale: 0.3,
            q: &q,
            means: &means,
            room,
            blocks: &blocks,
            fixed: &fixed,
        };
        let table = route(&choice).expect("a table");
        let (first, last) = choice.rows();
        for list in 0..batch * kv_heads {
            for b in first..=last {
                let scores = reference::route_f64(&choice, &k, list, b);
                let (q0, q1) = choice.queries(b);
                let fixed = fixed.row(list % kv_heads, b);
                let could = chosen::candidates(fixed, (q0 as u32, q1 as u32), 16, b as u32);
                let of: Vec<u32> = table.row(list, b)[fixed.len()..]
                    .iter()
                    .map(|band| {
                        assert_eq!(*band, Band::keys(band.lo, band.lo + 16));
                        band.lo as u32 / 16
                    })
                    .collect();
                let wanted = blocks[list % kv_heads] as usize;
                assert_eq!(of.len(), wanted.min(could.len()), "case {i}, row {b}");
                let worst = of
                    .iter()
                    .map(|c| scores[*c as usize])
                    .fold(f64::INFINITY, f64::min);
                for c in could.iter().filter(|c| !of.contains(c)) {
                    assert!(
                        scores[*c as usize] <= worst * (1.0 + 1e-5),
                        "case {i}, row {b}"
                    );
                }
            }
        }
        for b in first..=last {
            let (q0, q1) = choice.queries(b);
            let part = q1 + 1 - q0;
            let from = |head: usize| (head * q_len + q0 - choice.q_offset) * d;
            let q: Vec<f32> = (0..batch * q_heads)
                .flat_map(|head| q[from(head)..][..part * d].to_vec())
                .collect();
            let alone = Route {
                q_len: part,
                q_offset: q0,
                q: &q,
                ..choice
            };
            let alone = route(&alone).expect("a table");
            for list in 0..batch * kv_heads {
                assert_eq!(alone.row(list, b), table.row(list, b));
            }
        }
    }
}

#[test]
fn errors_name_the_argument() {
    let fixed = BandTable {
        offsets: vec![0; 5],
        ..BandTable::default()
    };
    let (q, means) = (vec![0.0; 64 * 8], vec![0.0; 16 * 8]);
    let good = Route {
        batch: 1,
        q_heads: 1,
        kv_heads: 1,
        q_len: 64,
        head_dim: 8,
        q_offset: 0,
        block: 16,
        pool: 4,
        every: 1,
        scale: 1.0,
        q: &q,
        means: &means,
        room: 16,
        blocks: &[2],
        fixed: &fixed,
    };
    assert!(route(&good).is_ok());
    let error = |bad: Route<'_>| route(&bad).expect_err("a fault").to_string();
    assert!(error(Route { pool: 0, ..good }).contains("`pool` is 0"));
    assert!(error(Route { pool: 3, ..good }).contains("divides"));
    let short = Route {
        means: &means[..64],
        room: 8,
        ..good
    };
    assert!(error(short).contains("room for 8"), "{}", error(short));
    assert!(
        error(Route {
            blocks: &[],
            ..good
        })
        .contains("`blocks`")
    );
    assert!(
        error(Route {
            q_offset: 16,
            ..good
        })
        .contains("rows 1 to 4")
    );
    assert!(error(Route { q_heads: 0, ..good }).contains("0 query heads"));
}
