//! KernelSpec → the numbers of a decode kernel, or the reason why there is none.

use super::super::source::{self, SHARED_LIMIT};
use butterfly_ir::{Dtype, Geometry, KernelSpec, Split};

/// Warps of a thread block.
const WARPS: u32 = 4;

pub(super) const THREADS: u32 = WARPS * 32;

/// Keys of a tile, the depth of a product.
pub(super) const K_TILE: u32 = 16;

/// Sums of outputs that a thread may hold.
const MOST_SUMS: u32 = 128;

/// Sums of outputs that leave registers for three blocks on a processor.
const FEW_SUMS: u32 = 64;

/// Shared memory of a multiprocessor on sm_90, in bytes.
const SHARED_OF_PROCESSOR: u32 = 233_472;

/// Shared memory that each thread block takes beyond what it asks for.
const SHARED_RESERVED: u32 = 1024;

/// Bytes of a row of `columns` elements: an odd number of pieces of 16 bytes, so that
/// eight rows of one column of pieces lie in different banks.
const fn pitch(columns: u32) -> u32 {
    ((columns.next_multiple_of(16) / 8) | 1) * 16
}

/// What can be chosen freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuning {
    /// Thread blocks of a cluster: a power of two, at most 8.
    pub(super) cluster: u32,
    /// Thread blocks that a processor holds at once.
    pub(super) per_processor: u32,
    /// Tiles of K and V in shared memory, of each team.
    pub(super) slots: u32,
}

impl Tuning {
    /// The best known for `sizes`, from measurements on an H100 and an H200. Where rows are few, four
    /// blocks of threads share one; larger clusters leave processors free where rows are many.
    /// Two blocks of a processor hide each other's latency, with a second tile on its way for each
    /// team.
    fn of(sizes: &Sizes) -> Option<Self> {
        let tuning = |per_processor, slots| Self {
            cluster: 4,
            per_processor,
            slots,
        };
        // Else as many as fit; more slots only where outputs need the room.
        let all = (1..=3)
            .rev()
            .flat_map(|blocks| (1..=4).map(move |slots| tuning(blocks, slots)));
        let few_sums = sizes.sums <= FEW_SUMS;
        let best = few_sums.then(|| tuning(2, 2));
        let all = best.into_iter().chain(all);
        let mut fitting = all.filter(|t| sizes.fits(t) && (few_sums || t.per_processor < 3));
        fitting.next()
    }
}

/// Bytes of shared memory.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// q heads of a group, rounded up to rows of products.
    pub(super) rows: u32,
    /// From one row to the next: of q and k, and of v.
    pub(super) q_pitch: u32,
    pub(super) v_pitch: u32,
    /// A tile of K and V.
    pub(super) slot: u32,
    /// Warps of a team: one, or all.
    pub(super) team: u32,
    /// Sums of outputs that a thread holds.
    sums: u32,
    /// What a team leaves: the outputs of a group.
    output: u32,
}

impl Sizes {
    fn of(spec: &KernelSpec) -> Self {
        let rows = spec.group.next_multiple_of(16);
        let (q_pitch, v_pitch) = (pitch(spec.head_dim), pitch(spec.v_head_dim));
        let sums = |team: u32| rows / 16 * spec.v_head_dim.div_ceil(16 * team) * 8;
        let team = if sums(1) <= MOST_SUMS { 1 } else { WARPS };
        Self {
            rows,
            q_pitch,
            v_pitch,
            slot: K_TILE * (q_pitch + v_pitch),
            team,
            sums: sums(team),
            output: spec.group * spec.v_head_dim * 4,
        }
    }

    /// Teams of a thread block.
    pub(super) fn teams(&self) -> u32 {
        WARPS / self.team
    }

    /// Whether the queries stay in registers.
    pub(super) fn keeps_queries(&self, head_dim: u32) -> bool {
        self.rows / 16 * head_dim.div_ceil(16) <= 8
    }

    /// Every team leaves two numbers for each row, and so does the block.
    fn all(&self, slots: u32) -> u32 {
        self.rows * (self.q_pitch + 8 * (self.teams() + 1)) + self.teams() * slots * self.slot
    }

    fn fits(&self, tuning: &Tuning) -> bool {
        let bytes = self.all(tuning.slots);
        let together = tuning.per_processor * (bytes + SHARED_RESERVED);
        // Outputs take the place of tiles.
        self.output <= tuning.slots * self.slot
            && bytes <= SHARED_LIMIT
            && together <= SHARED_OF_PROCESSOR
    }
}

/// The numbers of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(super) tuning: Tuning,
    pub(super) sizes: Sizes,
    /// Bands of a closed form; 0 for a table.
    pub(super) bands: u32,
    /// Offsets into shared memory.
    pub(super) slots_at: u32,
    pub(super) teams_at: u32,
    pub(super) rows_at: u32,
    pub(super) shared_bytes: u32,
}

impl Plan {
    /// The plan of `spec`, or why this generator does not make it.
    pub(crate) fn new(spec: &KernelSpec) -> Result<Self, &'static str> {
        let tuning = Tuning::of(&Sizes::of(spec));
        Self::with(
            spec,
            tuning.ok_or("a tile of keys and values does not fit shared memory")?,
        )
    }

    /// The plan with these choices.
    pub(super) fn with(spec: &KernelSpec, tuning: Tuning) -> Result<Self, &'static str> {
        if spec.dtype == Dtype::F32 {
            return Err("matrix units take 16-bit elements");
        }
        if spec.group > 32 {
            return Err("the scores of more than 32 q heads do not fit the registers");
        }
        let bands = source::bands(spec)?;
        let sizes = Sizes::of(spec);
        if sizes.sums > MOST_SUMS {
            return Err("the output of a group does not fit the registers");
        }
        if !sizes.fits(&tuning) {
            return Err("the output of a group does not fit shared memory");
        }
        let slots_at = sizes.rows * sizes.q_pitch;
        let teams_at = slots_at + sizes.teams() * tuning.slots * sizes.slot;
        Ok(Self {
            tuning,
            bands,
            slots_at,
            teams_at,
            rows_at: teams_at + sizes.teams() * sizes.rows * 8,
            shared_bytes: sizes.all(tuning.slots),
            sizes,
        })
    }

    /// How the kernel is launched.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            threads: [THREADS, 1, 1],
            q_tile: 1,
            k_tile: K_TILE,
            shared_bytes: self.shared_bytes,
            split: Some(Split {
                cluster: self.tuning.cluster,
                per_processor: self.tuning.per_processor,
            }),
            resident: None,
        }
    }
}
