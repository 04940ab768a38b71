//! Launches products of many rows in FP8 with weights in FP8.

use super::super::bind::{Map, long_enough};
use super::super::run::by_value;
use super::super::{Device, LaunchError, Launches};
use super::{FewGates, MOST, MOST_JOBS, PIECE, ReadyGrouped};
use butterfly_ir::{Dtype, Grouped};
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{CubeCount, Handle, KernelArguments};

/// Rows of a box that is copied at once.
const BOX: u32 = 64;

/// The sizes of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantisedSizes {
    /// N, products of a row: rows of a weight, or half of them with gates. A multiple of 8, with gates of 64.
    pub rows: u32,
    /// P, rows of x: those of pairs sorted by expert, or any with one weight.
    pub pairs: u32,
    /// The experts, if there are several weights.
    pub experts: Option<QuantisedExperts>,
    /// The column of y of the first product, a multiple of 8.
    pub column: u32,
    /// Elements of a row of y, a multiple of 8.
    pub width: u32,
    /// What gates the products.
    pub gates: FewGates,
}

/// Pairs of which each has the weight of its expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantisedExperts {
    /// E, the number of experts.
    pub count: u32,
    /// T, the most tiles that there can be.
    pub tiles: u32,
    /// Whether products go to the rows of y that the order names.
    pub scattered: bool,
}

/// Tensors of a launch, all contiguous. Each handle starts at the tensor's first element, at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct QuantisedTensors<'a> {
    /// Rows in e4m3 `[P, K]`.
    pub x: &'a Handle,
    /// Their factors, f32 `[K / GROUP, P]`.
    pub factors: &'a Handle,
    /// The weight in e4m3 `[E, N, K]`, with gates of 2 N rows.
    pub words: &'a Handle,
    /// Its factors.
    pub scales: &'a Handle,
    /// The weight that is gated, where it is apart; any tensor else.
    pub other_words: &'a Handle,
    /// Its factors; any tensor if it is not apart.
    pub other_scales: &'a Handle,
    /// Pairs sorted by expert, u32 `[P]`, each below P; any tensor without experts.
    pub order: &'a Handle,
    /// Where the pairs of each expert begin in the order, u32 `[E + 1]`; any tensor without experts.
    pub offsets: &'a Handle,
    /// The expert of each tile, and the number of the tile among those of the expert, u32 `[T, 2]`; any tensor without
    /// experts.
    pub tiles: &'a Handle,
    /// The result `[P, width]`, of which the columns of products are written.
    pub y: &'a Handle,
}

impl QuantisedSizes {
    /// Rows of a weight.
    fn of_weight(&self) -> u32 {
        match self.gates {
            FewGates::Together => self.rows.saturating_mul(2),
            FewGates::None | FewGates::Apart => self.rows,
        }
    }

    fn weights(&self) -> u32 {
        self.experts.map_or(1, |experts| experts.count)
    }

    /// The most tiles of rows of x that there can be.
    fn tiles(&self) -> u32 {
        let all = self.pairs.div_ceil(Grouped::PAIRS);
        self.experts.map_or(all, |experts| experts.tiles)
    }

    fn jobs(&self) -> u64 {
        let columns = match self.gates {
            FewGates::None => Grouped::QUANTISED_ROWS,
            FewGates::Together | FewGates::Apart => Grouped::QUANTISED_ROWS / 2,
        };
        let across = self.rows.div_ceil(columns);
        u64::from(self.tiles()) * u64::from(across)
    }
}

impl ReadyGrouped {
    /// Whether the kernel for quantised rows can compute this: the format has one; no size is 0 except the column; rows,
    /// column and width are multiples of 8, with gates in the same weight rows of 64, and the rows lie within the width; and 31 bits count rows
    /// of all weights, their squares, factors of x and tiles, 30 bits the tiles times the parts of a weight.
    pub fn takes_quantised(&self, sizes: &QuantisedSizes) -> bool {
        let QuantisedSizes {
            rows,
            pairs,
            column,
            width,
            gates,
            ..
        } = *sizes;
        let wide = u64::from;
        let (weights, tiles) = (sizes.weights(), sizes.tiles());
        let counts = [rows, pairs, weights, width, tiles];
        let counted = counts.iter().all(|n| (1..MOST).contains(&wide(*n)));
        let aligned = [rows, column, width];
        let steps = wide(self.grouped.columns / Grouped::GROUP);
        let squares = wide(sizes.of_weight().div_ceil(Grouped::GROUP));
        self.quantised.is_some()
            && counted
            && aligned.iter().all(|n| n.is_multiple_of(PIECE))
            && (gates != FewGates::Together || rows.is_multiple_of(BOX))
            && wide(column) + wide(rows) <= wide(width)
            && wide(tiles) * 2 < MOST
            && wide(weights) * wide(sizes.of_weight()) < MOST
            && (wide(weights) * squares).saturating_mul(steps) < MOST
            && steps * wide(pairs) < MOST
            && sizes.jobs() <= MOST_JOBS
    }

    /// Launches the kernel for quantised rows on the stream of `client`, without waiting for it.
    ///
    /// # Errors
    /// [`LaunchError::Short`] if a tensor is shorter than its shape, [`LaunchError::Unsupported`] if
    /// [`ReadyGrouped::takes_quantised`] returns false.
    pub fn launch_quantised<R: Launches>(
        &self,
        client: &ComputeClient<R>,
        sizes: &QuantisedSizes,
        tensors: &QuantisedTensors<'_>,
    ) -> Result<(), LaunchError> {
        let image = self.quantised.as_ref();
        let Some(image) = image.filter(|_| self.takes_quantised(sizes)) else {
            return Err(LaunchError::Unsupported {
                device: Device::Cuda,
                key: self.grouped.tiles.entry.clone(),
                what: "a form for quantised rows of this format, or for so many".into(),
            });
        };
        let t = tensors;
        let (other, other_scales) = match sizes.gates {
            FewGates::Apart => (t.other_words, t.other_scales),
            FewGates::None | FewGates::Together => (t.words, t.scales),
        };
        let given = [
            t.x,
            t.words,
            other,
            t.factors,
            t.scales,
            other_scales,
            t.order,
            t.offsets,
            t.tiles,
            t.y,
        ];
        for ((name, bytes), handle) in self.quantised_lengths(sizes).into_iter().zip(given) {
            long_enough(name, handle.size_in_used(), bytes)?;
        }
        let [x, words, other, buffers @ ..] = given;
        let weights = sizes.weights() * sizes.of_weight();
        let maps = [sizes.pairs, weights, weights].map(|rows| self.map(rows));
        let mapped = [x, words, other].map(Clone::clone);
        let arguments = KernelArguments::new()
            .with_tensor_maps(R::tensor_maps(&maps, &mapped))
            .with_buffers(buffers.map(|x| x.clone().binding()).to_vec())
            .with_info(by_value(&quantised_words(sizes)));
        let jobs = u32::try_from(sizes.jobs()).unwrap_or(u32::MAX);
        let processors = client.properties().hardware.num_streaming_multiprocessors;
        let grid = jobs.min(processors.unwrap_or(1).max(1));
        // SAFETY: every length was checked against its shape; maps end where their tensors do, and products of rows beyond
        // an expert's, or of pairs beyond a tile's, are not written.
        unsafe {
            client.launch_unchecked(R::task(image), CubeCount::Static(grid, 1, 1), arguments);
        }
        Ok(())
    }

    /// Rows of bytes, as pairs of bytes: what a copy moves has no type.
    fn map(&self, rows: u32) -> Map {
        let columns = self.grouped.columns / 2;
        let all = u64::from(rows) * u64::from(columns);
        Map {
            dtype: Dtype::Bf16,
            shape: [1, 1, rows, columns],
            strides: [all, all, columns.into(), 1],
            tile: [1, 1, BOX, Grouped::GROUP / 2],
        }
    }

    /// The names and bytes of the tensors, in the order of arguments. Of sizes that [`ReadyGrouped::takes_quantised`]
    /// refuses they may be wrong.
    fn quantised_lengths(&self, sizes: &QuantisedSizes) -> [(&'static str, u64); 10] {
        let wide = u64::from;
        let (columns, pairs) = (wide(self.grouped.columns), wide(sizes.pairs));
        let [words, scales, _] = self.weight_bytes(sizes.of_weight(), sizes.weights());
        let listed = |bytes: u64| if sizes.experts.is_some() { bytes } else { 0 };
        let element = wide(self.grouped.dtype.bytes());
        let all = |row: u64, bytes: u64| pairs.saturating_mul(row).saturating_mul(bytes);
        [
            ("x", all(columns, 1)),
            ("words", words),
            ("other words", words),
            ("factors", all(columns / wide(Grouped::GROUP), 4)),
            ("scales", scales),
            ("other scales", scales),
            ("order", listed(pairs * 4)),
            ("offsets", listed((wide(sizes.weights()) + 1) * 4)),
            ("tiles", listed(wide(sizes.tiles()) * 8)),
            ("y", all(wide(sizes.width), element)),
        ]
    }
}

/// What the kernel takes by value.
fn quantised_words(sizes: &QuantisedSizes) -> [u32; 8] {
    let experts = sizes.experts;
    [
        sizes.rows,
        experts.map_or(0, |experts| experts.count),
        sizes.pairs,
        sizes.tiles(),
        sizes.column,
        sizes.width,
        match sizes.gates {
            FewGates::None => 0,
            FewGates::Together => 1,
            FewGates::Apart => 2,
        },
        experts.is_some_and(|experts| experts.scattered).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::{GroupedFormat, GroupedStage};

    const EXPERTS: QuantisedExperts = QuantisedExperts {
        count: 5,
        tiles: 12,
        scattered: true,
    };
    const RIGHT: QuantisedSizes = QuantisedSizes {
        rows: 320,
        pairs: 1000,
        experts: Some(EXPERTS),
        column: 64,
        width: 384,
        gates: FewGates::None,
    };

    fn ready() -> ReadyGrouped {
        let stage = |entry: &str, threads| GroupedStage {
            entry: entry.into(),
            threads,
            shared_bytes: 0,
        };
        let format = GroupedFormat::Float8 { scales: Dtype::F32 };
        let grouped = Grouped {
            tiles: stage("grouped", 512),
            few: stage("grouped_few", Grouped::FEW_THREADS),
            normed: stage("grouped_normed", Grouped::FEW_THREADS),
            quantised: Some(stage("grouped_quantised", 384)),
            ..Grouped::of(Dtype::Bf16, format, 384).expect("whole steps")
        };
        ReadyGrouped::new(grouped, b"text").expect("valid kernels")
    }

    #[test]
    fn sizes_that_the_kernel_counts() {
        let ready = ready();
        let takes = |change: &dyn Fn(&mut QuantisedSizes)| {
            let mut sizes = RIGHT;
            change(&mut sizes);
            ready.takes_quantised(&sizes)
        };
        assert!(takes(&|_| {}));
        assert!(takes(&|sizes| sizes.experts = None));
        assert!(takes(&|sizes| sizes.gates = FewGates::Together));
        assert!(takes(&|sizes| sizes.gates = FewGates::Apart));
        assert!(!takes(&|sizes| sizes.column = 72));
        assert!(!takes(&|sizes| sizes.column = 4));
        assert!(!takes(&|sizes| sizes.rows = 0));
        assert!(!takes(&|sizes| sizes.rows = 316));
        assert!(takes(&|sizes| sizes.rows = 312));
        let gated = |gates| takes(&|sizes| (sizes.rows, sizes.gates) = (312, gates));
        assert!(!gated(FewGates::Together));
        assert!(gated(FewGates::Apart));
        assert!(!takes(&|sizes| sizes.width = 388));
        assert!(!takes(&|sizes| sizes.pairs = 0));
        // Three factors for each row.
        assert!(!takes(&|sizes| sizes.pairs = 1 << 30));
        let experts = |change: &dyn Fn(&mut QuantisedExperts)| {
            let mut experts = EXPERTS;
            change(&mut experts);
            takes(&|sizes| sizes.experts = Some(experts))
        };
        assert!(!experts(&|experts| experts.count = 0));
        assert!(!experts(&|experts| experts.count = 1 << 23));
        assert!(!experts(&|experts| experts.tiles = 0));
        assert!(!experts(&|experts| experts.tiles = 1 << 30));
        let other = super::super::tests::ready(GroupedFormat::Dense);
        assert!(!other.takes_quantised(&RIGHT));
    }

    #[test]
    fn lengths_of_tensors() {
        let bytes = |sizes: &QuantisedSizes| {
            let lengths = ready().quantised_lengths(sizes);
            lengths.map(|(_, bytes)| bytes)
        };
        let (x, factors, y) = (1000 * 384, 3 * 1000 * 4, 1000 * 384 * 2);
        // Three squares down and three across, of which the last are cut.
        let [words, scales] = [5 * 320 * 384, 5 * 9 * 4];
        let want = [x, words, words, factors, scales, scales, 4000, 24, 96, y];
        assert_eq!(bytes(&RIGHT), want);
        let gated = QuantisedSizes {
            gates: FewGates::Together,
            experts: None,
            ..RIGHT
        };
        let [words, scales] = [640 * 384, 15 * 4];
        let want = [x, words, words, factors, scales, scales, 0, 0, 0, y];
        assert_eq!(bytes(&gated), want);
    }

    #[test]
    fn values_lie_as_the_kernel_declares_them() {
        let words = quantised_words(&RIGHT);
        assert_eq!(words, [320, 5, 1000, 12, 64, 384, 0, 1]);
        let gated = QuantisedSizes {
            gates: FewGates::Together,
            experts: None,
            ..RIGHT
        };
        assert_eq!(quantised_words(&gated), [320, 0, 1000, 8, 64, 384, 1, 0]);
        let apart = QuantisedSizes {
            gates: FewGates::Apart,
            ..RIGHT
        };
        let words = quantised_words(&apart);
        assert_eq!(words, [320, 5, 1000, 12, 64, 384, 2, 1]);
    }
}
