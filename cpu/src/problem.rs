//! What is to be computed, and whether it can be.
//!
//! In:  slices, shapes and a band table from outside. Out: [`Problem::check`] holds, or an
//! error that names the argument.

use butterfly_ir::{Band, BandTable, ScoreValues, band::MAX_TOKENS};

/// One call of attention: `o = softmax(scale * q k^T where seen) v`.
///
/// All arrays are contiguous, innermost dimension last. The query `i` has the absolute
/// position `q_offset + i` and belongs to block row `(q_offset + i) / block`; it sees a
/// key when any band of that row contains the pair. Query head `h` reads kv head
/// `h / (q_heads / kv_heads)`.
///
/// Numbers should be finite: an unseen key has weight 0, and 0 times infinity is none.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// B: sequences, at least 1.
    pub batch: usize,
    /// Hq: a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Hkv: at least 1.
    pub kv_heads: usize,
    /// Queries of each sequence and head.
    pub q_len: usize,
    /// Keys of each sequence and head.
    pub kv_len: usize,
    /// Keys that k and v have room for in each head, at least `kv_len`; those after `kv_len`
    /// are not read.
    pub kv_room: usize,
    /// D: length of a q and k vector, at least 1.
    pub head_dim: usize,
    /// Dv: length of a v and o vector, at least 1.
    pub v_head_dim: usize,
    /// Absolute position of the first query.
    pub q_offset: usize,
    /// Tokens in a block, at least 1.
    pub block: usize,
    /// Factor on the logits, usually `1 / sqrt(D)`.
    pub scale: f32,
    /// Queries, `[B, Hq, q_len, D]`.
    pub q: &'a [f32],
    /// Keys, `[B, Hkv, kv_room, D]`.
    pub k: &'a [f32],
    /// Values, `[B, Hkv, kv_room, Dv]`.
    pub v: &'a [f32],
    /// What each block row sees; row 0 is that of absolute position 0.
    pub rows: &'a BandTable,
    /// What is done to logits beside scale and mask.
    pub score: ScoreValues<'a>,
}

/// The result of [`attend`](crate::attend()).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attention {
    /// `[B, Hq, q_len, Dv]`; 0 where a query sees nothing.
    pub o: Vec<f32>,
    /// Natural log of the sum of `exp(logit)`, `[B, Hq, q_len]`; -inf where a query sees
    /// nothing.
    pub lse: Vec<f32>,
}

/// Why a [`Problem`] cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemError {
    /// An array does not fit its shape.
    #[error("`{name}` has {given} numbers, but its shape {shape:?} needs {expected}")]
    Length {
        /// The argument.
        name: &'static str,
        /// Its shape by the other arguments.
        shape: [usize; 4],
        /// Product of the shape, saturated.
        expected: usize,
        /// Length of the slice.
        given: usize,
    },
    /// A count that must be at least 1 is 0.
    #[error("`{name}` is 0, but must be at least 1")]
    Zero {
        /// The argument.
        name: &'static str,
    },
    /// Less room than keys.
    #[error("`kv_len` is {kv_len}, but `kv_room` only {kv_room}")]
    Room {
        /// Keys.
        kv_len: usize,
        /// Keys that there is room for.
        kv_room: usize,
    },
    /// The query heads do not divide into groups.
    #[error("{q_heads} query heads are not a multiple of {kv_heads} kv heads")]
    Heads {
        /// Hq.
        q_heads: usize,
        /// Hkv.
        kv_heads: usize,
    },
    /// A position does not fit the band arithmetic.
    #[error("`{name}` ends at position {given}, but positions stay below {limit}")]
    TooLong {
        /// `queries` or `keys`.
        name: &'static str,
        /// One past the last position.
        given: usize,
        /// The bound, exclusive.
        limit: usize,
    },
    /// The table ends before the last query.
    #[error("the band table has {given} rows, but the queries reach into row {last}")]
    Rows {
        /// Row of the last query.
        last: usize,
        /// Rows in the table.
        given: usize,
    },
    /// The offsets of a row are not a range of the bands.
    #[error("row {row} of the band table is {start}..{end} of {bands} bands")]
    Offsets {
        /// The block row.
        row: usize,
        /// Its first offset.
        start: u32,
        /// Its last offset.
        end: u32,
        /// Bands in the table.
        bands: usize,
    },
    /// A softcap that is no positive number.
    #[error("the softcap is {0}, but must be positive and finite")]
    Softcap(String),
    /// The machine lacks the instructions that were asked for.
    #[error("this machine has no {0}")]
    Unavailable(crate::Isa),
}

impl Problem<'_> {
    /// Query heads for each kv head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Bands of block row `row`.
    ///
    /// # Panics
    /// When the table has no such row.
    pub fn bands(&self, row: usize) -> &[Band] {
        let offsets = &self.rows.offsets;
        &self.rows.bands[offsets[row] as usize..offsets[row + 1] as usize]
    }

    /// Whether the query at absolute position `q` sees key `k`: the meaning, pair by pair.
    ///
    /// # Panics
    /// When the table has no row for `q`.
    pub fn sees(&self, q: usize, k: usize) -> bool {
        let mut bands = self.bands(q / self.block).iter();
        let (Ok(q), Ok(k)) = (i32::try_from(q), i32::try_from(k)) else {
            return false;
        };
        bands.any(|band| band.contains(q, k))
    }

    /// Whether the arguments fit one another.
    ///
    /// # Errors
    /// [`ProblemError`], for the first argument that does not.
    pub fn check(&self) -> Result<(), ProblemError> {
        for (name, count) in [
            ("batch", self.batch),
            ("q_heads", self.q_heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("v_head_dim", self.v_head_dim),
            ("block", self.block),
        ] {
            if count == 0 {
                return Err(ProblemError::Zero { name });
            }
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            return Err(ProblemError::Heads {
                q_heads: self.q_heads,
                kv_heads: self.kv_heads,
            });
        }
        let limit = MAX_TOKENS as usize + 1;
        let end = self.q_offset.saturating_add(self.q_len);
        for (name, given) in [("queries", end), ("keys", self.kv_len)] {
            if given >= limit {
                return Err(ProblemError::TooLong { name, given, limit });
            }
        }
        if self.kv_room < self.kv_len {
            return Err(ProblemError::Room {
                kv_len: self.kv_len,
                kv_room: self.kv_room,
            });
        }
        let (q_len, kv_room) = (self.q_len, self.kv_room);
        let (d, dv) = (self.head_dim, self.v_head_dim);
        for (name, array, shape) in [
            ("q", self.q, [self.batch, self.q_heads, q_len, d]),
            ("k", self.k, [self.batch, self.kv_heads, kv_room, d]),
            ("v", self.v, [self.batch, self.kv_heads, kv_room, dv]),
        ] {
            let expected = shape.into_iter().fold(1, usize::saturating_mul);
            if array.len() != expected {
                return Err(ProblemError::Length {
                    name,
                    shape,
                    expected,
                    given: array.len(),
                });
            }
        }
        if let Some(cap) = self.score.softcap
            && !ScoreValues::is_softcap(cap)
        {
            return Err(ProblemError::Softcap(cap.to_string()));
        }
        if let Some(sinks) = self.score.sinks
            && sinks.len() != self.q_heads
        {
            return Err(ProblemError::Length {
                name: "sinks",
                shape: [1, self.q_heads, 1, 1],
                expected: self.q_heads,
                given: sinks.len(),
            });
        }
        self.check_rows(end)
    }

    fn check_rows(&self, end: usize) -> Result<(), ProblemError> {
        if self.q_len == 0 {
            return Ok(());
        }
        let (first, last) = (self.q_offset / self.block, (end - 1) / self.block);
        let given = self.rows.offsets.len().saturating_sub(1);
        if last >= given {
            return Err(ProblemError::Rows { last, given });
        }
        let bands = self.rows.bands.len();
        for (row, pair) in (first..=last).zip(self.rows.offsets[first..=last + 1].windows(2)) {
            let (start, end) = (pair[0], pair[1]);
            if start > end || end as usize > bands {
                return Err(ProblemError::Offsets {
                    row,
                    start,
                    end,
                    bands,
                });
            }
        }
        Ok(())
    }
}
