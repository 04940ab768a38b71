//! Bands → tiles of queries, and the tiles of keys that each of them visits.
//!
//! In:  a checked [`Problem`], the number of lanes in a panel.
//! Out: [`QueryTile`]s that cover the queries in order, for each kv head that has rows of its own.
//! Each lies within one row, and is used for every sequence.
//!
//! Invariants: all key positions are within `0..kv_len`; the tiles of keys are disjoint and in
//! increasing order; in a visit that is not masked, every query of the panel sees every key.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`Problem::check` holds positions below 2^30"
)]

use crate::Problem;
use butterfly_ir::{
    Band,
    band::{UNBOUNDED, merge},
};

/// Most keys in a tile. The tile's k and v stay in the L2 cache while every panel of queries
/// reads them, and the logits of a panel stay in the L1 cache.
pub(crate) const KEYS: usize = 128;

/// Most query rows in a tile, over all q heads of a GQA group. A tile still has at least one query
/// of each head, and enough to fill a panel.
const MOST_ROWS: usize = 512;

/// A half-open range of keys.
pub(crate) type Keys = (i32, i32);

/// Consecutive queries of one row (see [`Panel`] for their order over all heads of a group).
#[derive(Clone, Debug)]
pub(crate) struct QueryTile {
    /// The first query, counted from the first query of the problem.
    pub(crate) first: usize,
    /// Number of queries.
    pub(crate) len: usize,
    /// The bands of the row, limited to existing keys.
    pub(crate) bands: Vec<Band>,
    /// Tiles of keys to visit, each of at most [`KEYS`] keys.
    pub(crate) tiles: Vec<Keys>,
    /// The query rows of all heads of a group, head after head, divided into panels.
    pub(crate) panels: Vec<Panel>,
}

/// Query rows that are computed together, one in each lane.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// The first query row. Query row `r` of a tile is query `r % len` of head `r / len` in the
    /// group.
    pub(crate) first_row: usize,
    /// Number of query rows; less than the number of lanes only in the last panel.
    pub(crate) rows: usize,
    /// Keys that at least one query of the panel sees, merged.
    any: Vec<Keys>,
    /// Keys that every query of the panel sees by a single band, merged.
    all: Vec<Keys>,
}

/// The keys of one tile that one panel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// First key.
    pub(crate) start: i32,
    /// One past the last key.
    pub(crate) end: i32,
    /// Whether a mask is needed, because a query may not see all of these keys.
    pub(crate) masked: bool,
}

impl Panel {
    /// The part of a tile of keys that the panel has to compute: from the first to the last key
    /// that one of its queries sees. `None` if there is no such key.
    pub(crate) fn visit(&self, tile: Keys) -> Option<Visit> {
        let parts = self.any.iter().map(|&range| intersect(range, tile));
        let (start, end) = parts
            .filter(|part| part.0 < part.1)
            .reduce(|hull, part| (hull.0, part.1))?;
        let full = self.all.iter().any(|all| all.0 <= start && end <= all.1);
        Some(Visit {
            start,
            end,
            masked: !full,
        })
    }
}

impl QueryTile {
    /// Number of pairs of a query row and a key that are computed, masked ones included.
    pub(crate) fn pairs(&self) -> u64 {
        let panel = |panel: &Panel| {
            let visits = self.tiles.iter().filter_map(|&tile| panel.visit(tile));
            let keys: i64 = visits.map(|visit| i64::from(visit.end - visit.start)).sum();
            keys as u64 * panel.rows as u64
        };
        self.panels.iter().map(panel).sum()
    }
}

/// Divides the queries into tiles, for panels of `lanes` query rows: one list if all kv heads share
/// their rows, else one for each, and for each sequence that has rows of its own.
pub(crate) fn query_tiles(problem: &Problem, lanes: usize) -> Vec<Vec<QueryTile>> {
    let heads = 0..(problem.rows.heads * problem.rows.sequences) as usize;
    heads.map(|head| tiles_of(problem, head, lanes)).collect()
}

fn tiles_of(problem: &Problem, kv_head: usize, lanes: usize) -> Vec<QueryTile> {
    let most = (MOST_ROWS / problem.group())
        .max(lanes / problem.group())
        .max(1);
    let end = problem.q_offset + problem.q_len;
    let mut tiles = Vec::new();
    let mut at = problem.q_offset;
    while at < end {
        let row = at / problem.block;
        let stop = end.min((row + 1) * problem.block).min(at + most);
        let bands = problem.bands(kv_head, row);
        tiles.push(query_tile(problem, bands, at, stop - at, lanes));
        at = stop;
    }
    tiles
}

fn query_tile(problem: &Problem, bands: &[Band], at: usize, len: usize, lanes: usize) -> QueryTile {
    let bands: Vec<Band> = bands
        .iter()
        .map(|band| limited(band, problem.kv_len))
        .filter(|band| !band.is_empty())
        .collect();
    let (q0, q1) = (at as i32, (at + len - 1) as i32);
    let seen = ranges(&bands, |band| band.seen_by_any(q0, q1));
    let rows = problem.group() * len;
    let panels = (0..rows).step_by(lanes).map(|first_row| {
        let rows = lanes.min(rows - first_row);
        let (a, b) = queries(first_row, rows, len);
        let (a, b) = (q0 + a as i32, q0 + b as i32);
        Panel {
            first_row,
            rows,
            any: ranges(&bands, |band| band.seen_by_any(a, b)),
            all: ranges(&bands, |band| band.seen_by_all(a, b)),
        }
    });
    QueryTile {
        first: at - problem.q_offset,
        len,
        panels: panels.collect(),
        tiles: seen.into_iter().flat_map(cut).collect(),
        bands,
    }
}

/// The smallest and the largest query, within the tile, among the `rows` query rows from `first`
/// on; each head has `len` query rows.
fn queries(first: usize, rows: usize, len: usize) -> (usize, usize) {
    let (a, b) = (first % len, (first + rows - 1) % len);
    if rows <= len && a <= b {
        (a, b)
    } else {
        (0, len - 1)
    }
}

/// The band, limited to existing keys and to values with which arithmetic cannot overflow.
fn limited(band: &Band, kv_len: usize) -> Band {
    Band {
        lo: band.lo.max(0),
        hi: band.hi.min(kv_len as i32),
        first: band.first.clamp(-UNBOUNDED, UNBOUNDED),
        end: band.end.clamp(-UNBOUNDED, UNBOUNDED),
    }
}

fn ranges(bands: &[Band], of: impl Fn(&Band) -> Keys) -> Vec<Keys> {
    merge(
        bands
            .iter()
            .map(of)
            .filter(|range| range.0 < range.1)
            .collect(),
    )
}

fn cut((start, end): Keys) -> impl Iterator<Item = Keys> {
    let tiles = (start..end).step_by(KEYS);
    tiles.map(move |at| (at, end.min(at + KEYS as i32)))
}

fn intersect(a: Keys, b: Keys) -> Keys {
    (a.0.max(b.0), a.1.min(b.1))
}
