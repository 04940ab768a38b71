//! What the measurements share: cases, inputs and the clock.
//!
//! In:  shapes. Out: owned arrays and band tables, seconds.
//!
//! Invariant: the same inputs in every run; nothing here depends on the compiler, so that
//! a kernel is measured apart from the passes that feed it.

use butterfly_cpu::Problem;
use butterfly_ir::{
    Atom, BandTable, Bound, Context, PartnerRule, RowProgram, SymbolicBand, band::UNBOUNDED,
};
use std::time::Instant;

/// Tokens in a block of every case.
pub const BLOCK: u32 = 128;
/// Hq of every case.
pub const Q_HEADS: usize = 16;
/// Hkv of every case.
pub const KV_HEADS: usize = 4;

/// The arrays of one case: one sequence, 16 query heads over 4 kv heads.
pub struct Case {
    /// T: queries and keys.
    pub tokens: usize,
    /// D and Dv.
    pub dim: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    /// Numbers in -1..1, the same in every run.
    pub fn new(tokens: usize, dim: usize) -> Self {
        Self {
            tokens,
            dim,
            q: numbers(Q_HEADS * tokens * dim, 1),
            k: numbers(KV_HEADS * tokens * dim, 2),
            v: numbers(KV_HEADS * tokens * dim, 3),
        }
    }

    /// Attention over `rows`.
    pub fn problem<'a>(&'a self, rows: &'a BandTable) -> Problem<'a> {
        Problem {
            score: Default::default(),
            batch: 1,
            q_heads: Q_HEADS,
            kv_heads: KV_HEADS,
            q_len: self.tokens,
            kv_len: self.tokens,
            kv_room: self.tokens,
            head_dim: self.dim,
            v_head_dim: self.dim,
            q_offset: 0,
            block: BLOCK as usize,
            scale: 1.0 / (self.dim as f32).sqrt(),
            q: &self.q,
            k: &self.k,
            v: &self.v,
            rows,
        }
    }
}

/// `len` numbers in -1..1 by a linear congruence.
pub fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// `causal & (local(1) | partner(causal_shift) | sink(1))` at stage 3.
pub fn standard_rows(tokens: usize) -> BandTable {
    let atoms = vec![
        Atom::Local {
            before: 1,
            after: 0,
        },
        Atom::Partner {
            rule: PartnerRule::CausalShift,
            radix: 2,
            offset: 0,
            step: 1,
        },
        Atom::Sink { blocks: 1 },
    ];
    let causal_part = |atom| SymbolicBand {
        lo: vec![Bound::Start(atom)],
        hi: vec![Bound::Stop(atom)],
        first: -UNBOUNDED,
        end: 1,
        heads: Default::default(),
    };
    table(
        tokens,
        &RowProgram {
            bands: (0..atoms.len() as u32).map(causal_part).collect(),
            atoms,
        },
    )
}

/// `causal`.
pub fn causal_rows(tokens: usize) -> BandTable {
    let band = SymbolicBand {
        lo: vec![],
        hi: vec![],
        first: -UNBOUNDED,
        end: 1,
        heads: Default::default(),
    };
    table(
        tokens,
        &RowProgram {
            atoms: vec![],
            bands: vec![band],
        },
    )
}

fn table(tokens: usize, program: &RowProgram) -> BandTable {
    let context = Context::new(BLOCK, tokens as u32, 3);
    let mut table = BandTable {
        offsets: vec![0],
        bands: Vec::new(),
    };
    for row in 0..context.rows() {
        table.bands.extend(program.bands(row, 0, &context));
        table.offsets.push(table.bands.len() as u32);
    }
    table
}

/// Seconds that `work` takes.
pub fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64()
}

/// The middle value; of an even number, the upper of the two.
///
/// # Panics
/// When there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
