//! Topology × tile sizes → what each workgroup of a kernel does, exactly.
//!
//! In:  a topology and a kernel's geometry. Out: counts that are the kernel's own: it
//! walks the same tiles, from the first key that any of its queries sees, in steps of
//! `k_tile`, passing over what none of them sees; where workgroups split the keys of a
//! query, each interval of them from its start.

use butterfly_ir::band::{UNBOUNDED, keys_of_query};
use butterfly_ir::{Band, Geometry, Phase, Topology};
use serde::Serialize;

/// The work of one q head of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Rows of blocks that have a query.
    pub rows: u64,
    /// Workgroups: tiles of queries, or queries in decode.
    pub workgroups: u64,
    /// Tiles of keys over all workgroups.
    pub tiles: u64,
    /// Those among them with a key that some query does not see.
    pub masked_tiles: u64,
    /// Most tiles of one workgroup.
    pub most_tiles: u64,
    /// (query, key) pairs that are seen.
    pub pairs: u64,
    /// (query, key) pairs in the tiles, as the kernel computes them: whole tiles.
    pub tile_pairs: u64,
    /// Keys that are loaded, over all tiles.
    pub keys: u64,
}

impl Schedule {
    /// Work of the heaviest workgroup over that of the mean one.
    pub fn imbalance(&self) -> f64 {
        self.most_tiles as f64 * self.workgroups as f64 / self.tiles.max(1) as f64
    }
}

/// Counts what the kernel of `phase` does for the queries `from..` of `topology`.
pub fn lower(topology: &Topology, phase: Phase, geometry: &Geometry, from: u32) -> Schedule {
    let q_tile = match phase {
        Phase::Prefill => geometry.q_tile,
        Phase::Decode => 1,
    };
    let kv_len = topology.context.kv_len as i32;
    let mut schedule = Schedule::default();
    for (b, row) in topology.rows.iter().enumerate() {
        let (q0, q1) = topology.queries(b as u32);
        let mut base = q0;
        schedule.rows += u64::from(from <= q1);
        while base <= q1 {
            let (first, last) = (base.max(from), (base + q_tile - 1).min(q1));
            base += q_tile;
            if first > last {
                continue;
            }
            schedule.pairs += (first..=last).map(|q| seen(&row.bands, q)).sum::<u64>();
            let before = schedule.tiles;
            let (first, last) = (first as i32, last as i32);
            schedule.workgroups += u64::from(geometry.split.map_or(1, |split| split.cluster));
            if let Some(split) = geometry.split {
                for length in intervals(&row.bands, first) {
                    schedule.tiles += u64::from(length.div_ceil(geometry.k_tile));
                    schedule.keys += u64::from(length);
                    schedule.masked_tiles += u64::from(!length.is_multiple_of(geometry.k_tile));
                }
                let of_one = (schedule.tiles - before).div_ceil(split.cluster.into());
                schedule.most_tiles = schedule.most_tiles.max(of_one);
                continue;
            }
            let mut cursor = next_key(&row.bands, first, last, 0);
            while cursor < UNBOUNDED {
                let end = (cursor + geometry.k_tile as i32).min(kv_len);
                schedule.tiles += 1;
                schedule.keys += (end - cursor) as u64;
                schedule.masked_tiles += u64::from(!is_full(&row.bands, first, last, cursor, end));
                cursor = next_key(&row.bands, first, last, end);
            }
            schedule.most_tiles = schedule.most_tiles.max(schedule.tiles - before);
        }
    }
    schedule.tile_pairs = schedule.tiles * u64::from(q_tile) * u64::from(geometry.k_tile);
    schedule
}

/// Keys that query `q` sees.
fn seen(bands: &[Band], q: u32) -> u64 {
    let ranges = keys_of_query(bands, q as i32);
    ranges
        .iter()
        .map(|(start, stop)| (stop - start) as u64)
        .sum()
}

/// Lengths of the intervals of keys that query `q` sees, one for each band: a key counts for
/// the first of them that has it, by start.
fn intervals(bands: &[Band], q: i32) -> Vec<u32> {
    let mut intervals: Vec<_> = bands.iter().map(|band| band.seen_by_any(q, q)).collect();
    intervals.retain(|(start, stop)| start < stop);
    intervals.sort_by_key(|(start, _)| *start);
    let mut covered = 0;
    let left = intervals.iter().map(|(start, stop)| {
        let from = covered.max(*start);
        covered = covered.max(*stop);
        (stop - from).max(0) as u32
    });
    left.filter(|length| *length > 0).collect()
}

/// The first key at or after `cursor` that a query of `q0..=q1` sees.
fn next_key(bands: &[Band], q0: i32, q1: i32, cursor: i32) -> i32 {
    let next = bands.iter().filter_map(|band| {
        let (start, stop) = band.seen_by_any(q0, q1);
        let start = start.max(cursor);
        (start < stop).then_some(start)
    });
    next.min().unwrap_or(UNBOUNDED)
}

/// Whether every query of `q0..=q1` sees every key of `start..stop`, by bands one after
/// the other.
fn is_full(bands: &[Band], q0: i32, q1: i32, start: i32, stop: i32) -> bool {
    let mut reach = start;
    loop {
        let seen = bands.iter().map(|band| band.seen_by_all(q0, q1));
        let further = seen.filter(|(first, _)| *first <= reach).map(|x| x.1).max();
        match further {
            Some(end) if end > reach => reach = end,
            _ => return reach >= stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify;
    use butterfly_ir::{Context, Sparsity};

    fn schedule(pattern: &str, kv_len: u32, phase: Phase, from: u32) -> Schedule {
        let sparsity = Sparsity::parse("test", pattern).expect("pattern");
        let context = Context::new(sparsity.block, kv_len, 0);
        let geometry = Geometry::new([1; 3], [16, 32], 0);
        let topology = classify::lower(&sparsity.pattern, &context);
        lower(&topology, phase, &geometry, from)
    }

    #[test]
    fn dense_causal_by_hand() {
        // Tiles of 16 queries see 1, 1, 2, 2 tiles of keys; the last of each has a mask.
        let dense = schedule("block 64 causal & all", 64, Phase::Prefill, 0);
        let by_hand = Schedule {
            rows: 1,
            workgroups: 4,
            tiles: 6,
            masked_tiles: 4,
            most_tiles: 2,
            pairs: 64 * 65 / 2,
            tile_pairs: 6 * 16 * 32,
            keys: 6 * 32,
        };
        assert_eq!(dense, by_hand);
        assert!((dense.imbalance() - 4.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn decode_takes_single_queries_and_ragged_ends() {
        let one = schedule("block 64 causal & all", 70, Phase::Decode, 69);
        assert_eq!((one.workgroups, one.tiles, one.masked_tiles), (1, 3, 0));
        assert_eq!((one.keys, one.tile_pairs), (70, 96));
    }

    #[test]
    fn what_no_query_sees_is_passed_over() {
        let sinks = schedule(
            "block 16 window(16) | causal & sink_tokens(1)",
            160,
            Phase::Prefill,
            144,
        );
        // One tile for the sink, one for the 31 keys of the windows.
        assert_eq!((sinks.workgroups, sinks.tiles), (1, 2));
    }
}
