//! KernelSpec → the numbers of a decode kernel, or the reason why there is none.

use super::super::source::{self, SHARED_LIMIT};
use butterfly_ir::{Dtype, Geometry, KernelSpec, Rows, Split};

pub(super) const THREADS: u32 = 128;

/// Keys of a tile: 16 for each warp.
pub(super) const K_TILE: u32 = 64;

/// Bytes from one row of weights to the next.
pub(super) const WEIGHTS_PITCH: u32 = pitch(K_TILE);

/// Blocks of threads of a cluster, the most that every device of this generation takes.
const CLUSTER: u32 = 8;

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
    /// Tiles of K and V in shared memory.
    pub(super) slots: u32,
}

impl Tuning {
    /// The best known for `sizes`, from measurements on an H200: the loads of several blocks
    /// hide each other's latency best; then a second tile for each.
    fn of(spec: &KernelSpec, sizes: &Sizes) -> Option<Self> {
        // No more tiles than a row has.
        let tiles = match &spec.rows {
            Rows::ClosedForm(program) => program.most_keys(spec.block),
            Rows::Table => None,
        };
        let tiles = tiles.map_or(u64::MAX, |keys| keys.div_ceil(K_TILE.into()).max(1));
        let most = |per_processor: u32, at_least: u32| {
            let tuning = |slots| Self {
                cluster: CLUSTER,
                per_processor,
                slots,
            };
            let at_least = u64::from(at_least).min(tiles) as u32;
            let slots = (at_least..=4).take_while(|slots| u64::from(*slots) <= tiles);
            slots.map(tuning).filter(|t| sizes.fits(t)).last()
        };
        most(3, 2).or_else(|| most(2, 1)).or_else(|| most(1, 1))
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
    /// Weights of a tile.
    weights: u32,
}

impl Sizes {
    fn of(spec: &KernelSpec) -> Self {
        let rows = spec.group.next_multiple_of(16);
        let (q_pitch, v_pitch) = (pitch(spec.head_dim), pitch(spec.v_head_dim));
        Self {
            rows,
            q_pitch,
            v_pitch,
            slot: K_TILE * (q_pitch + v_pitch),
            weights: rows * WEIGHTS_PITCH,
        }
    }

    /// Four warps leave a number for each row, and each row two.
    fn all(&self, slots: u32) -> u32 {
        self.rows * self.q_pitch + slots * self.slot + self.weights + self.rows * 24
    }

    fn fits(&self, tuning: &Tuning) -> bool {
        let bytes = self.all(tuning.slots);
        let together = tuning.per_processor * (bytes + SHARED_RESERVED);
        bytes <= SHARED_LIMIT && together <= SHARED_OF_PROCESSOR
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
    pub(super) weights_at: u32,
    pub(super) warps_at: u32,
    pub(super) rows_at: u32,
    pub(super) shared_bytes: u32,
}

impl Plan {
    /// The plan of `spec`, or why this generator does not make it.
    pub(crate) fn new(spec: &KernelSpec) -> Result<Self, &'static str> {
        let tuning = Tuning::of(spec, &Sizes::of(spec));
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
            return Err("the output of more than 32 q heads does not fit the registers");
        }
        let bands = source::bands(spec)?;
        let sizes = Sizes::of(spec);
        // The outputs of a group take the place of the tiles.
        let output = spec.group * spec.v_head_dim * 4;
        if !sizes.fits(&tuning) || output > tuning.slots * sizes.slot {
            return Err("the output of a group does not fit shared memory");
        }
        let slots_at = sizes.rows * sizes.q_pitch;
        let weights_at = slots_at + tuning.slots * sizes.slot;
        let warps_at = weights_at + sizes.weights;
        Ok(Self {
            tuning,
            bands,
            slots_at,
            weights_at,
            warps_at,
            rows_at: warps_at + sizes.rows * 16,
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
