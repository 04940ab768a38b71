//! Pairs sorted by expert, and the tiles of pairs that experts have.

use super::tiles::Units;
use crate::cube::launch::{array, empty};
use crate::cube::unit::expert_of;
use ::cubecl::prelude::*;
use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

/// Units of a workgroup.
const UNITS: u32 = 256;
/// Ids of a unit that are in shared memory at a time, and what the memory has for each unit: one more, so that units
/// read different banks.
const AT_ONCE: u32 = 8;
const PITCH: u32 = AT_ONCE + 1;

/// Pairs sorted by expert, those of one expert in their order.
pub(super) struct Arrangement<R: CubeRuntime> {
    /// [pairs].
    pub(super) order: CubeTensor<R>,
    /// Where the pairs of each expert begin in the order, [experts + 1].
    pub(super) offsets: CubeTensor<R>,
    /// The expert of each tile, and the number of the tile among those of the expert, [tiles, 2]; tiles that do not
    /// exist have expert `u32::MAX`.
    pub(super) tiles: CubeTensor<R>,
    /// The most tiles that there can be.
    pub(super) count: usize,
    pub(super) units: Units,
}

impl<R: CubeRuntime> Arrangement<R> {
    /// That of ids below `experts`, in tiles for what multiplies them.
    pub(super) fn of(ids: &CubeTensor<R>, experts: usize, units: Units) -> Self {
        let tile = units.tile();
        let pairs = ids.meta.num_elements();
        // Each expert can have a tile that is not full.
        let count = pairs / tile as usize + experts.min(pairs);
        let order = empty(ids, [pairs], DType::U32);
        let offsets = empty(ids, [experts + 1], DType::U32);
        let tiles = empty(ids, [count, 2], DType::U32);
        // SAFETY: every pair has an expert below `experts`, and the buffers have the lengths that the kernels are given.
        unsafe {
            sort_kernel::launch_unchecked::<R>(
                &ids.client,
                CubeCount::Static(experts as u32, 1, 1),
                CubeDim::new_1d(UNITS),
                array(ids),
                array(&order),
                array(&offsets),
                pairs as u32,
            );
            tiles_kernel::launch_unchecked::<R>(
                &ids.client,
                CubeCount::Static(1, 1, 1),
                CubeDim::new_1d(UNITS),
                array(&offsets),
                array(&tiles),
                count as u32,
                experts as u32,
                tile,
            );
        }
        Self {
            order,
            offsets,
            tiles,
            count,
            units,
        }
    }
}

/// Copies the experts of ids `first..first + AT_ONCE` of every unit's `span` consecutive pairs to `held`: units read
/// ids that lie side by side. What does not exist has no expert.
#[cube]
fn hold(
    ids: &Array<i32>,
    held: &mut SharedMemory<u32>,
    pairs: u32,
    span: u32,
    first: u32,
    experts: u32,
) {
    sync_cube();
    for i in 0..AT_ONCE {
        let at = UNIT_POS + i * UNITS;
        let (unit, number) = (at / AT_ONCE, at % AT_ONCE);
        let pair = unit * span + first + number;
        let mut expert = u32::MAX.runtime();
        if first + number < span && pair < pairs {
            expert = expert_of(ids, pair, experts);
        }
        held[(unit * PITCH + number) as usize] = expert;
    }
    sync_cube();
}

/// A workgroup finds the pairs of one expert; each unit looks at consecutive pairs.
#[cube(launch_unchecked)]
fn sort_kernel(ids: &Array<i32>, order: &mut Array<u32>, offsets: &mut Array<u32>, pairs: u32) {
    let mut counts = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let mut below = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let mut held = SharedMemory::<u32>::new(comptime!((UNITS * PITCH) as usize));
    let expert = CUBE_POS_X;
    let span = (pairs + comptime!(UNITS - 1)) / UNITS;
    let mut own = 0u32;
    let mut before = 0u32;
    let mut first = 0u32;
    while first < span {
        hold(ids, &mut held, pairs, span, first, CUBE_COUNT_X);
        for i in 0..AT_ONCE {
            let id = held[(UNIT_POS * PITCH + i) as usize];
            if id == expert {
                own += 1u32;
            } else if id < expert {
                before += 1u32;
            }
        }
        first += AT_ONCE;
    }
    counts[UNIT_POS as usize] = own;
    below[UNIT_POS as usize] = before;
    sync_cube();
    // Where the unit's pairs go: after those of smaller experts, and those of units before it.
    let mut at = 0u32;
    for unit in 0..UNITS {
        at += below[unit as usize];
        if unit < UNIT_POS {
            at += counts[unit as usize];
        }
    }
    if UNIT_POS == 0u32 {
        offsets[CUBE_POS_X as usize] = at;
        if CUBE_POS_X == CUBE_COUNT_X - 1u32 {
            offsets[CUBE_COUNT_X as usize] = pairs;
        }
    }
    first = 0u32;
    while first < span {
        hold(ids, &mut held, pairs, span, first, CUBE_COUNT_X);
        for i in 0..AT_ONCE {
            if held[(UNIT_POS * PITCH + i) as usize] == expert {
                order[at as usize] = UNIT_POS * span + first + i;
                at += 1u32;
            }
        }
        first += AT_ONCE;
    }
}

#[cube(launch_unchecked)]
fn tiles_kernel(
    offsets: &Array<u32>,
    tiles: &mut Array<u32>,
    count: u32,
    #[comptime] experts: u32,
    #[comptime] tile: u32,
) {
    let mut first = SharedMemory::<u32>::new(comptime!(experts as usize + 1));
    let mut e = UNIT_POS;
    while e < experts {
        let pairs = offsets[(e + 1u32) as usize] - offsets[e as usize];
        first[e as usize] = (pairs + comptime!(tile - 1)) / tile;
        e += UNITS;
    }
    sync_cube();
    if UNIT_POS == 0u32 {
        let mut sum = 0u32;
        for e in 0..experts {
            let own = first[e as usize];
            first[e as usize] = sum;
            sum += own;
        }
        first[experts as usize] = sum;
    }
    sync_cube();
    let mut e = UNIT_POS;
    while e < experts {
        let start = first[e as usize];
        for i in start..first[(e + 1u32) as usize] {
            tiles[(2u32 * i) as usize] = e;
            tiles[(2u32 * i + 1u32) as usize] = i - start;
        }
        e += UNITS;
    }
    let mut i = first[experts as usize] + UNIT_POS;
    while i < count {
        tiles[(2u32 * i) as usize] = u32::MAX.runtime();
        tiles[(2u32 * i + 1u32) as usize] = 0u32;
        i += UNITS;
    }
}
