//! Pattern × tile sizes → the exact work of a kernel's workgroups.
//!
//! In:  a pattern, a context and a kernel's geometry. Out: the counts of one launch, exact because
//! this pass visits the same tiles as the kernel. A workgroup starts at the first key that any of
//! its queries sees and goes on in steps of `k_tile`, skipping keys that none of them sees. Where
//! workgroups split the keys of a query, each interval of keys is cut into tiles from its start.

use crate::chosen;
use crate::stretch::{self, MOST, TooManyRows};
use crate::work;
use butterfly_ir::band::merge;
use butterfly_ir::topology::queries;
use butterfly_ir::{Band, Context, Geometry, Launch, Pattern, Role, rows};
use rayon::prelude::*;
use serde::Serialize;

/// The work of one q head of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Block rows that contain a query of the launch.
    pub rows: u64,
    /// Workgroups: one for each tile of queries; in decode, those of each query.
    pub workgroups: u64,
    /// Tiles of keys over all workgroups.
    pub tiles: u64,
    /// Those of them that need a mask: some query does not see some key.
    pub masked_tiles: u64,
    /// Most tiles of any workgroup.
    pub most_tiles: u64,
    /// (query, key) pairs of which the query sees the key.
    pub pairs: u64,
    /// (query, key) pairs that the kernel computes: all pairs of all visited tiles.
    pub tile_pairs: u64,
    /// Keys that are loaded, over all tiles.
    pub keys: u64,
}

impl Schedule {
    /// Adds `other` `times` times.
    fn add(&mut self, other: &Self, times: u64) {
        self.rows += times * other.rows;
        self.workgroups += times * other.workgroups;
        self.tiles += times * other.tiles;
        self.masked_tiles += times * other.masked_tiles;
        self.most_tiles = self.most_tiles.max(other.most_tiles);
        self.pairs += times * other.pairs;
        self.keys += times * other.keys;
    }

    /// Tiles of the heaviest workgroup, relative to the mean of all workgroups.
    pub fn imbalance(&self) -> f64 {
        self.most_tiles as f64 * self.workgroups as f64 / self.tiles.max(1) as f64
    }
}

/// The mean work of a q head where `kv_heads` heads may see other keys; `most_tiles` is the largest.
///
/// # Errors
/// As [`lower`].
pub fn of_heads(
    (pattern, kv_heads): (&Pattern, u32),
    context: &Context,
    role: Role,
    geometry: &Geometry,
    from: u32,
) -> Result<Schedule, TooManyRows> {
    let mut mean = Schedule::default();
    for (pattern, heads) in pattern.head_classes(kv_heads) {
        let of_head = lower(&pattern, context, role, geometry, from)?;
        mean.add(&of_head, heads.len() as u64);
        mean.tile_pairs += heads.len() as u64 * of_head.tile_pairs;
    }
    for sum in [
        &mut mean.rows,
        &mut mean.workgroups,
        &mut mean.tiles,
        &mut mean.masked_tiles,
        &mut mean.pairs,
        &mut mean.tile_pairs,
        &mut mean.keys,
    ] {
        *sum /= u64::from(kv_heads.max(1));
    }
    Ok(mean)
}

/// Counts the work of the kernel of `role` for the queries from position `from` to the last.
///
/// # Errors
/// [`TooManyRows`] if more than [`MOST`] rows would have to be counted one by one.
pub fn lower(
    pattern: &Pattern,
    context: &Context,
    role: Role,
    geometry: &Geometry,
    from: u32,
) -> Result<Schedule, TooManyRows> {
    let q_tile = match role {
        Role::Prefill => geometry.q_tile,
        Role::Decode => 1,
    };
    let kernel = Tiles {
        context,
        geometry,
        q_tile,
        from,
    };
    let row = |b: u32| kernel.row(&rows::row(pattern, context, b), b);
    let first_row = from / context.block;
    let mut schedule = Schedule::default();
    let mut alone = Vec::new();
    let stretches = match first_row {
        0 => stretch::lower(pattern, context)?,
        _later => Vec::new(),
    };
    if stretches.is_empty() {
        alone.push(first_row..context.rows());
    }
    for stretch in stretches {
        if stretch.first == stretch.last {
            alone.push(stretch.first..stretch.last + 1);
            continue;
        }
        let of = row(stretch.first);
        if of == row(stretch.last) {
            // Both ends have the same runs of tiles, hence all rows between them (see `Run`).
            schedule.add(&of.0, stretch.rows);
        } else if stretch.is_whole() {
            alone.push(stretch.first..stretch.last + 1);
        } else {
            // The stretch has holes and its rows differ: count all rows one by one.
            schedule = Schedule::default();
            alone.clear();
            alone.push(0..context.rows());
            break;
        }
    }
    let rows: u64 = alone
        .iter()
        .map(|rows| u64::from(rows.end - rows.start))
        .sum();
    if rows > MOST {
        return Err(TooManyRows {
            rows: context.rows(),
            most: MOST,
        });
    }
    let each = alone.into_par_iter().flat_map(|rows| rows.into_par_iter());
    let sum = |mut a: Schedule, b: Schedule| {
        a.add(&b, 1);
        a
    };
    let each = each.map(|b| row(b).0).reduce(Schedule::default, sum);
    schedule.add(&each, 1);
    let mut most_chosen = 0;
    for chosen in chosen::count(pattern, context, from)? {
        // Chosen blocks need no mask.
        let tiles = u64::from(context.block.div_ceil(geometry.k_tile));
        let q_tiles = chosen.queries.div_ceil(u64::from(q_tile));
        schedule.tiles += chosen.blocks * q_tiles * tiles;
        schedule.keys += chosen.blocks * q_tiles * u64::from(context.block);
        schedule.pairs += chosen.blocks * chosen.queries * u64::from(context.block);
        most_chosen = most_chosen.max(chosen.most * tiles);
    }
    schedule.most_tiles += most_chosen;
    schedule.tile_pairs = schedule.tiles * u64::from(q_tile) * u64::from(geometry.k_tile);
    Ok(schedule)
}

/// The distances, in keys, that decide how the kernel visits a run of adjacent tiles: the gap to
/// the run before, the number of keys, the distance to the end of the sequence, and where keys
/// that all queries see start and end. Along a stretch each distance is constant or affine in the
/// row number. So if two rows at the ends of a stretch have equal runs, so have all rows between.
type Run = Vec<i32>;

struct Tiles<'a> {
    context: &'a Context,
    geometry: &'a Geometry,
    q_tile: u32,
    from: u32,
}

impl Tiles<'_> {
    /// The work of row `b`, and its runs of tiles.
    fn row(&self, bands: &[Band], b: u32) -> (Schedule, Vec<Run>) {
        let (q0, q1) = queries(self.context, b);
        let mut schedule = Schedule {
            rows: u64::from(self.from <= q1),
            ..Schedule::default()
        };
        let mut runs = Vec::new();
        let mut base = q0;
        while base <= q1 {
            let (first, last) = (base.max(self.from), (base + self.q_tile - 1).min(q1));
            base += self.q_tile;
            if first > last {
                continue;
            }
            let (first, last) = (first as i32, last as i32);
            schedule.pairs += work::pairs(bands, (first, last));
            let before = schedule.tiles;
            let workgroups = match self.geometry.launch {
                Launch::Split(split) => {
                    self.intervals(bands, first, &mut schedule, &mut runs);
                    split.cluster
                }
                Launch::Grid | Launch::Resident(_) => {
                    self.walk(bands, (first, last), &mut schedule, &mut runs);
                    1
                }
            };
            schedule.workgroups += u64::from(workgroups);
            let of_one = (schedule.tiles - before).div_ceil(workgroups.into());
            schedule.most_tiles = schedule.most_tiles.max(of_one);
        }
        (schedule, runs)
    }

    fn intervals(&self, bands: &[Band], q: i32, schedule: &mut Schedule, runs: &mut Vec<Run>) {
        let k_tile = self.geometry.k_tile;
        for length in intervals(bands, q) {
            schedule.tiles += u64::from(length.div_ceil(k_tile));
            schedule.keys += u64::from(length);
            schedule.masked_tiles += u64::from(!length.is_multiple_of(k_tile));
            runs.push(vec![length as i32]);
        }
    }

    /// Visits tile after tile, from the first key that some query sees, skipping keys that none
    /// sees.
    fn walk(&self, bands: &[Band], q: (i32, i32), schedule: &mut Schedule, runs: &mut Vec<Run>) {
        let (kv_len, tile) = (self.context.kv_len as i32, self.geometry.k_tile as i32);
        let ranges = |of: fn(&Band, i32, i32) -> (i32, i32)| {
            let ranges = bands.iter().map(|band| of(band, q.0, q.1));
            merge(ranges.filter(|x| x.0 < x.1).collect())
        };
        let (any, all) = (ranges(Band::seen_by_any), ranges(Band::seen_by_all));
        let mut cursor = 0;
        for (start, stop) in any {
            let gap = start - cursor;
            let start = start.max(cursor);
            if start >= stop {
                continue;
            }
            let tiles = (stop - start + tile - 1) / tile;
            let end = (start + tiles * tile).min(kv_len);
            schedule.tiles += tiles as u64;
            schedule.keys += (end - start) as u64;
            let mut run = vec![
                gap.clamp(-tile, tile),
                stop - start,
                (kv_len - stop).min(tile),
            ];
            // Tiles that lie inside one range of keys that all queries see.
            let mut full = 0;
            for (from, to) in &all {
                let (from, to) = ((*from).max(start), (*to).min(end));
                if from < to {
                    let first = (from - start + tile - 1) / tile;
                    let last = match to == end {
                        true => tiles,
                        false => (to - start) / tile,
                    };
                    full += (last - first).max(0);
                    run.extend([from - start, to - start]);
                }
            }
            schedule.masked_tiles += (tiles - full) as u64;
            runs.push(run);
            cursor = end;
        }
    }
}

/// Lengths of the intervals of keys that query `q` sees, at most one for each band. A key in
/// several bands belongs to the one whose interval starts first.
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

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::Sparsity;

    fn schedule(pattern: &str, kv_len: u32, role: Role, from: u32) -> Schedule {
        let sparsity = Sparsity::parse("test", pattern).expect("pattern");
        let context = Context::new(sparsity.block, kv_len, 0);
        let geometry = Geometry::new([1; 3], [16, 32], 0);
        lower(&sparsity.pattern, &context, role, &geometry, from).expect("few rows")
    }

    #[test]
    fn dense_causal_by_hand() {
        // Tiles of 16 queries see 1, 1, 2, 2 tiles of keys; the last of each has a mask.
        let dense = schedule("block 64 causal & all", 64, Role::Prefill, 0);
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
        let one = schedule("block 64 causal & all", 70, Role::Decode, 69);
        assert_eq!((one.workgroups, one.tiles, one.masked_tiles), (1, 3, 0));
        assert_eq!((one.keys, one.tile_pairs), (70, 96));
    }

    #[test]
    fn what_no_query_sees_is_passed_over() {
        let sinks = schedule(
            "block 16 window(16) | causal & sink_tokens(1)",
            160,
            Role::Prefill,
            144,
        );
        // One tile for the sink, one for the 31 keys of the windows.
        assert_eq!((sinks.workgroups, sinks.tiles), (1, 2));
    }
}
