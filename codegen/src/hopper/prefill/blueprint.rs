//! KernelSpec → the compile-time numbers of a Hopper prefill kernel, or the reason why there is
//! none.
//!
//! In:  any checked spec. Out: all numbers by which the text is specialised; the kernel fits the
//! registers and the shared memory of an SM.

use super::super::source::{self, SHARED_LIMIT};
use butterfly_ir::{Boxes, Dtype, Geometry, KernelSpec, Launch, Resident};

/// Registers of an SM.
const REGISTERS: u32 = 65_536;

/// Rows of a wgmma product, hence of a unit.
pub(super) const UNIT_ROWS: u32 = 64;

/// Choices that affect only speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// Thread blocks of a cluster, which share tiles of K and V: 1 or 2.
    pub(crate) cluster: u32,
    /// Warpgroups that compute.
    pub(crate) consumers: u32,
    /// Whether two consumers share one unit, whose output is too wide for the registers of one;
    /// else each consumer has its own unit.
    pub(crate) shares_unit: bool,
    /// Keys of a tile: 32, 64 or 128.
    pub(crate) k_tile: u32,
    /// Slots for Q in shared memory, each for one item's queries.
    pub(crate) q_slots: u32,
}

impl Tuning {
    /// The best known choices for the head sizes of `spec` and its units per row, from measurements
    /// on an H100 and an H200. Where the output is small, four consumers fit, which hide each
    /// other's softmax.
    fn of(spec: &KernelSpec, units_per_row: u32) -> Self {
        let widest = spec.head_dim.max(spec.v_head_dim);
        if spec.is_wide() {
            return Self {
                cluster: 1,
                consumers: 2,
                shares_unit: true,
                k_tile: 32,
                q_slots: 1,
            };
        }
        let many = widest <= 64 && units_per_row.is_multiple_of(4);
        Self {
            cluster: 1,
            consumers: if many { 4 } else { 2 },
            shares_unit: false,
            k_tile: if many || widest > 128 { 64 } else { 128 },
            q_slots: if widest > 128 { 1 } else { 2 },
        }
    }

    /// Units that a thread block computes at a time.
    pub(crate) fn units(&self) -> u32 {
        match self.shares_unit {
            true => 1,
            false => self.consumers,
        }
    }
}

/// How the scores of a block row are divided into units.
struct Units {
    /// Tokens and q heads of a unit.
    tokens: u32,
    heads: u32,
    /// Units that cover all q heads of a GQA group for the same tokens.
    of_heads: u32,
    /// Units that cover a block row.
    of_row: u32,
}

impl Units {
    fn of(spec: &KernelSpec) -> Option<Self> {
        let tokens = spec.block.min(UNIT_ROWS);
        let fits = tokens >= 16 && UNIT_ROWS.is_multiple_of(tokens);
        let heads = UNIT_ROWS / tokens;
        let of_heads = spec.group.div_ceil(heads);
        (fits && spec.block.is_multiple_of(tokens)).then(|| Self {
            tokens,
            heads,
            of_heads,
            of_row: of_heads * (spec.block / tokens),
        })
    }
}

/// The compile-time numbers of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Blueprint {
    pub(crate) tuning: Tuning,
    /// Tokens and q heads of a unit: 64 rows of scores.
    pub(crate) unit_tokens: u32,
    pub(crate) unit_heads: u32,
    /// Units that cover all q heads of a GQA group for the same tokens, and units of a block row.
    pub(crate) head_units: u32,
    pub(crate) units_per_row: u32,
    /// Swizzled chunks of 64 columns in a row of Q and K, and in a row of V.
    pub(crate) d_chunks: u32,
    pub(crate) v_chunks: u32,
    /// Slots of the ring, each for one tile of K or V.
    pub(crate) slots: u32,
    /// Columns of the output that a consumer holds.
    pub(crate) o_columns: u32,
    /// Whether the output is stored by TMA, from the slot of the unit's queries; else from
    /// registers.
    pub(crate) stored_by_copy: bool,
    /// Number of bands of a closed form; 0 for a table.
    pub(crate) bands: u32,
    /// Offsets into shared memory, in bytes.
    pub(crate) ring_at: u32,
    pub(crate) barriers_at: u32,
    pub(crate) tiles_at: u32,
    pub(crate) items_at: u32,
    pub(crate) bands_at: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) producer_registers: u32,
    pub(crate) consumer_registers: u32,
}

impl Blueprint {
    /// The numbers for `spec`, or the reason why this generator does not take it.
    pub(crate) fn new(spec: &KernelSpec) -> Result<Self, &'static str> {
        let units_per_row = Units::of(spec).map_or(1, |units| units.of_row);
        Self::with(spec, Tuning::of(spec, units_per_row))
    }

    /// The numbers for `spec` with this tuning.
    pub(super) fn with(spec: &KernelSpec, tuning: Tuning) -> Result<Self, &'static str> {
        if spec.dtype == Dtype::F32 {
            return Err("matrix units take 16-bit elements");
        }
        let o_columns = match tuning.shares_unit {
            false => spec.v_head_dim,
            // Each consumer multiplies half of every swizzled chunk of q and k, and half of the
            // chunks of v.
            true if spec.head_dim.is_multiple_of(64) && spec.v_head_dim.is_multiple_of(128) => {
                spec.v_head_dim / 2
            }
            true => return Err("heads of more than 256 have to be multiples of 64, of v of 128"),
        };
        if o_columns > KernelSpec::WARPGROUP_COLUMNS {
            return Err("the output of a unit has to fit the registers");
        }
        let bands = source::bands(spec)?;
        let units = Units::of(spec).ok_or("a block has to be 16, 32 or a multiple of 64 tokens")?;

        let d_chunks = spec.head_dim.div_ceil(64);
        let v_chunks = spec.v_head_dim.div_ceil(64);
        let ring_at = tuning.q_slots * tuning.units() * UNIT_ROWS * d_chunks * 128;
        let slot_bytes = tuning.k_tile * d_chunks.max(v_chunks) * 128;
        let headers = tuning.q_slots + 2;
        let small = |slots: u32| {
            let barriers = 2 * slots + (2 + tuning.consumers) * tuning.q_slots;
            let tiles_at = barriers * 8;
            let items_at = (tiles_at + slots * 8).next_multiple_of(16);
            let bands_at = items_at + headers * 16;
            (
                tiles_at,
                items_at,
                bands_at,
                bands_at + headers * bands * 16,
            )
        };
        // The kernel aligns the start of shared memory to 1024 bytes.
        let room = SHARED_LIMIT - 1024;
        let slots = (1..=24)
            .rev()
            .find(|slots| ring_at + slots * slot_bytes + small(*slots).3 <= room)
            .filter(|slots| *slots >= 3)
            .ok_or("three tiles of keys or values have to fit shared memory")?;
        let (tiles_at, items_at, bands_at, end) = small(slots);
        let barriers_at = ring_at + slots * slot_bytes;

        // A thread block starts with an equal number of registers for each thread, a multiple of
        // 8. Of these, the producer's warpgroup keeps a few, and the consumers share the rest in
        // multiples of 8. If they asked for more than there are, setmaxnreg would wait forever.
        let warpgroups = 1 + tuning.consumers;
        let started = REGISTERS / (128 * warpgroups) / 8 * 8 * warpgroups;
        let producer_registers = if tuning.consumers == 2 { 56 } else { 32 };
        let consumer_registers = (started - producer_registers) / tuning.consumers / 8 * 8;
        Ok(Self {
            tuning,
            unit_tokens: units.tokens,
            unit_heads: units.heads,
            head_units: units.of_heads,
            units_per_row: units.of_row,
            d_chunks,
            v_chunks,
            slots,
            o_columns,
            // With two slots for queries, the next item's queries do not have to wait for the one
            // from which the output is stored.
            stored_by_copy: tuning.q_slots > 1 && v_chunks <= d_chunks,
            bands,
            ring_at,
            barriers_at,
            tiles_at: barriers_at + tiles_at,
            items_at: barriers_at + items_at,
            bands_at: barriers_at + bands_at,
            shared_bytes: barriers_at + end + 1024,
            producer_registers,
            consumer_registers,
        })
    }

    /// Keys that a thread block copies at once: its share of a tile.
    pub(crate) fn k_box(&self) -> u32 {
        self.tuning.k_tile / self.tuning.cluster
    }

    /// How the kernel is launched.
    pub(crate) fn geometry(&self) -> Geometry {
        let tuning = &self.tuning;
        let units = tuning.cluster * tuning.units();
        // Units of a row are ordered by tokens: first all heads of the first tokens.
        let q_tile = self.unit_tokens * units.div_ceil(self.head_units);
        Geometry {
            boxes: Some(Boxes {
                q: [self.unit_heads, self.unit_tokens],
                k: self.k_box(),
            }),
            launch: Launch::Resident(Resident {
                items_per_row: self.units_per_row.div_ceil(units),
                cluster: tuning.cluster,
            }),
            ..Geometry::new(
                [self.threads(), 1, 1],
                [q_tile, tuning.k_tile],
                self.shared_bytes,
            )
        }
    }

    /// Threads of a thread block: the producer's warpgroup, and the consumers.
    pub(crate) fn threads(&self) -> u32 {
        128 * (1 + self.tuning.consumers)
    }
}
