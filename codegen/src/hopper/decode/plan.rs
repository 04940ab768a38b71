//! KernelSpec → the numbers of a decode kernel, or the reason why there is none.

use super::super::source;
use butterfly_ir::{Dtype, Geometry, KernelSpec, Rows, Split};

pub(super) const THREADS: u32 = 128;

/// Keys of a tile: 16 for each warp.
pub(super) const K_TILE: u32 = 64;

/// Bytes from one row of weights to the next.
pub(super) const WEIGHTS_PITCH: u32 = pitch(K_TILE);

/// Blocks of threads of a cluster, the most that every device of this generation takes.
const CLUSTER: u32 = 8;

/// Shared memory of a thread block and of a multiprocessor on sm_90, in bytes.
const SHARED_LIMIT: u32 = 232_448;
const SHARED_OF_PROCESSOR: u32 = 233_472;

/// Shared memory that each thread block takes beyond what it asks for.
const SHARED_RESERVED: u32 = 1024;

/// Bytes of a row of `columns` elements: an odd number of pieces of 16 bytes, so that
/// eight rows of one column of pieces lie in different banks.
const fn pitch(columns: u32) -> u32 {
    ((columns.next_multiple_of(16) / 8) | 1) * 16
}

/// The numbers of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(super) cluster: u32,
    /// Thread blocks that a processor holds at once.
    pub(super) per_processor: u32,
    /// Tiles of K and V in shared memory.
    pub(super) slots: u32,
    /// q heads of a group, rounded up to rows of products.
    pub(super) rows: u32,
    /// Bands of a closed form; 0 for a table.
    pub(super) bands: u32,
    /// Bytes from one row to the next: of q and k, and of v.
    pub(super) q_pitch: u32,
    pub(super) v_pitch: u32,
    /// Offsets into shared memory, and bytes of a tile of K and V.
    pub(super) slots_at: u32,
    pub(super) slot_bytes: u32,
    pub(super) weights_at: u32,
    pub(super) warps_at: u32,
    pub(super) rows_at: u32,
    pub(super) shared_bytes: u32,
}

impl Plan {
    /// The plan of `spec`, or why this generator does not make it.
    pub(crate) fn new(spec: &KernelSpec) -> Result<Self, &'static str> {
        if spec.dtype == Dtype::F32 {
            return Err("matrix units take 16-bit elements");
        }
        if spec.group > 32 {
            return Err("the output of more than 32 q heads does not fit the registers");
        }
        let bands = source::bands(spec)?;
        let rows = spec.group.next_multiple_of(16);
        let (q_pitch, v_pitch) = (pitch(spec.head_dim), pitch(spec.v_head_dim));
        let slots_at = rows * q_pitch;
        let slot_bytes = K_TILE * (q_pitch + v_pitch);
        let weights_bytes = rows * WEIGHTS_PITCH;
        // Four warps leave a number for each row, and each row two.
        let bytes = |slots: u32| slots_at + slots * slot_bytes + weights_bytes + rows * 24;

        // The loads of several blocks hide each other's latency best; then a second tile for
        // each. No more tiles than a row has.
        let tiles = match &spec.rows {
            Rows::ClosedForm(program) => program.most_keys(spec.block),
            Rows::Table => None,
        };
        let tiles = tiles.map_or(u64::MAX, |keys| keys.div_ceil(K_TILE.into()).max(1));
        let most = |blocks: u32, at_least: u32| {
            let at_least = u64::from(at_least).min(tiles) as u32;
            let room = |slots: u32| blocks * (bytes(slots) + SHARED_RESERVED);
            let fits =
                |slots: u32| bytes(slots) <= SHARED_LIMIT && room(slots) <= SHARED_OF_PROCESSOR;
            let slots = (at_least..=4).take_while(|slots| u64::from(*slots) <= tiles);
            slots
                .filter(|slots| fits(*slots))
                .max()
                .map(|slots| (slots, blocks))
        };
        let (slots, per_processor) = most(3, 2)
            .or_else(|| most(2, 1))
            .or_else(|| most(1, 1))
            .ok_or("a tile of keys and values does not fit shared memory")?;
        // The outputs of a group take the place of the tiles.
        if spec.group * spec.v_head_dim * 4 > slots * slot_bytes {
            return Err("the output of a group does not fit shared memory");
        }
        let weights_at = slots_at + slots * slot_bytes;
        let warps_at = weights_at + weights_bytes;
        Ok(Self {
            cluster: CLUSTER,
            per_processor,
            slots,
            rows,
            bands,
            q_pitch,
            v_pitch,
            slots_at,
            slot_bytes,
            weights_at,
            warps_at,
            rows_at: warps_at + rows * 16,
            shared_bytes: bytes(slots),
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
                cluster: self.cluster,
                per_processor: self.per_processor,
            }),
            resident: None,
        }
    }
}
