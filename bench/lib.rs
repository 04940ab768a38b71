//! Shared by the measurements: cases, inputs and timing.
//!
//! In:  shapes. Out: arrays, band tables, and times in seconds.
//!
//! Invariant: the inputs are the same in every run. Nothing here depends on the compiler, so that
//! kernels are measured independently of its passes.

use butterfly_cpu::Problem;
use butterfly_ir::{
    Atom, BandTable, Bound, Context, PartnerRule, RowProgram, SymbolicBand, band::UNBOUNDED,
};
use std::time::Instant;

/// Block size of every case, in tokens.
pub const BLOCK: u32 = 128;
/// Number of q heads of every case.
pub const Q_HEADS: usize = 16;
/// Number of kv heads of every case.
pub const KV_HEADS: usize = 4;

/// The inputs of one case: one sequence with [`Q_HEADS`] q heads and [`KV_HEADS`] kv heads.
pub struct Case {
    /// Number of tokens: both queries and keys.
    pub tokens: usize,
    /// Head size of q, k and v.
    pub dim: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    /// A case with pseudo-random inputs in `-1..1`, the same in every run.
    pub fn new(tokens: usize, dim: usize) -> Self {
        Self {
            tokens,
            dim,
            q: numbers(Q_HEADS * tokens * dim, 1),
            k: numbers(KV_HEADS * tokens * dim, 2),
            v: numbers(KV_HEADS * tokens * dim, 3),
        }
    }

    /// The attention problem of this case with the bands in `rows`.
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
            k: (&self.k).into(),
            v: (&self.v).into(),
            rows,
        }
    }
}

/// `len` pseudo-random numbers in `-1..1`, from a linear congruential generator.
pub fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The bands of `causal & (local(1) | partner(causal_shift) | sink(1))` at stage 3.
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

/// The bands of dense causal attention.
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
        ..BandTable::default()
    };
    for row in 0..context.rows() {
        table.bands.extend(program.bands(row, 0, &context));
        table.offsets.push(table.bands.len() as u32);
    }
    table
}

/// The time that `work` takes, in seconds.
pub fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64()
}

/// The median; of an even number of values, the upper of the two in the middle.
///
/// # Panics
/// If `values` is empty.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
