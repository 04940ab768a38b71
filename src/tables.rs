//! A cache of band tables, for the native CPU kernel and for GPU kernels without a closed form.
//!
//! In:  the rows that the queries of a call are in. Out: a table that holds at least these rows.
//!
//! A whole table has a row for each block of the capacity. Decode without a set capacity has a new
//! capacity after every token, so that a whole table for each would be wasted: the first call with
//! some capacity makes only the rows of its queries. A second call with the same capacity that asks
//! for other rows shows that the capacity stays, and makes the whole table. The most recently used
//! tables are kept.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// How many whole tables are kept: more than a butterfly network has stages.
const WHOLE: usize = 64;
/// How many partial tables are kept for each key, for sequences that are decoded in turns.
const PARTS: usize = 4;

/// The most recently used tables of a plan, by a key `K` and the capacity.
#[derive(Debug)]
pub(crate) struct Tables<K, T>(Mutex<Vec<Made<K, T>>>);

/// Which rows of a table are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Number of tokens that the table is made for.
    pub(crate) capacity: u32,
    /// Rows of blocks that hold the queries.
    pub(crate) rows: Range<u32>,
    /// Rows of the whole table.
    pub(crate) all: u32,
}

#[derive(Debug)]
struct Made<K, T> {
    key: K,
    capacity: u32,
    whole: bool,
    rows: Range<u32>,
    table: T,
}

impl<K, T> Default for Tables<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, T: Clone> Tables<K, T> {
    /// A table that holds at least the wanted rows; `make` makes a table of the rows it is given.
    pub(crate) fn get(&self, key: K, wanted: Wanted, make: impl FnOnce(Range<u32>) -> T) -> T {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept
            .iter()
            .position(|made| made.capacity == wanted.capacity && made.key == key);
        let before = at.map(|at| kept.remove(at));
        let rows = match before {
            Some(made) if made.holds(&wanted.rows) => {
                let table = made.table.clone();
                kept.push(made);
                return table;
            }
            Some(_) => 0..wanted.all,
            None => wanted.rows,
        };
        let table = make(rows.clone());
        let made = Made {
            whole: rows == (0..wanted.all),
            key,
            capacity: wanted.capacity,
            rows,
            table: table.clone(),
        };
        let most = if made.whole { WHOLE } else { PARTS };
        let alike =
            |other: &Made<K, T>| other.whole == made.whole && (made.whole || other.key == made.key);
        if kept.iter().filter(|other| alike(other)).count() == most
            && let Some(oldest) = kept.iter().position(alike)
        {
            kept.remove(oldest);
        }
        kept.push(made);
        table
    }
}

impl<K, T> Made<K, T> {
    fn holds(&self, rows: &Range<u32>) -> bool {
        self.rows.start <= rows.start && rows.end <= self.rows.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(capacity: u32, rows: Range<u32>) -> Wanted {
        let all = capacity.div_ceil(16);
        Wanted {
            capacity,
            rows,
            all,
        }
    }

    #[test]
    fn a_growing_text_keeps_few_tables_of_few_rows() {
        let tables = Tables::<u32, Range<u32>>::default();
        for tokens in 1..10_000 {
            let row = (tokens - 1) / 16;
            for stage in 0..3 {
                let made = tables.get(stage, wanted(tokens, row..row + 1), |rows| rows);
                assert_eq!(made, row..row + 1);
            }
            let kept = tables.0.lock().expect("no panic before").len();
            // A sequence of one block has a whole table: that of its only row.
            assert!(kept <= 3 * PARTS + WHOLE, "{kept}");
        }
        let kept = tables.0.into_inner().expect("no panic before");
        let rows: u32 = kept.iter().map(|made| made.rows.len() as u32).sum();
        assert!(rows <= 3 * PARTS as u32 + WHOLE as u32, "{rows}");
    }

    #[test]
    fn a_capacity_that_comes_again_makes_the_whole_table_once() {
        let tables = Tables::<u32, Range<u32>>::default();
        let mut made = Vec::new();
        let mut get = |stage, rows| {
            tables.get(stage, wanted(160, rows), |rows| {
                made.push((stage, rows.clone()));
                rows
            })
        };
        assert_eq!(get(0, 0..4), 0..4);
        assert_eq!(get(0, 2..4), 0..4);
        assert_eq!(get(1, 3..4), 3..4);
        for row in 4..10 {
            assert_eq!(get(0, row..row + 1), 0..10);
        }
        assert_eq!(made, [(0, 0..4), (1, 3..4), (0, 0..10)]);
    }
}
