//! KernelSpec → the compile-time numbers of a Hopper decode kernel, or the reason why there is
//! none.

use super::super::source::{self, SHARED_LIMIT};
use super::spread;
use butterfly_ir::{Boxes, Dtype, Geometry, KernelSpec, Launch, Split, Spread};

/// Warps of a thread block.
const WARPS: u32 = 4;

pub(super) const THREADS: u32 = WARPS * 32;

/// Keys of a tile: the depth of an `mma` product.
pub(super) const K_TILE: u32 = 16;

/// Most output elements that a thread may hold in registers.
const MOST_SUMS: u32 = 128;

/// Bytes in a row of a box.
pub(super) const BOX_ROW: u32 = 128;

/// Bytes reserved to align the start of shared memory for swizzled boxes.
pub(super) const ALIGNMENT: u32 = 1024;

/// Shared memory of an SM on sm_90, in bytes.
const SHARED_OF_PROCESSOR: u32 = 233_472;

/// Bytes of shared memory that each thread block takes beyond those it requests.
const SHARED_RESERVED: u32 = 1024;

/// Choices that affect only speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuning {
    /// Thread blocks of a cluster: a power of two, at most 8.
    pub(super) cluster: u32,
    /// Thread blocks that an SM holds at once.
    pub(super) per_processor: u32,
    /// Slots of each team's ring in shared memory, each for a tile of K and V.
    pub(super) slots: u32,
}

impl Tuning {
    /// The best known choices for `sizes`, from measurements on an H100.
    ///
    /// A cluster is four thread blocks; with eight, fewer jobs would already fill the device. Each
    /// team has two slots: with more, the last tiles would arrive together and be computed after
    /// all copies are done. More slots are used only where outputs, which overwrite them, need the
    /// room. Where two thread blocks fit on an SM, they hide each other's latency.
    fn of(sizes: &Sizes) -> Option<Self> {
        let mut all = [2, 3, 4, 1].into_iter().flat_map(|slots| {
            [2, 1].map(|per_processor| Self {
                cluster: 4,
                per_processor,
                slots,
            })
        });
        all.find(|tuning| sizes.fits(tuning))
    }
}

/// Sizes of the data in shared memory and registers.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// q heads of a group, rounded up to the 8 columns of a product.
    pub(super) rows: u32,
    /// Boxes of 64 columns: of q and k, and of v.
    pub(super) d_boxes: u32,
    pub(super) v_boxes: u32,
    /// Bytes of a slot: a tile of K and V.
    pub(super) slot: u32,
    /// Warps of a team: one, or all of a thread block.
    pub(super) team: u32,
    /// Output elements that a thread holds in registers.
    sums: u32,
    /// Pitches of a team's output in shared memory, in floats: between a column and the next, and
    /// between a row and the next. With these, the threads of a warp store to different banks.
    pub(super) column_pitch: u32,
    pub(super) o_pitch: u32,
    /// Bytes of a team's output: that of a GQA group.
    output: u32,
}

impl Sizes {
    fn of(spec: &KernelSpec) -> Self {
        let rows = spec.group.next_multiple_of(8);
        let (d_boxes, v_boxes) = (spec.head_dim.div_ceil(64), spec.v_head_dim.div_ceil(64));
        // A row is stored as 8 runs of columns: those with the same remainder modulo 8 are
        // consecutive.
        let column_pitch = spec.v_head_dim.div_ceil(8).next_multiple_of(8) + 4;
        let o_pitch = 8 * column_pitch + 8;
        let sums = |team: u32| rows / 8 * spec.v_head_dim.div_ceil(16 * team) * 4;
        let team = if sums(1) <= MOST_SUMS { 1 } else { WARPS };
        Self {
            rows,
            d_boxes,
            v_boxes,
            slot: K_TILE * BOX_ROW * (d_boxes + v_boxes),
            team,
            sums: sums(team),
            column_pitch,
            o_pitch,
            output: spec.group * o_pitch * 4,
        }
    }

    /// Teams of a thread block.
    pub(super) fn teams(&self) -> u32 {
        WARPS / self.team
    }

    /// Whether the queries stay in registers for the whole job.
    pub(super) fn keeps_queries(&self, head_dim: u32) -> bool {
        self.rows / 8 * head_dim.div_ceil(16) <= 16
    }

    /// Bytes of the queries.
    fn queries(&self) -> u32 {
        self.rows * BOX_ROW * self.d_boxes
    }

    /// Bytes of shared memory in all. For each row (q head), every team stores two floats, and so
    /// does the thread block. There is an mbarrier for the queries, and one each for K and V of
    /// every slot.
    fn all(&self, slots: u32) -> u32 {
        let slots = self.teams() * slots;
        let rows = 8 * self.rows * (self.teams() + 1);
        ALIGNMENT + self.queries() + slots * self.slot + rows + 8 * (1 + 2 * slots)
    }

    fn fits(&self, tuning: &Tuning) -> bool {
        let bytes = self.all(tuning.slots);
        let together = tuning.per_processor * (bytes + SHARED_RESERVED);
        // A team's output overwrites its slots.
        self.output <= tuning.slots * self.slot
            && bytes <= SHARED_LIMIT
            && together <= SHARED_OF_PROCESSOR
    }
}

/// The compile-time numbers of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Blueprint {
    pub(super) tuning: Tuning,
    pub(super) sizes: Sizes,
    /// q heads of a group.
    group: u32,
    /// Number of bands of a closed form; 0 for a table.
    pub(super) bands: u32,
    /// Offsets into shared memory, in bytes.
    pub(super) slots_at: u32,
    pub(super) teams_at: u32,
    pub(super) rows_at: u32,
    pub(super) barriers_at: u32,
    pub(super) shared_bytes: u32,
    /// How long rows are spread.
    pub(super) spread: Option<Spread>,
}

impl Blueprint {
    /// The numbers for `spec`, or the reason why this generator does not take it.
    pub(crate) fn new(spec: &KernelSpec) -> Result<Self, &'static str> {
        let tuning = Tuning::of(&Sizes::of(spec));
        Self::with(
            spec,
            tuning.ok_or("a tile of keys and values does not fit shared memory")?,
        )
    }

    /// The numbers for `spec` with this tuning.
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
        let slots_at = sizes.queries();
        let teams_at = slots_at + sizes.teams() * tuning.slots * sizes.slot;
        let rows_at = teams_at + sizes.teams() * sizes.rows * 8;
        let shared_bytes = sizes.all(tuning.slots);
        Ok(Self {
            spread: spread::of(spec, &sizes, &tuning, shared_bytes),
            tuning,
            group: spec.group,
            bands,
            slots_at,
            teams_at,
            rows_at,
            barriers_at: rows_at + sizes.rows * 8,
            shared_bytes,
            sizes,
        })
    }

    /// How the kernel is launched.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            boxes: Some(Boxes {
                q: [self.group, 1],
                k: K_TILE,
            }),
            launch: Launch::Split(Split {
                cluster: self.tuning.cluster,
                spread: self.spread,
            }),
            ..Geometry::new([THREADS, 1, 1], [1, K_TILE], self.shared_bytes)
        }
    }
}
