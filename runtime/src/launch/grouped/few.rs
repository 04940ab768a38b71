//! Products of a few rows with a weight, or of a few pairs with the weights of their experts.

use super::super::bind::long_enough;
use super::super::run::by_value;
use super::super::{Device, LaunchError, Launches};
use super::{MOST, ReadyGrouped};
use butterfly_ir::{FewLayout, Grouped, GroupedFormat};
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{CubeCount, Handle, KernelArguments};

/// The sizes of a product of a few rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FewSizes {
    /// N, rows of the weight, or of the weight of an expert.
    pub rows: u32,
    /// What is multiplied with it.
    pub pairs: FewPairs,
    /// The column of y of the weight's first row.
    pub column: u32,
    /// Elements of a row of y.
    pub width: u32,
    /// Whether there are gates of these rows.
    pub gates: FewGates,
}

/// Whether products are multiplied with silu of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FewGates {
    /// They are not.
    None,
    /// The weight, or that of an expert, has N rows of gates before the N others.
    Together,
    /// The others have tensors of their own.
    Apart,
}

/// What is multiplied with which weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FewPairs {
    /// So many rows of x, each with the one weight that there is.
    Rows(u32),
    /// Pairs of a row of x and one of its experts.
    Experts {
        /// E, the number of experts.
        experts: u32,
        /// P, the number of pairs.
        pairs: u32,
        /// Consecutive pairs that share a row of x.
        share: u32,
    },
}

/// Tensors of a product of a few rows, all contiguous. Each handle starts at the tensor's first element, all but those of
/// ids and y at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct FewTensors<'a> {
    /// The rows, of K elements each.
    pub x: &'a Handle,
    /// The first tensor of the weight, as [`GroupedFormat`](butterfly_ir::GroupedFormat) says.
    pub words: &'a Handle,
    /// Its scales; any tensor for a format without.
    pub scales: &'a Handle,
    /// Its biases; any tensor for a format without.
    pub biases: &'a Handle,
    /// These three of what is gated, where it has tensors of its own; else any.
    pub apart: [&'a Handle; 3],
    /// The expert of each pair, u32; any tensor without experts.
    pub ids: &'a Handle,
    /// The result, a row of `width` elements for each row of x, or for each pair. The columns of the weight's rows are
    /// written.
    pub y: &'a Handle,
}

impl FewPairs {
    /// Rows of x, rows of y, and experts.
    fn counts(self) -> [u32; 3] {
        match self {
            Self::Rows(rows) => [rows, rows, 1],
            Self::Experts {
                experts,
                pairs,
                share,
            } => [pairs.div_ceil(share.max(1)), pairs, experts],
        }
    }
}

impl ReadyGrouped {
    /// Whether the kernel for few can compute this: a row of x fits into its memory, no size is 0 except the column, the
    /// rows lie within the width, 31 bits count everything, and there are at most 65535 pairs. With FP8, rows of gates
    /// in the same tensors are a multiple of 16.
    pub fn takes_few(&self, sizes: &FewSizes) -> bool {
        let FewSizes {
            rows,
            pairs,
            column,
            width,
            gates,
        } = *sizes;
        let (each, pairs) = match pairs {
            FewPairs::Rows(count) => ([count, 1], 1),
            FewPairs::Experts {
                experts,
                pairs,
                share,
            } => ([experts, share], pairs),
        };
        let mut counts = [rows, width].into_iter().chain(each);
        counts.all(|n| (1..MOST).contains(&u64::from(n)))
            && (1..=u32::from(u16::MAX)).contains(&pairs)
            && u64::from(column) + u64::from(rows) <= width.into()
            && self.grouped.few_rows() > 0
            && self.takes_gates(rows, gates)
    }

    /// Whether tiles of such gates have whole squares, and 31 bits count both halves.
    pub(super) fn takes_gates(&self, rows: u32, gates: FewGates) -> bool {
        let squares = matches!(self.grouped.format, GroupedFormat::Float8 { .. });
        match gates {
            FewGates::None | FewGates::Apart => true,
            FewGates::Together => {
                2 * u64::from(rows) < MOST && (!squares || rows.is_multiple_of(Grouped::FEW_TILE))
            }
        }
    }

    /// Launches the kernel for few on the stream of `client`, without waiting for it. Rows beyond
    /// [`Grouped::few_rows`] are multiplied by further launches.
    ///
    /// # Errors
    /// [`LaunchError::Short`] if a tensor is shorter than its shape, [`LaunchError::Unsupported`] if
    /// [`ReadyGrouped::takes_few`] returns false.
    pub fn launch_few<R: Launches>(
        &self,
        client: &ComputeClient<R>,
        sizes: &FewSizes,
        tensors: &FewTensors<'_>,
    ) -> Result<(), LaunchError> {
        if !self.takes_few(sizes) {
            return Err(LaunchError::Unsupported {
                device: Device::Cuda,
                key: self.grouped.few.entry.clone(),
                what: "a form for rows of so many elements, or for so many".into(),
            });
        }
        let t = tensors;
        let [words, scales, biases] = t.apart;
        let given = [
            t.x, t.words, t.scales, t.biases, words, scales, biases, t.ids, t.y,
        ];
        for ((name, bytes), handle) in self.few_lengths(sizes).into_iter().zip(given) {
            long_enough(name, handle.size_in_used(), bytes)?;
        }
        let processors = client.properties().hardware.num_streaming_multiprocessors;
        let grid = few_grid(&self.grouped, sizes, processors.unwrap_or(1));
        for words in few_words(&self.grouped, sizes) {
            let arguments = KernelArguments::new()
                .with_buffers(given.map(|x| x.clone().binding()).to_vec())
                .with_info(by_value(&words));
            let [x, y] = grid;
            // SAFETY: every length was checked against its shape; the kernel reads no rows beyond an expert's, and ids
            // beyond the experts as the last one.
            unsafe {
                client.launch_unchecked(R::task(&self.few), CubeCount::Static(x, y, 1), arguments);
            }
        }
        Ok(())
    }

    /// The names and bytes of the tensors, in the order of arguments. Of sizes that [`ReadyGrouped::takes_few`] refuses
    /// they may be wrong; bytes that 64 bits do not count saturate.
    fn few_lengths(&self, sizes: &FewSizes) -> [(&'static str, u64); 9] {
        let wide = u64::from;
        let element = wide(self.grouped.dtype.bytes());
        let [of_x, of_y, experts] = sizes.pairs.counts();
        let (own, apart) = match sizes.gates {
            FewGates::None => (sizes.rows, 0),
            FewGates::Together => (2 * sizes.rows, 0),
            FewGates::Apart => (sizes.rows, sizes.rows),
        };
        let [words, scales, biases] = self.weight_bytes(own, experts);
        let [words_apart, scales_apart, biases_apart] = self.weight_bytes(apart, experts);
        let ids = match sizes.pairs {
            FewPairs::Rows(_) => 0,
            FewPairs::Experts { pairs, .. } => wide(pairs) * 4,
        };
        let bytes = |rows: u32, row: u32| (wide(rows) * wide(row)).saturating_mul(element);
        [
            ("x", bytes(of_x, self.grouped.columns)),
            ("words", words),
            ("scales", scales),
            ("biases", biases),
            ("words apart", words_apart),
            ("scales apart", scales_apart),
            ("biases apart", biases_apart),
            ("ids", ids),
            ("y", bytes(of_y, sizes.width)),
        ]
    }
}

/// Workgroups along x and y: for each pair, as many as the device then runs at once, and not more than have rows.
pub(super) fn few_grid(grouped: &Grouped, sizes: &FewSizes, processors: u32) -> [u32; 2] {
    let pairs = match sizes.pairs {
        FewPairs::Rows(_) => 1,
        FewPairs::Experts { pairs, .. } => pairs,
    };
    let tiles = sizes.rows.div_ceil(Grouped::FEW_TILE);
    let split = FewLayout::of(grouped).map_or(1, |layout| layout.split);
    let at_once = Grouped::FEW_WARPS / split;
    let most = (processors / pairs).max(1);
    [tiles.div_ceil(at_once).min(most), pairs]
}

/// What the kernel takes by value, for each launch.
fn few_words(grouped: &Grouped, sizes: &FewSizes) -> Vec<[u32; 8]> {
    let FewSizes {
        rows,
        pairs,
        column,
        width,
        gates,
    } = *sizes;
    let gates = match gates {
        FewGates::None => 0,
        FewGates::Together => 1,
        FewGates::Apart => 2,
    };
    match pairs {
        FewPairs::Rows(count) => {
            let most = grouped.few_rows();
            let firsts = (0..count).step_by(most.max(1) as usize);
            firsts
                .map(|first| {
                    let few = most.min(count - first);
                    [rows, 0, few, first, 1, column, width, gates]
                })
                .collect()
        }
        FewPairs::Experts { experts, share, .. } => {
            vec![[rows, experts, 1, 0, share, column, width, gates]]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ready;
    use super::*;
    use butterfly_ir::{Dtype, GroupedFormat};

    const RIGHT: FewSizes = FewSizes {
        rows: 321,
        pairs: FewPairs::Experts {
            experts: 5,
            pairs: 12,
            share: 8,
        },
        column: 3,
        width: 324,
        gates: FewGates::None,
    };

    #[test]
    fn sizes_that_the_kernel_counts() {
        let ready = ready(GroupedFormat::Microscaled);
        let takes = |change: &dyn Fn(&mut FewSizes)| {
            let mut sizes = RIGHT;
            change(&mut sizes);
            ready.takes_few(&sizes)
        };
        assert!(takes(&|_| {}));
        assert!(takes(&|sizes| sizes.pairs = FewPairs::Rows(8)));
        assert!(!takes(&|sizes| sizes.pairs = FewPairs::Rows(0)));
        assert!(!takes(&|sizes| sizes.column = 4));
        assert!(!takes(&|sizes| sizes.rows = 0));
        for wrong in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1 << 16, 1]] {
            let [experts, pairs, share] = wrong;
            let pairs = FewPairs::Experts {
                experts,
                pairs,
                share,
            };
            assert!(!takes(&|sizes| sizes.pairs = pairs), "{wrong:?}");
        }
    }

    #[test]
    fn gates_of_squares_come_in_whole_tiles() {
        let takes = |format, rows, gates| {
            let sizes = FewSizes {
                rows,
                gates,
                ..RIGHT
            };
            ready(format).takes_few(&sizes)
        };
        let float8 = GroupedFormat::Float8 { scales: Dtype::F32 };
        assert!(takes(float8, 304, FewGates::Together));
        assert!(!takes(float8, 305, FewGates::Together));
        assert!(takes(float8, 305, FewGates::Apart));
        assert!(takes(GroupedFormat::Microscaled, 305, FewGates::Together));
    }

    /// Bytes of x, of words, scales and biases twice, of ids and y.
    #[test]
    fn lengths_of_tensors() {
        let bytes = |sizes: &FewSizes| {
            let format = GroupedFormat::Affine4 {
                group: 64,
                scales: Dtype::F16,
            };
            ready(format).few_lengths(sizes).map(|(_, bytes)| bytes)
        };
        let weight = [1605 * 160, 1605 * 10, 1605 * 10];
        let all = |one: [u64; 3], apart: [u64; 3]| {
            let given = [2 * 640].into_iter().chain(one).chain(apart);
            given.chain([48, 12 * 648]).collect::<Vec<_>>()
        };
        let gated = |gates| bytes(&FewSizes { gates, ..RIGHT });
        assert_eq!(bytes(&RIGHT).to_vec(), all(weight, [0; 3]));
        let twice = weight.map(|bytes| 2 * bytes);
        assert_eq!(gated(FewGates::Together).to_vec(), all(twice, [0; 3]));
        assert_eq!(gated(FewGates::Apart).to_vec(), all(weight, weight));
        let rows = FewSizes {
            pairs: FewPairs::Rows(3),
            ..RIGHT
        };
        let one = [3 * 640, 321 * 160, 321 * 10, 321 * 10, 0, 0, 0, 0, 3 * 648];
        assert_eq!(bytes(&rows), one);
    }

    #[test]
    fn launches_of_rows_and_of_pairs() {
        let ready = ready(GroupedFormat::Microscaled);
        let grouped = ready.grouped();
        let words = few_words(grouped, &RIGHT);
        assert_eq!(words, [[321, 5, 1, 0, 8, 3, 324, 0]]);
        // 21 tiles, of which a workgroup has 16 at once.
        assert_eq!(few_grid(grouped, &RIGHT, 132), [2, 12]);
        assert_eq!(few_grid(grouped, &RIGHT, 8), [1, 12]);
        // Four rows at once.
        let rows = FewSizes {
            pairs: FewPairs::Rows(6),
            ..RIGHT
        };
        let want = [[321, 0, 4, 0, 1, 3, 324, 0], [321, 0, 2, 4, 1, 3, 324, 0]];
        assert_eq!(few_words(grouped, &rows), want);
        assert_eq!(few_grid(grouped, &rows, 132), [2, 1]);
    }
}
