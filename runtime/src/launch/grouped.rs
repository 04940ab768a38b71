//! Launches products with experts, and of a few rows with packed weights, on a CubeCL server that other code uses too.

mod few;
mod normed;
mod quantised;

pub use few::{FewGates, FewPairs, FewSizes, FewTensors};
pub use normed::{NormedSizes, NormedTensors};
pub use quantised::{QuantisedExperts, QuantisedSizes, QuantisedTensors};

use super::bind::long_enough;
use super::ready::{Code, Image};
use super::run::by_value;
use super::{Device, LaunchError, Launches};
use butterfly_ir::{Grouped, GroupedFormat};
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{CubeCount, Handle, KernelArguments};
use std::sync::Arc;

/// Numbers that a kernel counts with signed 32 bits are below it.
const MOST: u64 = 1 << 31;
/// Most jobs, tiles times parts of a weight: workgroups count one round past the last.
const MOST_JOBS: u64 = 1 << 30;
/// Elements that are stored at once: 16 bytes.
const PIECE: u32 = 8;

/// The kernels for products with weights of a format, prepared for launching; clones share them.
#[derive(Clone, Debug)]
pub struct ReadyGrouped {
    tiles: Arc<Image>,
    few: Arc<Image>,
    normed: Arc<Image>,
    quantised: Option<Arc<Image>>,
    grouped: Arc<Grouped>,
}

/// The sizes of one launch with tiles of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupedSizes {
    /// N, rows of an expert's weight, a multiple of 8.
    pub rows: u32,
    /// E, the number of experts.
    pub experts: u32,
    /// P, pairs of a row and one of its experts.
    pub pairs: u32,
    /// Consecutive pairs that share a row of x.
    pub share: u32,
    /// T, the most tiles that there can be.
    pub tiles: u32,
    /// The column of y of the weight's first row, a multiple of 8.
    pub column: u32,
    /// Elements of a row of y, a multiple of 8.
    pub width: u32,
}

/// Tensors of a launch with tiles of pairs, all contiguous. Each handle starts at the tensor's first element, at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct GroupedTensors<'a> {
    /// Rows `[P / share, K]`, rounded up.
    pub x: &'a Handle,
    /// The first tensor of the weight, as [`GroupedFormat`] says.
    pub words: &'a Handle,
    /// Its scales; any tensor for a format without.
    pub scales: &'a Handle,
    /// Its biases; any tensor for a format without.
    pub biases: &'a Handle,
    /// Pairs sorted by expert, u32 `[P]`, each below P.
    pub order: &'a Handle,
    /// Where the pairs of each expert begin in the order, u32 `[E + 1]`.
    pub offsets: &'a Handle,
    /// The expert of each tile, and the number of the tile among those of the expert, u32 `[T, 2]`.
    pub tiles: &'a Handle,
    /// The result `[P, width]`, of which the columns of the weight's rows are written.
    pub y: &'a Handle,
}

impl ReadyGrouped {
    /// Checks and prepares the kernels. `image` is a cubin, PTX, or CUDA C++, which CubeCL compiles at the first launch,
    /// each kernel alone.
    ///
    /// # Errors
    /// [`LaunchError::Image`] if `image` is none of these, [`LaunchError::Unfit`] if a field of `grouped` is invalid.
    pub fn new(grouped: Grouped, image: &[u8]) -> Result<Self, LaunchError> {
        let is_text = matches!(Code::of_cuda(image), Some(Code::Cuda(_)));
        let images = grouped.stages().enumerate().map(|(number, (_, stage))| {
            let launch = [stage.threads, stage.shared_bytes];
            let only = format!("#define {} {number}\n", Grouped::ONLY);
            let alone = [only.as_bytes(), image].concat();
            let image = if is_text { alone.as_slice() } else { image };
            Image::beside_attention(grouped.check(), &stage.entry, launch, image).map(Arc::new)
        });
        let mut images = images.collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut next = || images.next().expect("three stages at least");
        Ok(Self {
            tiles: next(),
            few: next(),
            normed: next(),
            quantised: images.next(),
            grouped: Arc::new(grouped),
        })
    }

    /// What the kernels were made for.
    pub fn grouped(&self) -> &Grouped {
        &self.grouped
    }

    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(super) fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        let all = [&self.tiles, &self.few, &self.normed];
        all.into_iter().chain(&self.quantised)
    }

    /// Whether the kernel for tiles can compute this: no size is 0 except the column; rows, column and width are multiples of 8,
    /// and the rows lie within the width; and 31 bits count everything, 30 bits the tiles times the parts of a weight.
    pub fn takes(&self, sizes: &GroupedSizes) -> bool {
        let GroupedSizes {
            rows,
            experts,
            pairs,
            share,
            tiles,
            column,
            width,
        } = *sizes;
        let counts = [rows, experts, pairs, share, tiles, width];
        let counted = counts.iter().all(|n| (1..MOST).contains(&u64::from(*n)));
        let aligned = [rows, column, width];
        counted
            && aligned.iter().all(|n| n.is_multiple_of(PIECE))
            && u64::from(column) + u64::from(rows) <= width.into()
            && u64::from(tiles) * 2 < MOST
            && jobs(sizes) <= MOST_JOBS
    }

    /// Launches the kernel for tiles on the stream of `client`, without waiting for it.
    ///
    /// # Errors
    /// [`LaunchError::Short`] if a tensor is shorter than its shape, [`LaunchError::Unsupported`] if
    /// [`ReadyGrouped::takes`] returns false.
    pub fn launch<R: Launches>(
        &self,
        client: &ComputeClient<R>,
        sizes: &GroupedSizes,
        tensors: &GroupedTensors<'_>,
    ) -> Result<(), LaunchError> {
        if !self.takes(sizes) {
            return Err(LaunchError::Unsupported {
                device: Device::Cuda,
                key: self.grouped.tiles.entry.clone(),
                what: "a form for rows that are no multiples of 8, or for so many".into(),
            });
        }
        let t = tensors;
        let given = [
            t.x, t.words, t.scales, t.biases, t.order, t.offsets, t.tiles, t.y,
        ];
        for ((name, bytes), handle) in self.lengths(sizes).into_iter().zip(given) {
            long_enough(name, handle.size_in_used(), bytes)?;
        }
        let arguments = KernelArguments::new()
            .with_buffers(given.map(|x| x.clone().binding()).to_vec())
            .with_info(by_value(&words(sizes)));
        let jobs = u32::try_from(jobs(sizes)).unwrap_or(u32::MAX);
        let processors = client.properties().hardware.num_streaming_multiprocessors;
        let grid = jobs.min(processors.unwrap_or(1).max(1));
        // SAFETY: every length was checked against its shape; rows beyond an expert's, and pairs beyond a tile's, are
        // neither read nor written.
        unsafe {
            client.launch_unchecked(
                R::task(&self.tiles),
                CubeCount::Static(grid, 1, 1),
                arguments,
            );
        }
        Ok(())
    }

    /// The names and bytes of the tensors, in the order of arguments. Of sizes that [`ReadyGrouped::takes`] refuses they
    /// may be wrong; bytes that 64 bits do not count saturate.
    fn lengths(&self, sizes: &GroupedSizes) -> [(&'static str, u64); 8] {
        let grouped = &self.grouped;
        let wide = u64::from;
        let (columns, element) = (wide(grouped.columns), wide(grouped.dtype.bytes()));
        let (experts, pairs) = (wide(sizes.experts), wide(sizes.pairs));
        let [words, scales, biases] = self.weight_bytes(sizes.rows, sizes.experts);
        let x = pairs.div_ceil(wide(sizes.share)) * columns * element;
        [
            ("x", x),
            ("words", words),
            ("scales", scales),
            ("biases", biases),
            ("order", pairs * 4),
            ("offsets", (experts + 1) * 4),
            ("tiles", wide(sizes.tiles) * 8),
            ("y", (pairs * wide(sizes.width)).saturating_mul(element)),
        ]
    }

    /// Bytes of the tensors of a weight with so many rows for each expert; what 64 bits do not count saturates.
    fn weight_bytes(&self, rows: u32, experts: u32) -> [u64; 3] {
        let grouped = &self.grouped;
        let wide = u64::from;
        let columns = wide(grouped.columns);
        let [rows, experts] = [rows, experts].map(wide);
        let all_rows = experts * rows;
        let of_row = |group: u32| columns / wide(group);
        let [scales, biases] = match grouped.format {
            GroupedFormat::Dense => [0, 0],
            GroupedFormat::Affine4 { group, scales } => {
                [all_rows.saturating_mul(of_row(group) * wide(scales.bytes())); 2]
            }
            GroupedFormat::Float8 { scales } => {
                let square = wide(grouped.format.group());
                let squares = experts * rows.div_ceil(square);
                let bytes = columns.div_ceil(square) * wide(scales.bytes());
                [squares.saturating_mul(bytes), 0]
            }
            GroupedFormat::Microscaled => {
                [all_rows.saturating_mul(of_row(grouped.format.group())), 0]
            }
        };
        let words = all_rows.saturating_mul(wide(grouped.row_bytes()));
        [words, scales, biases]
    }
}

/// Tiles times the parts of a weight that a workgroup multiplies a tile with.
fn jobs(sizes: &GroupedSizes) -> u64 {
    u64::from(sizes.tiles) * u64::from(sizes.rows.div_ceil(Grouped::ROWS))
}

/// What the kernel takes by value.
fn words(sizes: &GroupedSizes) -> [u32; 6] {
    [
        sizes.rows,
        sizes.share,
        sizes.tiles,
        sizes.column,
        sizes.width,
        0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::Dtype;

    const RIGHT: GroupedSizes = GroupedSizes {
        rows: 320,
        experts: 5,
        pairs: 1000,
        share: 8,
        tiles: 12,
        column: 64,
        width: 384,
    };

    pub(super) fn ready(format: GroupedFormat) -> ReadyGrouped {
        let stage = |entry: &str, threads| butterfly_ir::GroupedStage {
            entry: entry.into(),
            threads,
            shared_bytes: 0,
        };
        let grouped = Grouped {
            tiles: stage("grouped", 512),
            few: stage("grouped_few", Grouped::FEW_THREADS),
            normed: stage("grouped_normed", Grouped::FEW_THREADS),
            ..Grouped::of(Dtype::Bf16, format, 320).expect("whole steps")
        };
        ReadyGrouped::new(grouped, b"text").expect("valid kernels")
    }

    /// CubeCL compiles the text for each entry point.
    #[test]
    fn a_text_declares_one_kernel_at_a_time() {
        let ready = ready(GroupedFormat::Dense);
        for (number, image) in ready.images().enumerate() {
            let Code::Cuda(text) = &*image.code else {
                panic!("{image:?}");
            };
            assert_eq!(*text, format!("#define BUTTERFLY_ONLY {number}\ntext"));
        }
    }

    #[test]
    fn sizes_that_the_kernel_counts() {
        let ready = ready(GroupedFormat::Dense);
        let takes = |change: &dyn Fn(&mut GroupedSizes)| {
            let mut sizes = RIGHT;
            change(&mut sizes);
            ready.takes(&sizes)
        };
        assert!(takes(&|_| {}));
        assert!(takes(&|sizes| sizes.column = 0));
        assert!(!takes(&|sizes| sizes.column = 72));
        assert!(!takes(&|sizes| sizes.column = 4));
        assert!(!takes(&|sizes| sizes.rows = 0));
        assert!(!takes(&|sizes| sizes.rows = 316));
        assert!(!takes(&|sizes| sizes.width = 388));
        assert!(!takes(&|sizes| sizes.experts = 0));
        assert!(!takes(&|sizes| sizes.pairs = 0));
        assert!(!takes(&|sizes| sizes.pairs = 1 << 31));
        assert!(!takes(&|sizes| sizes.share = 0));
        assert!(!takes(&|sizes| sizes.tiles = 0));
        assert!(takes(&|sizes| sizes.tiles = 1 << 29));
        assert!(!takes(&|sizes| sizes.tiles = (1 << 29) + 1));
    }

    /// Bytes of x, words, scales and biases.
    #[test]
    fn lengths_of_tensors() {
        let lengths = |format| ready(format).lengths(&RIGHT).map(|(_, bytes)| bytes);
        let (affine, float8) = (
            GroupedFormat::Affine4 {
                group: 64,
                scales: Dtype::F16,
            },
            GroupedFormat::Float8 { scales: Dtype::F32 },
        );
        let x = 125 * 320 * 2;
        for (format, weight) in [
            (GroupedFormat::Dense, [1600 * 640, 0, 0]),
            (affine, [1600 * 160, 1600 * 10, 1600 * 10]),
            // Three squares down and three across, of which the last are cut.
            (float8, [1600 * 320, 5 * 9 * 4, 0]),
            (GroupedFormat::Microscaled, [1600 * 160, 1600 * 10, 0]),
        ] {
            let [words, scales, biases] = weight;
            let others = [4000, 24, 96, 1000 * 384 * 2];
            let [order, offsets, tiles, y] = others;
            let want = [x, words, scales, biases, order, offsets, tiles, y];
            assert_eq!(lengths(format), want, "{format}");
        }
    }

    #[test]
    fn values_lie_as_the_kernel_declares_them() {
        assert_eq!(words(&RIGHT), [320, 8, 12, 64, 384, 0]);
    }
}
