//! The run-time scalars of a launch.

use super::{KernelSpec, Role, Score, ScoreValues};
use serde::{Deserialize, Serialize};

/// The run-time scalars that every kernel takes.
///
/// A kernel reads them as 32-bit words (the bits of signed and float values) at the indices that
/// [`scalar`] names. Strides are in elements; the innermost dimension is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchScalars {
    /// Queries of each sequence.
    pub q_len: u32,
    /// Keys of each sequence; unused room in the KV cache does not count.
    pub kv_len: u32,
    /// Absolute position of the first query.
    pub q_offset: u32,
    /// Number of kv heads.
    pub kv_heads: u32,
    /// N, the number of blocks of the capacity, which fixes the stages.
    pub blocks: u32,
    /// Picks the stage (see [`Context::index`](crate::Context::index)).
    pub index: u32,
    /// Number of tokens of the prompt (see [`Context::prompt`](crate::Context::prompt)).
    pub prompt: u32,
    /// Where rows lie in the table, if there is one.
    pub table: TableLayout,
    /// Bits of the f32 scale of the logits.
    pub scale_bits: u32,
    /// Strides of q: batch, head, token.
    pub q_strides: [u64; 3],
    /// Strides of k: batch, head, token.
    pub k_strides: [u64; 3],
    /// Strides of v: batch, head, token.
    pub v_strides: [u64; 3],
    /// Strides of o: batch, head, token. The LSE is contiguous, `[B, Hq, q_len]`.
    pub o_strides: [u64; 3],
}

/// Where a kernel finds the rows of a table: row `b` of a kv head and a sequence is entry
/// `sequence * sequence_rows + kv_head * head_rows + b - first_row`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLayout {
    /// From the rows of a kv head to those of the next; 0 if heads share their rows.
    pub head_rows: u32,
    /// From the rows of a sequence to those of the next; 0 if sequences share their rows.
    pub sequence_rows: u32,
    /// The row of blocks with which the table begins.
    pub first_row: u32,
}

/// The index of each scalar among the words that a kernel is given.
pub mod scalar {
    macro_rules! places {
        ($($place:literal $name:ident $what:literal)*) => {
            $(#[doc = $what] pub const $name: usize = $place;)*
            /// Name and index of every scalar.
            pub const ALL: &[(&str, usize)] = &[$((stringify!($name), $place)),*];
        };
    }

    places! {
        0 Q_LEN "Queries."
        1 KV_LEN "Keys."
        2 Q_OFFSET "Absolute position of the first query."
        3 KV_HEADS "Number of kv heads."
        4 BLOCKS "Blocks of the capacity."
        5 INDEX "Index of the layer."
        6 SCALE "Bits of the f32 factor on the logits."
        7 Q_BATCH "Stride of q from sequence to sequence."
        8 Q_HEAD "Stride of q from head to head."
        9 Q_TOKEN "Stride of q from token to token."
        10 K_BATCH "Stride of k from sequence to sequence."
        11 K_HEAD "Stride of k from head to head."
        12 K_TOKEN "Stride of k from token to token."
        13 V_BATCH "Stride of v from sequence to sequence."
        14 V_HEAD "Stride of v from head to head."
        15 V_TOKEN "Stride of v from token to token."
        16 O_BATCH "Stride of o from sequence to sequence."
        17 O_HEAD "Stride of o from head to head."
        18 O_TOKEN "Stride of o from token to token."
        19 PROMPT "Tokens of the prompt."
        20 HEAD_ROWS "From the table rows of a kv head to those of the next."
        21 SEQUENCE_ROWS "From the table rows of a sequence to those of the next."
        22 FIRST_ROW "The row of blocks with which the table begins."
        23 BATCH "Number of sequences, where scalars come by value or there is something done to logits."
        24 SOFTCAP "Bits of the f32 softcap, with [`BATCH`]."
        25 SINKS "The first sink's logit by its bits, where scalars come in a buffer."
        25 PARTS "Parts of the keys of a query, where scalars come by value and the kernel is spread."
        26 LAGS "The first sequence's lag, where scalars come by value to a decode kernel."
    }
}

impl LaunchScalars {
    /// Number of words that every kernel is given.
    pub const WORDS: usize = scalar::BATCH;

    /// Number of words given by value: the [`WORDS`](Self::WORDS), the number of sequences, the
    /// softcap, and the number of parts, which only kernels read that are spread. It is even, as
    /// CubeCL wants it.
    pub const BY_VALUE: usize = scalar::PARTS + 1;

    /// Most sequences of different lengths in a launch whose scalars come by value.
    pub const MOST_LAGS: usize = 64;

    /// Number of words that the kernel of `spec` is given by value: [`BY_VALUE`](Self::BY_VALUE) and, for decode, a lag for
    /// each of [`MOST_LAGS`](Self::MOST_LAGS) sequences.
    pub fn count_by_value(spec: &KernelSpec) -> usize {
        match spec.role {
            Role::Prefill => Self::BY_VALUE,
            Role::Decode => scalar::LAGS + Self::MOST_LAGS,
        }
    }

    /// The parameter buffer of the kernel of `spec`, which has no tensor maps.
    ///
    /// It holds these scalars; then, unless the score is plain, the number of sequences and the
    /// softcap; then, if the kernel has sinks, their logits; then, for decode, the lag of each sequence: how many
    /// tokens before `kv_len` its keys end, and before `q_offset` its queries begin. `lags` is empty if there are none.
    pub fn parameters(
        &self,
        spec: &KernelSpec,
        batch: u32,
        values: &ScoreValues<'_>,
        lags: &[u32],
    ) -> Vec<u32> {
        let score: Score = spec.score;
        let mut words = self.words().to_vec();
        if !score.is_plain() {
            words.extend([batch, values.softcap.unwrap_or(0.0).to_bits()]);
        }
        if score.sinks {
            let sinks = values.sinks.unwrap_or_default();
            words.extend(sinks.iter().map(|sink| sink.to_bits()));
        }
        if spec.role == Role::Decode {
            let lags = lags.iter().copied().chain(std::iter::repeat(0));
            words.extend(lags.take(batch as usize));
        }
        words
    }

    /// The words that the kernel of `spec`, which has tensor maps, is given by value. The number of parts is 0; `lags` is
    /// as for [`parameters`](Self::parameters), and those beyond [`MOST_LAGS`](Self::MOST_LAGS) are left out.
    pub fn by_value(
        &self,
        spec: &KernelSpec,
        batch: u32,
        values: &ScoreValues<'_>,
        lags: &[u32],
    ) -> Vec<u32> {
        let mut words = vec![0; Self::count_by_value(spec)];
        words[..Self::WORDS].copy_from_slice(&self.words());
        words[scalar::BATCH] = batch;
        words[scalar::SOFTCAP] = values.softcap.unwrap_or(0.0).to_bits();
        let places = words.iter_mut().skip(scalar::LAGS);
        places.zip(lags).for_each(|(word, lag)| *word = *lag);
        words
    }

    /// Where lags begin in [`parameters`](Self::parameters) without sinks, whose logits come before them.
    pub const fn lags_from(score: Score) -> usize {
        match score.softcap || score.sinks {
            false => Self::WORDS,
            true => scalar::SINKS,
        }
    }

    /// The words that every kernel is given.
    ///
    /// They hold only the low 32 bits of strides. The launch checks that strides fit, except those
    /// of dimensions of length 1, which kernels multiply by zero.
    pub fn words(&self) -> [u32; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        for (place, word) in [
            (scalar::Q_LEN, self.q_len),
            (scalar::KV_LEN, self.kv_len),
            (scalar::Q_OFFSET, self.q_offset),
            (scalar::KV_HEADS, self.kv_heads),
            (scalar::BLOCKS, self.blocks),
            (scalar::INDEX, self.index),
            (scalar::SCALE, self.scale_bits),
            (scalar::PROMPT, self.prompt),
            (scalar::HEAD_ROWS, self.table.head_rows),
            (scalar::SEQUENCE_ROWS, self.table.sequence_rows),
            (scalar::FIRST_ROW, self.table.first_row),
        ] {
            words[place] = word;
        }
        for (first, strides) in [
            (scalar::Q_BATCH, self.q_strides),
            (scalar::K_BATCH, self.k_strides),
            (scalar::V_BATCH, self.v_strides),
            (scalar::O_BATCH, self.o_strides),
        ] {
            words[first..first + 3].copy_from_slice(&strides.map(|stride| stride as u32));
        }
        words
    }
}
