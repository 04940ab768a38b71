//! Kernels that multiply rows with packed weights: many rows with those of their experts, a few rows with any.

mod few;

pub use few::FewLayout;

use crate::Dtype;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the kernels for products with weights of a format are launched. They are entry points of one text, and compute
/// `y[pair] = W[expert] x[row]` for pairs of a row of x and one of its experts.
///
/// # Tiles
/// For many pairs, sorted by expert: [`PAIRS`](Self::PAIRS) pairs of one expert are a tile. For E experts with N rows of
/// K elements each, P pairs of which `share` consecutive ones share a row of x, and at most T tiles, the arguments are,
/// all contiguous:
///
/// - x `[P / share, K]`, rounded up;
/// - the tensors of the weight `[E, N, K]`, as [`GroupedFormat`] says, three of them: any tensor stands for those that
///   the format does not have;
/// - the order, pairs sorted by expert, u32 `[P]`; offsets, where those of each expert begin in it, u32 `[E + 1]`; tiles,
///   the expert of each and the number of the tile among those of the expert, u32 `[T, 2]`. Tiles that do not exist come
///   last and have expert 2^32 - 1;
/// - y `[P, width]`;
/// - by value, as i32: N, `share`, T, the column of y of a weight's first row, `width`, and a 0.
///
/// N, the column and the width are multiples of 8. Rows of x and y, and tensors, start at multiples of 16 bytes. The
/// kernel is persistent: a launch has as many workgroups as the device runs at once, but no more than there can be tiles
/// times N by [`ROWS`](Self::ROWS), rounded up.
///
/// # Few
/// For a few pairs, each by itself, or for M rows of x, at most [`few_rows`](Self::few_rows), times one weight. Arguments:
///
/// - x and the tensors of the weight, as above, and three tensors of a second half of its rows; any tensors without;
/// - ids, the expert of each pair, u32 `[P]`, of which those beyond E stand for the last one; any tensor without experts;
/// - y `[P, width]`, or `[M, width]`;
/// - by value, as i32: N; E, or 0 without experts; M, which is 1 with experts; the row of x and y that is the first of
///   the M; `share`, the column, `width`, and whether there are gates: 0 for none; 1 if an expert has 2 N rows, of which
///   the first half gates the second (in FP8, N is a multiple of 16 then); 2 if the second half has tensors of its own.
///   A product is multiplied with silu of its gate then.
///
/// Only rows of x and tensors of the weight start at multiples of 16 bytes; N, the column and the width are any. A
/// workgroup has [`FEW_WARPS`](Self::FEW_WARPS) warps that multiply, [`split`](FewLayout::split) of which share 16 rows of
/// the weight, and goes on with others: a launch has P workgroups, or one, along y, and along x as many as the device
/// then runs at once, but no more than have rows.
///
/// # Normed
/// For M rows, at most [`few_rows`](Self::few_rows), of which the norms are multiplied with one weight:
/// `s[row] = r[row] + sum over t of f[row, t] a[row, t]`, `x[row] = s[row] / rms(s[row]) w`. Arguments:
///
/// - r `[M, K]` in f32, a `[M, terms, K]`, f `[M, terms]` in f32, w `[K]` in f32; any tensors for a without terms, and for
///   f where all factors are 1;
/// - the tensors of the weight; s `[M, K]` in f32, x `[M, K]`, or any tensors where they are not wanted;
/// - y `[M, width]`;
/// - by value: what few takes, for M rows from the first one on, with gates in the same tensors only; as i32, `terms`,
///   whether there are factors, whether s and x are wanted; the f32 that is added to the mean square; and a 0.
///
/// All tensors but f and y start at multiples of 16 bytes. It is launched as the kernel for few is without experts.
///
/// # Quantised
/// For many rows of floats of 8 bits, with weights in FP8 whose rows are a multiple of [`GROUP`](Self::GROUP): a row has a
/// factor for each `GROUP` elements. Pairs are sorted by expert, or all have the one weight. Arguments:
///
/// - tensor maps of the rows x, e4m3 `[P, K]`, of the weight `[E N, K]` and of a second one, or of the first again; all as
///   pairs of bytes (rank 4, shape `[1, 1, rows, K / 2]`, boxes of 64 such pairs by 64 rows, swizzled by 128 bytes); and the
///   buffers behind them;
/// - the factors of x, f32 `[K / GROUP, P]`, and those of the weights, as [`GroupedFormat`] says;
/// - the order, offsets and tiles, as above; any tensors without experts;
/// - y `[P, width]`;
/// - by value, as i32: N; E, or 0 without experts; P; T, the most tiles that there can be; the column; `width`; whether
///   there are gates, as for few; and whether pair i of the order has the row of y that the order names, or row i.
///
/// N, the column and the width are multiples of 8, with gates N is one of 64. Tensors start at multiples of 16 bytes. The
/// kernel is persistent: a launch has as many workgroups as the device runs at once, but no more than there are tiles
/// times N by [`QUANTISED_ROWS`](Self::QUANTISED_ROWS), with gates twice as many.
///
/// The text in CUDA C++ declares only one of the kernels where the macro [`ONLY`](Self::ONLY) is defined: as 0 the one
/// for tiles, as 1 the one for few, as 2 the one for norms, as 3 the one for quantised rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grouped {
    /// Element type of x and y.
    pub dtype: Dtype,
    /// How the weight is stored.
    pub format: GroupedFormat,
    /// K, the elements of a row: a multiple of [`K_TILE`](Self::K_TILE) and of the elements that share a scale, except
    /// for squares.
    pub columns: u32,
    /// Multiplies tiles of pairs.
    pub tiles: GroupedStage,
    /// Multiplies a few rows.
    pub few: GroupedStage,
    /// Multiplies norms of a few rows.
    pub normed: GroupedStage,
    /// Multiplies quantised rows, where the weight has a format for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantised: Option<GroupedStage>,
}

/// How one of these kernels is launched.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupedStage {
    /// Name of the entry point.
    pub entry: String,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
}

/// How the weight of a [`Grouped`] is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GroupedFormat {
    /// Elements of the type of x `[E, N, K]`.
    Dense,
    /// Integers of 4 bits, the first in the lowest bits of a byte; scales and biases `[E, N, K / group]`.
    Affine4 {
        /// Elements of a row that share a scale and a bias: 32, 64 or 128.
        group: u32,
        /// Element type of scales and biases.
        scales: Dtype,
    },
    /// Floats of 8 bits (e4m3), and factors of squares of 128 rows and columns `[E, N / 128, K / 128]`, rounded up.
    Float8 {
        /// Element type of the factors.
        scales: Dtype,
    },
    /// Floats of 4 bits (e2m1), and the exponents of powers of two, plus 127, in bytes `[E, N, K / 32]`.
    Microscaled,
}

impl Grouped {
    /// Pairs of a tile.
    pub const PAIRS: u32 = 128;

    /// Rows of the weight that a workgroup multiplies a tile with.
    pub const ROWS: u32 = 256;

    /// Elements of rows that are multiplied at a time.
    pub const K_TILE: u32 = 64;

    /// Elements of a quantised row that share a factor, and of a step of the kernel for them.
    pub const GROUP: u32 = 128;

    /// Rows of the weight that a workgroup of that kernel multiplies a tile with.
    pub const QUANTISED_ROWS: u32 = 128;

    /// Warps of a workgroup of the kernel for few that multiply.
    pub const FEW_WARPS: u32 = 16;

    /// Rows of the weight that warps of the kernel for few share.
    pub const FEW_TILE: u32 = 16;

    /// The most stages of its ring.
    pub const FEW_STAGES: u32 = 8;

    /// Its threads: those of these warps, and of a warpgroup of which two warps fill the ring.
    pub const FEW_THREADS: u32 = (Self::FEW_WARPS + 4) * 32;

    /// The macro that chooses one kernel of the text.
    pub const ONLY: &str = "BUTTERFLY_ONLY";

    /// The kernels for such a weight, of which emitters fill in how they are launched; `None` if rows of so many elements
    /// are no whole number of steps and groups.
    pub fn of(dtype: Dtype, format: GroupedFormat, columns: u32) -> Option<Self> {
        let grouped = Self {
            dtype,
            format,
            columns,
            tiles: GroupedStage::default(),
            few: GroupedStage::default(),
            normed: GroupedStage::default(),
            quantised: None,
        };
        grouped.is_whole().then_some(grouped)
    }

    /// Whether there is a kernel for quantised rows.
    pub fn has_quantised(&self) -> bool {
        let float8 = matches!(self.format, GroupedFormat::Float8 { .. });
        float8 && self.columns.is_multiple_of(Self::GROUP)
    }

    /// Whether rows are a whole number of steps and groups.
    pub(crate) fn is_whole(&self) -> bool {
        let group = match self.format {
            GroupedFormat::Affine4 { group, .. } => group,
            GroupedFormat::Dense | GroupedFormat::Float8 { .. } | GroupedFormat::Microscaled => 1,
        };
        let whole = |step: u32| step > 0 && self.columns.is_multiple_of(step);
        self.columns > 0 && whole(Self::K_TILE) && whole(group)
    }

    /// Whether both do the same, however they are launched.
    pub fn computes_as(&self, other: &Self) -> bool {
        let what = |one: &Self| (one.dtype, one.format, one.columns);
        what(self) == what(other)
    }

    /// Bytes of a row of the weight, in its first tensor.
    pub fn row_bytes(&self) -> u32 {
        self.columns / 8 * self.format.bits()
    }

    /// The stages by name.
    pub fn stages(&self) -> impl Iterator<Item = (&'static str, &GroupedStage)> {
        let Self {
            tiles,
            few,
            normed,
            quantised,
            ..
        } = self;
        let all = [("tiles", tiles), ("few", few), ("normed", normed)];
        let quantised = quantised.iter().map(|stage| ("quantised", stage));
        all.into_iter().chain(quantised)
    }

    /// The most rows of x that the kernel for few multiplies at once. 0 if rows are too long for it.
    pub fn few_rows(&self) -> u32 {
        FewLayout::of(self).map_or(0, |layout| layout.rows)
    }

    /// The first line of the kernels' text: a comment that records how they are launched.
    pub fn heading(&self) -> String {
        crate::kernel::geometry::heading(self)
    }
}

impl GroupedFormat {
    /// Bits of an element in the first tensor.
    pub fn bits(self) -> u32 {
        match self {
            Self::Dense => 16,
            Self::Affine4 { .. } | Self::Microscaled => 4,
            Self::Float8 { .. } => 8,
        }
    }

    /// Element type of scales that are floats.
    pub fn scales(self) -> Option<Dtype> {
        match self {
            Self::Affine4 { scales, .. } | Self::Float8 { scales } => Some(scales),
            Self::Dense | Self::Microscaled => None,
        }
    }

    /// Elements of a row that share a scale; 1 without scales.
    pub fn group(self) -> u32 {
        match self {
            Self::Dense => 1,
            Self::Affine4 { group, .. } => group,
            Self::Float8 { .. } => 128,
            Self::Microscaled => 32,
        }
    }
}

impl fmt::Display for GroupedFormat {
    /// A name for files and messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => write!(f, "dense"),
            Self::Affine4 { group, scales } => write!(f, "affine4-{group}-{}", scales.name()),
            Self::Float8 { scales } => write!(f, "float8-{}", scales.name()),
            Self::Microscaled => write!(f, "microscaled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFFINE: GroupedFormat = GroupedFormat::Affine4 {
        group: 128,
        scales: Dtype::F16,
    };

    fn grouped(format: GroupedFormat, columns: u32) -> Option<Grouped> {
        let grouped = Grouped::of(Dtype::Bf16, format, columns)?;
        let stage = |entry: &str, threads| GroupedStage {
            entry: entry.into(),
            threads,
            shared_bytes: 0,
        };
        Some(Grouped {
            tiles: stage("grouped", 512),
            few: stage("grouped_few", Grouped::FEW_THREADS),
            normed: stage("grouped_normed", Grouped::FEW_THREADS),
            ..grouped
        })
    }

    #[test]
    fn only_whole_steps_and_groups() {
        for (format, columns, is) in [
            (GroupedFormat::Dense, 64, true),
            (GroupedFormat::Dense, 96, false),
            (GroupedFormat::Dense, 0, false),
            (GroupedFormat::Microscaled, 2880, true),
            // The last square of a row may be narrower.
            (GroupedFormat::Float8 { scales: Dtype::F32 }, 192, true),
            (AFFINE, 256, true),
            (AFFINE, 192, false),
        ] {
            let of = grouped(format, columns);
            assert_eq!(of.is_some(), is, "{format} {columns}");
        }
    }

    #[test]
    fn bytes_of_a_row() {
        let bytes = |format| grouped(format, 256).map(|grouped| grouped.row_bytes());
        assert_eq!(bytes(GroupedFormat::Dense), Some(512));
        assert_eq!(bytes(AFFINE), Some(128));
        let float8 = GroupedFormat::Float8 { scales: Dtype::F32 };
        assert_eq!(bytes(float8), Some(256));
    }

    #[test]
    fn what_is_computed_does_not_depend_on_the_launch() {
        let made = grouped(AFFINE, 256).expect("whole groups");
        let bare = Grouped::of(Dtype::Bf16, AFFINE, 256).expect("whole groups");
        assert!(made.computes_as(&bare));
        for other in [
            Grouped::of(Dtype::F16, AFFINE, 256),
            Grouped::of(Dtype::Bf16, AFFINE, 512),
            Grouped::of(Dtype::Bf16, GroupedFormat::Dense, 256),
        ] {
            assert!(!made.computes_as(&other.expect("whole groups")));
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let right = grouped(AFFINE, 256).expect("whole groups");
        right.check().expect("right");
        let with = |change: &dyn Fn(&mut Grouped)| {
            let mut grouped = right.clone();
            change(&mut grouped);
            grouped.check().expect_err("wrong").field
        };
        assert_eq!(with(&|one| one.dtype = Dtype::F32), "grouped.dtype");
        let entry = with(&|one| one.tiles.entry = "a b".into());
        assert_eq!(entry, "grouped.tiles.entry");
        assert_eq!(with(&|one| one.columns = 192), "grouped.columns");
        assert_eq!(with(&|one| one.columns = 1 << 30), "grouped.columns");
        for group in [0, 16, 256] {
            let scales = Dtype::F16;
            let format = GroupedFormat::Affine4 { group, scales };
            assert_eq!(with(&|one| one.format = format), "grouped.format");
        }
        let threads = with(&|one| one.few.threads = 384);
        assert_eq!(threads, "grouped.few.threads");
        let shared = with(&|one| one.tiles.shared_bytes = u32::MAX);
        assert_eq!(shared, "grouped.tiles.shared_bytes");
    }
}
