//! The arguments of the kernel, and their checks.
//!
//! In:  slices, shapes and a band table from outside. Out: a problem that passes
//! [`Problem::check`], or an error that names the argument.

use crate::{Elements, Values};
use butterfly_ir::{Band, BandTable, ScoreValues, band::MAX_TOKENS};

/// One call of attention: `o = softmax(scale * q k^T) v`, where the softmax of a query
/// runs over the keys that it sees.
///
/// All arrays are contiguous, the last dimension innermost. Query `i` has the absolute
/// position `q_offset + i` and belongs to row `(q_offset + i) / block`; it sees a key if
/// any band of that row contains the pair. Query head `h` reads kv head
/// `h / (q_heads / kv_heads)`.
///
/// Values should be finite. Keys that a query does not see, but that lie in a tile it
/// visits, get weight 0; an infinity or NaN in their v then gives NaN, as 0 times
/// infinity is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// B, the number of sequences, at least 1.
    pub batch: usize,
    /// Hq, the number of q heads, a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Hkv, the number of kv heads, at least 1.
    pub kv_heads: usize,
    /// Queries of each sequence.
    pub q_len: usize,
    /// Keys of each sequence.
    pub kv_len: usize,
    /// Keys for which k and v have room in each head, at least `kv_len`; those from `kv_len` on are
    /// not read.
    pub kv_room: usize,
    /// D, the length of a q and k vector, at least 1.
    pub head_dim: usize,
    /// Dv, the length of a v and o vector, at least 1.
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
    pub k: Elements<'a>,
    /// Values, `[B, Hkv, kv_room, Dv]`, or the first Dv elements of each key.
    pub v: Values<'a>,
    /// The bands of each row; row 0 has the queries from absolute position 0 on.
    pub rows: &'a BandTable,
    /// Softcap and sinks, if any.
    pub score: ScoreValues<'a>,
}

/// The result of [`attend`](crate::attend()).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attention {
    /// The output, `[B, Hq, q_len, Dv]`; 0 for a query that sees no key.
    pub o: Vec<f32>,
    /// The log-sum-exp with natural log, `[B, Hq, q_len]`, sinks included; -inf for a query
    /// that sees no key and has no sink.
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
        /// The shape that follows from the other arguments.
        shape: [usize; 4],
        /// Number of elements of that shape, saturated.
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
    /// Values are longer than the keys that hold them.
    #[error("`v_head_dim` is {v_head_dim}, but values are part of keys of {head_dim} elements")]
    InKeys {
        /// Dv.
        v_head_dim: usize,
        /// D.
        head_dim: usize,
    },
    /// There are more keys than k and v have room for.
    #[error("`kv_len` is {kv_len}, but `kv_room` only {kv_room}")]
    Room {
        /// Keys.
        kv_len: usize,
        /// Keys for which k and v have room.
        kv_room: usize,
    },
    /// The q heads cannot be divided into GQA groups of equal size.
    #[error("{q_heads} query heads are not a multiple of {kv_heads} kv heads")]
    Heads {
        /// Hq.
        q_heads: usize,
        /// Hkv.
        kv_heads: usize,
    },
    /// A position is too large for the arithmetic of bands.
    #[error("`{name}` ends at position {given}, but positions stay below {limit}")]
    TooLong {
        /// `queries` or `keys`.
        name: &'static str,
        /// One past the last position.
        given: usize,
        /// The limit that it must stay below.
        limit: usize,
    },
    /// The table does not have the rows of all queries.
    #[error(
        "the band table has {given} rows from row {start} on, but the queries are in rows {first} to {last}"
    )]
    Rows {
        /// Row of the first query.
        first: usize,
        /// Row of the last query.
        last: usize,
        /// The first row of the table.
        start: usize,
        /// Rows in the table.
        given: usize,
    },
    /// The table is neither for all heads together nor for each of them.
    #[error(
        "the band table has {entries} rows for {heads} heads of {sequences} sequences; it needs as many rows for each of {kv_heads} kv heads, or is shared by all, and rows for 1 or {batch} sequences"
    )]
    TableHeads {
        /// Heads of the table.
        heads: usize,
        /// Sequences of the table.
        sequences: usize,
        /// Rows of all of them.
        entries: usize,
        /// Hkv.
        kv_heads: usize,
        /// B.
        batch: usize,
    },
    /// Means of keys do not fit the blocks, or there are too few of them.
    #[error(
        "there is room for {room} means of {pool} keys, but {needed} are needed, of a pool that divides the block of {block} tokens"
    )]
    Pools {
        /// Tokens of a mean.
        pool: usize,
        /// Tokens in a block.
        block: usize,
        /// Means for which there is room.
        room: usize,
        /// Means that are read.
        needed: usize,
    },
    /// The offsets of a row are not a range within the bands.
    #[error("row {row} of the band table is {start}..{end} of {bands} bands")]
    Offsets {
        /// The row.
        row: usize,
        /// Where its bands begin.
        start: u32,
        /// Where its bands end, exclusive.
        end: u32,
        /// Bands in the table.
        bands: usize,
    },
    /// The softcap is not a positive, finite number.
    #[error("the softcap is {0}, but must be positive and finite")]
    Softcap(String),
    /// A sink's logit is NaN or positive infinity.
    #[error("the sink of q head {head} is {given}, but must be a number below infinity")]
    Sink {
        /// The q head.
        head: usize,
        /// Its logit.
        given: String,
    },
    /// The CPU does not have the requested instruction set.
    #[error("this machine has no {0}")]
    Unavailable(crate::Isa),
}

impl<'a> Problem<'a> {
    /// The problem of one sequence, which is `lag` tokens behind the longest: its queries begin, and its keys end, so many
    /// tokens earlier. Its rows are those that all sequences share.
    ///
    /// # Panics
    /// If an array is shorter than its shape, or the lag is larger than `q_offset` or `kv_len`.
    pub fn of_sequence(&self, sequence: usize, lag: usize) -> Problem<'a> {
        let of = |length: usize| {
            let each = length / self.batch;
            sequence * each..(sequence + 1) * each
        };
        Problem {
            batch: 1,
            q_offset: self.q_offset - lag,
            kv_len: self.kv_len - lag,
            q: &self.q[of(self.q.len())],
            k: self.k.slice(of(self.k.len())),
            v: match self.v {
                Values::Own(v) => Values::Own(v.slice(of(v.len()))),
                in_keys @ Values::InKeys { .. } => in_keys,
            },
            ..*self
        }
    }
}

impl Problem<'_> {
    /// q heads of a GQA group.
    ///
    /// # Panics
    /// If `kv_heads` is 0.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Elements from one value to the next, of which the first Dv are the value.
    pub(crate) fn v_step(&self) -> usize {
        match self.v {
            Values::Own(_) => self.v_head_dim,
            Values::InKeys { .. } => self.head_dim,
        }
    }

    /// The number of the first key of a kv head, counted through all sequences, in the array of keys.
    pub(crate) fn first_key(&self, kv_head: usize) -> usize {
        match self.v {
            Values::InKeys { shared: true } => kv_head / self.kv_heads * self.kv_room,
            Values::Own(_) | Values::InKeys { shared: false } => kv_head * self.kv_room,
        }
    }

    /// The array that holds the values.
    pub(crate) fn values(&self) -> &Elements<'_> {
        match &self.v {
            Values::Own(v) => v,
            Values::InKeys { .. } => &self.k,
        }
    }

    /// The bands of row `row` for kv head `kv_head`, counted through all sequences.
    ///
    /// # Panics
    /// If the table has no such row.
    pub fn bands(&self, kv_head: usize, row: usize) -> &[Band] {
        self.rows.row(kv_head, row)
    }

    /// Whether the query of kv head `kv_head`, counted through all sequences, at absolute position `q` sees key `k`, according to
    /// the band table.
    ///
    /// # Panics
    /// If the table has no row for `q`.
    pub fn sees(&self, kv_head: usize, q: usize, k: usize) -> bool {
        let mut bands = self.bands(kv_head, q / self.block).iter();
        let (Ok(q), Ok(k)) = (i32::try_from(q), i32::try_from(k)) else {
            return false;
        };
        bands.any(|band| band.contains(q, k))
    }

    /// Checks that the arguments fit one another.
    ///
    /// # Errors
    /// [`ProblemError`] for the first argument that does not fit.
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
        if matches!(self.v, Values::InKeys { .. }) && dv > d {
            return Err(ProblemError::InKeys {
                v_head_dim: dv,
                head_dim: d,
            });
        }
        let v = self.values().len();
        let heads = match self.v {
            Values::InKeys { shared: true } => 1,
            Values::Own(_) | Values::InKeys { shared: false } => self.kv_heads,
        };
        for (name, given, shape) in [
            ("q", self.q.len(), [self.batch, self.q_heads, q_len, d]),
            ("k", self.k.len(), [self.batch, heads, kv_room, d]),
            ("v", v, [self.batch, heads, kv_room, self.v_step()]),
        ] {
            let expected = shape.into_iter().fold(1, usize::saturating_mul);
            if given != expected {
                return Err(ProblemError::Length {
                    name,
                    shape,
                    expected,
                    given,
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
        let mut sinks = self.score.sinks.into_iter().flatten().enumerate();
        if let Some((head, sink)) = sinks.find(|(_, sink)| !ScoreValues::is_sink(**sink)) {
            let given = sink.to_string();
            return Err(ProblemError::Sink { head, given });
        }
        self.check_rows(end)
    }

    fn check_rows(&self, end: usize) -> Result<(), ProblemError> {
        if self.q_len == 0 {
            return Ok(());
        }
        let (first, last) = (self.q_offset / self.block, (end - 1) / self.block);
        let (heads, sequences) = (self.rows.heads as usize, self.rows.sequences as usize);
        let entries = self.rows.offsets.len().saturating_sub(1);
        let by_head = heads == self.kv_heads;
        let shared = sequences == 1 && (heads == 1 || by_head);
        let by_sequence = sequences == self.batch && by_head;
        if !(shared || by_sequence) || !entries.is_multiple_of(heads * sequences) {
            return Err(ProblemError::TableHeads {
                heads,
                sequences,
                entries,
                kv_heads: self.kv_heads,
                batch: self.batch,
            });
        }
        let (start, given) = (self.rows.first_row as usize, self.rows.rows());
        if first < start || last - start >= given {
            return Err(ProblemError::Rows {
                first,
                last,
                start,
                given,
            });
        }
        let bands = self.rows.bands.len();
        let lists = 0..heads * sequences;
        let rows =
            lists.flat_map(|list| (first..=last).map(move |row| (row, list * given + row - start)));
        for (row, at) in rows {
            let (start, end) = (self.rows.offsets[at], self.rows.offsets[at + 1]);
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
