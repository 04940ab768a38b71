//! Compares the kernel with the f64 reference, for all kinds of shapes and bands.

use butterfly_cpu::{Attention, Elements, Isa, Problem, Values, attend, attend_on, reference};
use butterfly_ir::{Band, BandTable, ScoreValues};
use half::{bf16, f16};

/// Sizes of a case; everything else follows from them.
#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    q_heads: usize,
    kv_heads: usize,
    q_len: usize,
    kv_len: usize,
    d: usize,
    dv: usize,
    block: usize,
}

const PLAIN: Shape = Shape {
    batch: 1,
    q_heads: 2,
    kv_heads: 1,
    q_len: 200,
    kv_len: 200,
    d: 16,
    dv: 16,
    block: 16,
};

/// The arrays of a case.
struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Random numbers in -2..2 from a seed, by splitmix64.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let number = |i: u64| {
        let mut z = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd1b5_4a32);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..len as u64).map(number).collect()
}

impl Shape {
    fn data(&self) -> Data {
        Data {
            q: numbers(self.batch * self.q_heads * self.q_len * self.d, 1),
            k: numbers(self.batch * self.kv_heads * self.kv_len * self.d, 2),
            v: numbers(self.batch * self.kv_heads * self.kv_len * self.dv, 3),
        }
    }

    /// The last query has the position of the last key.
    fn problem<'a>(&self, data: &'a Data, rows: &'a BandTable) -> Problem<'a> {
        Problem {
            score: Default::default(),
            batch: self.batch,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            q_len: self.q_len,
            kv_len: self.kv_len,
            kv_room: self.kv_len,
            head_dim: self.d,
            v_head_dim: self.dv,
            q_offset: self.kv_len - self.q_len,
            block: self.block,
            scale: 1.0 / (self.d as f32).sqrt(),
            q: &data.q,
            k: (&data.k).into(),
            v: (&data.v).into(),
            rows,
        }
    }

    fn rows(&self, bands: impl Fn(i32) -> Vec<Band>) -> BandTable {
        let mut table = BandTable {
            offsets: vec![0],
            ..BandTable::default()
        };
        for b in 0..self.kv_len.div_ceil(self.block) {
            table.bands.extend(bands(b as i32));
            table.offsets.push(table.bands.len() as u32);
        }
        table
    }

    /// `causal & (local(1) | partner(b - 2) | sink(1))`.
    fn butterfly(&self) -> BandTable {
        let (block, kv_len) = (self.block as i32, self.kv_len as i32);
        let causal = Band::relative(-(1 << 30), 1, kv_len);
        let keys = |from: i32, to: i32| Band::keys(from * block, to * block).intersect(&causal);
        self.rows(|b| {
            let mut bands = vec![keys((b - 1).max(0), b + 1), keys(0, 1)];
            if b >= 2 {
                bands.push(keys(b - 2, b - 1));
            }
            bands
        })
    }

    fn causal(&self) -> BandTable {
        self.rows(|_| vec![Band::relative(-(1 << 30), 1, self.kv_len as i32)])
    }
}

fn close(name: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let same = f64::from(got) == expected;
        let near = (f64::from(got) - expected).abs() <= 2e-5 + 1e-5 * expected.abs();
        assert!(same || near, "{name}[{i}] is {got}, expected {expected}");
    }
}

/// Compares the result of every instruction set that this CPU has with the reference.
fn holds(problem: &Problem) -> Attention {
    let (o, lse) = reference::attend_f64(problem, |head, q, k| problem.sees(head, q, k));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let got = attend_on(isa, problem, Some(2)).unwrap();
        close(&format!("{isa}: o"), &got.o, &o);
        close(&format!("{isa}: lse"), &got.lse, &lse);
    }
    attend(problem, None).unwrap()
}

fn check(shape: Shape, rows: &BandTable) -> Attention {
    let data = shape.data();
    println!("{shape:?}");
    let problem = shape.problem(&data, rows);
    // Keys and values that are stored in 16 bits, each in either type.
    let halves = [&data.k, &data.v].map(|x| x.iter().map(|x| f16::from_f32(*x)).collect());
    let brains = [&data.k, &data.v].map(|x| x.iter().map(|x| bf16::from_f32(*x)).collect());
    let ([k16, v16], [kb, vb]): ([Vec<f16>; 2], [Vec<bf16>; 2]) = (halves, brains);
    for (k, v) in [
        (Elements::from(&k16[..]), Elements::from(&vb[..])),
        (Elements::from(&kb[..]), Elements::from(&v16[..])),
    ] {
        let v = v.into();
        holds(&Problem { k, v, ..problem });
    }
    if shape.dv <= shape.d {
        for k in [problem.k, Elements::from(&k16[..]), Elements::from(&kb[..])] {
            let v = Values::InKeys { shared: false };
            holds(&Problem { k, v, ..problem });
        }
        // The keys of the first kv head of each sequence, for all of them.
        let (of_head, sequence) = (
            shape.kv_len * shape.d,
            shape.kv_heads * shape.kv_len * shape.d,
        );
        let shared: Vec<f32> = (data.k.chunks(sequence.max(1)))
            .flat_map(|keys| keys[..of_head].to_vec())
            .collect();
        holds(&Problem {
            k: (&shared).into(),
            v: Values::InKeys { shared: true },
            ..problem
        });
    }
    holds(&problem)
}

#[test]
fn lengths_and_blocks() {
    for block in [1, 7, 16, 128] {
        for len in [1, 2, 7, 127, 128, 129, 200, 301] {
            let shape = Shape {
                q_len: len,
                kv_len: len,
                block,
                ..PLAIN
            };
            check(shape, &shape.butterfly());
        }
    }
}

#[test]
fn groups_and_batches() {
    for (q_heads, kv_heads) in [(1, 1), (4, 4), (4, 1), (8, 2), (16, 1), (3, 1), (32, 2)] {
        for (batch, block) in [(1, 128), (3, 7)] {
            let shape = Shape {
                batch,
                q_heads,
                kv_heads,
                block,
                q_len: 150,
                kv_len: 150,
                ..PLAIN
            };
            check(shape, &shape.butterfly());
        }
    }
}

#[test]
fn head_dims() {
    for d in [1, 8, 16, 64, 80, 96, 128, 256, 576] {
        for dv in [8, d, 512] {
            let shape = Shape {
                d,
                dv,
                q_len: 70,
                kv_len: 140,
                block: 128,
                ..PLAIN
            };
            check(shape, &shape.butterfly());
        }
    }
}

#[test]
fn decode_and_chunks() {
    for (q_len, kv_len) in [(1, 1), (1, 200), (1, 257), (3, 100), (33, 130), (100, 333)] {
        for (q_heads, block) in [(1, 16), (4, 128), (16, 7)] {
            let shape = Shape {
                q_heads,
                q_len,
                kv_len,
                block,
                ..PLAIN
            };
            check(shape, &shape.butterfly());
        }
    }
}

#[test]
fn chunks_equal_one_prefill() {
    let shape = PLAIN;
    let (data, rows) = (shape.data(), shape.butterfly());
    let whole = attend(&shape.problem(&data, &rows), None).unwrap();
    let tail = Shape {
        q_heads: 1,
        q_len: 37,
        ..shape
    };
    let last = Data {
        q: data.q[163 * 16..200 * 16].to_vec(),
        ..shape.data()
    };
    let part = attend(&tail.problem(&last, &rows), None).unwrap();
    let expected: Vec<f64> = whole.o[163 * 16..200 * 16]
        .iter()
        .map(|&x| x.into())
        .collect();
    close("o", &part.o, &expected);
}

#[test]
fn dense_causal_window_and_full() {
    for (len, block) in [(300, 128), (300, 7), (700, 512)] {
        let shape = Shape {
            q_len: len,
            kv_len: len,
            block,
            ..PLAIN
        };
        check(shape, &shape.causal());
        check(
            shape,
            &shape.rows(|_| vec![Band::relative(-49, 1, len as i32)]),
        );
        check(
            shape,
            &shape.rows(|_| vec![Band::relative(-5, 9, len as i32)]),
        );
        check(shape, &shape.rows(|_| vec![Band::keys(0, len as i32)]));
    }
}

#[test]
fn overlapping_bands_count_once() {
    let shape = PLAIN;
    let single = check(shape, &shape.causal());
    let causal = Band::relative(-(1 << 30), 1, 200);
    let many = vec![
        causal,
        Band::relative(-30, 1, 200),
        causal,
        Band::keys(9, 3),
    ];
    let repeated = check(shape, &shape.rows(|_| many.clone()));
    assert_eq!(single, repeated);
}

#[test]
fn limits_beyond_the_keys_are_harmless() {
    let wild = Band {
        lo: i32::MIN,
        hi: i32::MAX,
        first: i32::MIN,
        end: i32::MAX,
    };
    let shape = PLAIN;
    let data = shape.data();
    let rows = shape.rows(|_| vec![wild]);
    let got = attend(&shape.problem(&data, &rows), None).unwrap();
    let all = shape.rows(|_| vec![Band::keys(0, 200)]);
    assert_eq!(got, attend(&shape.problem(&data, &all), None).unwrap());
}

#[test]
fn a_query_that_sees_nothing() {
    let shape = PLAIN;
    // Rows 3 and 4 see nothing; in row 5 the first queries see nothing, the others key 80.
    let rows = shape.rows(|b| match b {
        3 => vec![],
        4 => vec![Band::keys(7, 7)],
        5 => vec![Band::keys(80, 81).intersect(&Band::relative(-(1 << 30), -3, 200))],
        _ => vec![Band::keys(0, 5)],
    });
    let got = check(shape, &rows);
    for q in 48..83 {
        assert_eq!(got.lse[q], f32::NEG_INFINITY);
        assert!(got.o[q * 16..][..16].iter().all(|&x| x == 0.0));
    }
    assert!(got.lse[84].is_finite());
}

#[test]
fn softcap_and_sinks() {
    let shape = Shape {
        q_heads: 6,
        kv_heads: 2,
        batch: 2,
        ..PLAIN
    };
    let (data, rows) = (shape.data(), shape.butterfly());
    let sinks: Vec<f32> = (0..6).map(|head| head as f32 - 3.0).collect();
    let hidden = [f32::NEG_INFINITY; 6];
    for (softcap, sinks) in [
        (Some(0.5), None),
        (Some(30.0), Some(&sinks[..])),
        (None, Some(&sinks[..])),
        (None, Some(&hidden[..])),
    ] {
        let problem = Problem {
            score: ScoreValues { softcap, sinks },
            ..shape.problem(&data, &rows)
        };
        holds(&problem);
    }
    // If a query sees no key, its sink takes all the weight.
    let nothing = shape.rows(|_| vec![]);
    let problem = Problem {
        score: ScoreValues {
            softcap: None,
            sinks: Some(&sinks),
        },
        ..shape.problem(&data, &nothing)
    };
    let got = attend(&problem, None).unwrap();
    assert!(got.o.iter().all(|x| *x == 0.0));
    assert_eq!(got.lse[..shape.q_len], vec![-3.0; shape.q_len]);
}

#[test]
fn no_queries_and_no_keys() {
    let shape = Shape { q_len: 0, ..PLAIN };
    assert!(check(shape, &shape.causal()).o.is_empty());
    let (data, rows) = (PLAIN.data(), PLAIN.causal());
    let problem = Problem {
        kv_len: 0,
        kv_room: 0,
        q_offset: 0,
        k: Elements::F32(&[]),
        v: Elements::F32(&[]).into(),
        ..PLAIN.problem(&data, &rows)
    };
    let got = holds(&problem);
    assert!(got.lse.iter().all(|&x| x == f32::NEG_INFINITY));
}

#[test]
fn large_logits_stay_stable() {
    let shape = Shape {
        d: 64,
        dv: 64,
        ..PLAIN
    };
    // k has quarters, q has quarters times 2^8, and the scale is a power of two: every logit
    // is exact in f32. Logits reach thousands, so most weights underflow, and only those may.
    let coarse = |x: &f32| (x * 4.0).round() / 4.0;
    let data = shape.data();
    let data = Data {
        q: data.q.iter().map(|x| coarse(x) * 256.0).collect(),
        k: data.k.iter().map(coarse).collect(),
        v: data.v,
    };
    let rows = shape.butterfly();
    let problem = Problem {
        scale: 0.5,
        ..shape.problem(&data, &rows)
    };
    let got = holds(&problem);
    assert!(got.o.iter().all(|x| x.is_finite()));
    let largest = got.lse.iter().fold(0f32, |a, x| a.max(x.abs()));
    assert!(largest > 2e3, "the case is too tame: {largest}");
    for (scale, sign) in [(50.0, 1.0), (-50.0, -1.0)] {
        let got = attend(&Problem { scale, ..problem }, None).unwrap();
        assert!(
            got.o.iter().chain(&got.lse).all(|x| x.is_finite()),
            "{sign}"
        );
    }
}

#[test]
fn nothing_hides_a_number_that_is_none() {
    let mut data = PLAIN.data();
    data.q[5 * 16] = f32::NAN;
    let rows = PLAIN.butterfly();
    let got = attend(&PLAIN.problem(&data, &rows), None).unwrap();
    assert!(got.lse[5].is_nan() && got.o[5 * 16].is_nan());
    assert!(got.lse[4].is_finite() && got.lse[6].is_finite());
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = Shape {
        batch: 2,
        q_heads: 8,
        kv_heads: 2,
        q_len: 500,
        kv_len: 611,
        d: 80,
        dv: 96,
        block: 16,
    };
    let (data, rows) = (shape.data(), shape.butterfly());
    let problem = shape.problem(&data, &rows);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let bits = |threads| {
            let got = pool.install(|| attend_on(isa, &problem, threads)).unwrap();
            let all = got.o.iter().chain(&got.lse);
            all.map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let one = bits(Some(1));
        for threads in [Some(2), Some(3), Some(64), None] {
            assert!(one == bits(threads), "{isa}, {threads:?} threads");
        }
    }
}
