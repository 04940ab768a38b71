//! Products of norms of a few rows with a weight.

use super::super::bind::long_enough;
use super::super::run::by_value;
use super::super::{Device, LaunchError, Launches};
use super::few::few_grid;
use super::{FewGates, FewPairs, FewSizes, MOST, ReadyGrouped};
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{CubeCount, Handle, KernelArguments};

/// The sizes of a product of norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormedSizes {
    /// N, rows of the weight.
    pub rows: u32,
    /// M, the number of norms.
    pub count: u32,
    /// The column of y of the weight's first row.
    pub column: u32,
    /// Elements of a row of y.
    pub width: u32,
    /// Whether the weight has N rows of gates before the N others.
    pub gated: bool,
    /// Rows that are added to each row before its norm.
    pub terms: u32,
    /// Whether these have factors.
    pub weighted: bool,
    /// Whether the sums are wanted.
    pub sums: bool,
    /// Whether the norms are.
    pub norms: bool,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// Tensors of a product of norms, all contiguous. Each handle starts at the tensor's first element, all but those of
/// factors and y at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct NormedTensors<'a> {
    /// The rows `[M, K]`, in f32.
    pub x: &'a Handle,
    /// What is added to them, `[M, terms, K]`; any tensor without terms.
    pub added: &'a Handle,
    /// The factors of the terms, f32 `[M, terms]`; any tensor without.
    pub factors: &'a Handle,
    /// The weight of the norm, f32 `[K]`.
    pub norm: &'a Handle,
    /// The first tensor of the weight, as [`GroupedFormat`](butterfly_ir::GroupedFormat) says.
    pub words: &'a Handle,
    /// Its scales; any tensor for a format without.
    pub scales: &'a Handle,
    /// Its biases; any tensor for a format without.
    pub biases: &'a Handle,
    /// Where the sums go, f32 `[M, K]`; any tensor if they are not wanted.
    pub sums: &'a Handle,
    /// Where the norms go, `[M, K]`; any tensor if they are not wanted.
    pub norms: &'a Handle,
    /// The result `[M, width]`, of which the columns of the weight's rows are written.
    pub y: &'a Handle,
}

impl NormedSizes {
    fn few(&self) -> FewSizes {
        FewSizes {
            rows: self.rows,
            pairs: FewPairs::Rows(self.count),
            column: self.column,
            width: self.width,
            gates: match self.gated {
                true => FewGates::Together,
                false => FewGates::None,
            },
        }
    }
}

impl ReadyGrouped {
    /// Whether the kernel for norms can compute this: the kernel for few [can](ReadyGrouped::takes_few), in one launch, and
    /// 31 bits count what is added.
    pub fn takes_normed(&self, sizes: &NormedSizes) -> bool {
        let NormedSizes { count, terms, .. } = *sizes;
        self.takes_few(&sizes.few())
            && count <= self.grouped.few_rows()
            && u64::from(count) * u64::from(terms) < MOST
    }

    /// Launches the kernel for norms on the stream of `client`, without waiting for it.
    ///
    /// # Errors
    /// [`LaunchError::Short`] if a tensor is shorter than its shape, [`LaunchError::Unsupported`] if
    /// [`ReadyGrouped::takes_normed`] returns false.
    pub fn launch_normed<R: Launches>(
        &self,
        client: &ComputeClient<R>,
        sizes: &NormedSizes,
        tensors: &NormedTensors<'_>,
    ) -> Result<(), LaunchError> {
        if !self.takes_normed(sizes) {
            return Err(LaunchError::Unsupported {
                device: Device::Cuda,
                key: self.grouped.normed.entry.clone(),
                what: "a form for norms of so many elements, or for so many".into(),
            });
        }
        let t = tensors;
        let given = [
            t.x, t.added, t.factors, t.norm, t.words, t.scales, t.biases, t.sums, t.norms, t.y,
        ];
        for ((name, bytes), handle) in self.normed_lengths(sizes).into_iter().zip(given) {
            long_enough(name, handle.size_in_used(), bytes)?;
        }
        let processors = client.properties().hardware.num_streaming_multiprocessors;
        let [x, y] = few_grid(&self.grouped, &sizes.few(), processors.unwrap_or(1));
        let arguments = KernelArguments::new()
            .with_buffers(given.map(|x| x.clone().binding()).to_vec())
            .with_info(by_value(&normed_words(sizes)));
        // SAFETY: every length was checked against its shape; tensors that are not wanted are not written.
        unsafe {
            client.launch_unchecked(R::task(&self.normed), CubeCount::Static(x, y, 1), arguments);
        }
        Ok(())
    }

    /// The names and bytes of the tensors, in the order of arguments. Of sizes that [`ReadyGrouped::takes_normed`] refuses
    /// they may be wrong; bytes that 64 bits do not count saturate.
    fn normed_lengths(&self, sizes: &NormedSizes) -> [(&'static str, u64); 10] {
        let wide = u64::from;
        let element = wide(self.grouped.dtype.bytes());
        let columns = wide(self.grouped.columns);
        let own = match sizes.gated {
            true => sizes.rows.saturating_mul(2),
            false => sizes.rows,
        };
        let [words, scales, biases] = self.weight_bytes(own, 1);
        let count = wide(sizes.count);
        let terms = count * wide(sizes.terms);
        let all = |rows: u64, row: u64, bytes: u64| rows.saturating_mul(row).saturating_mul(bytes);
        let wanted = |is: bool, bytes: u64| if is { bytes } else { 0 };
        let factors = wanted(sizes.weighted, terms.saturating_mul(4));
        let sums = wanted(sizes.sums, all(count, columns, 4));
        let norms = wanted(sizes.norms, all(count, columns, element));
        [
            ("x", all(count, columns, 4)),
            ("added", all(terms, columns, element)),
            ("factors", factors),
            ("norm", columns * 4),
            ("words", words),
            ("scales", scales),
            ("biases", biases),
            ("sums", sums),
            ("norms", norms),
            ("y", all(count, wide(sizes.width), element)),
        ]
    }
}

/// What the kernel takes by value.
fn normed_words(sizes: &NormedSizes) -> [u32; 14] {
    let NormedSizes {
        rows,
        count,
        column,
        width,
        gated,
        terms,
        weighted,
        sums,
        norms,
        epsilon,
    } = *sizes;
    let [gated, weighted, sums, norms] = [gated, weighted, sums, norms].map(u32::from);
    let epsilon = epsilon.to_bits();
    [
        rows, 0, count, 0, 1, column, width, gated, terms, weighted, sums, norms, epsilon, 0,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::ready;
    use super::*;
    use butterfly_ir::{Dtype, GroupedFormat};

    const RIGHT: NormedSizes = NormedSizes {
        rows: 321,
        count: 3,
        column: 3,
        width: 324,
        gated: false,
        terms: 9,
        weighted: true,
        sums: true,
        norms: false,
        epsilon: 1.0,
    };

    #[test]
    fn sizes_that_the_kernel_counts() {
        let ready = ready(GroupedFormat::Microscaled);
        let takes = |change: &dyn Fn(&mut NormedSizes)| {
            let mut sizes = RIGHT;
            change(&mut sizes);
            ready.takes_normed(&sizes)
        };
        assert!(takes(&|_| {}));
        assert!(takes(&|sizes| sizes.terms = 0));
        assert!(takes(&|sizes| sizes.gated = true));
        assert!(!takes(&|sizes| sizes.rows = 322));
        assert!(!takes(&|sizes| sizes.count = 0));
        // One launch multiplies four rows of weights with such groups.
        assert!(takes(&|sizes| sizes.count = 4));
        assert!(!takes(&|sizes| sizes.count = 5));
        assert!(!takes(&|sizes| sizes.terms = 1 << 30));
    }

    #[test]
    fn lengths_of_tensors() {
        let bytes = |sizes: &NormedSizes| {
            let format = GroupedFormat::Affine4 {
                group: 64,
                scales: Dtype::F16,
            };
            let lengths = ready(format).normed_lengths(sizes);
            lengths.map(|(_, bytes)| bytes)
        };
        let y = 3 * 648;
        let weight = [321 * 160, 321 * 10, 321 * 10];
        let [words, scales, biases] = weight;
        let rows = [3 * 1280, 27 * 640, 27 * 4, 1280];
        let [x, added, factors, norm] = rows;
        let want = [x, added, factors, norm, words, scales, biases, x, 0, y];
        assert_eq!(bytes(&RIGHT), want);
        let [words, scales, biases] = weight.map(|bytes| 2 * bytes);
        let other = NormedSizes {
            gated: true,
            terms: 1,
            weighted: false,
            sums: false,
            norms: true,
            ..RIGHT
        };
        let want = [x, 3 * 640, 0, norm, words, scales, biases, 0, 3 * 640, y];
        assert_eq!(bytes(&other), want);
    }

    #[test]
    fn values_lie_as_the_kernel_declares_them() {
        let one = 1.0f32.to_bits();
        let few = [321, 0, 3, 0, 1, 3, 324, 0];
        let words = normed_words(&RIGHT);
        assert_eq!(words[..8], few);
        assert_eq!(words[8..], [9, 1, 1, 0, one, 0]);
    }
}
