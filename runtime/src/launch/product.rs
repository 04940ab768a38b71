//! Launches matrix products on a CubeCL server that other code uses too.

use super::bind::{Map, long_enough};
use super::ready::Image;
use super::run::by_value;
use super::{Device, LaunchError, Launches};
use butterfly_ir::Product;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{CubeCount, Handle, KernelArguments};
use std::sync::Arc;

/// Most tiles of a product. A kernel counts them with signed 32-bit numbers, and its workgroups may
/// count one round past the last tile.
const MOST_TILES: u64 = 1 << 30;

/// A matrix product prepared for launching; clones share it.
#[derive(Clone, Debug)]
pub struct ReadyProduct {
    image: Arc<Image>,
    product: Product,
}

/// Sizes and row strides of `c = a b^T`, with a `[M, K]`, b `[N, K]` and c `[M, N]`, or of
/// `c = silu(a b_0^T) * (a b_1^T)`, with b `[2 N, K]` of the halves `b_0` and `b_1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiply {
    /// M, N and K.
    pub shape: [u32; 3],
    /// Row strides of a, b and c, in elements.
    pub rows: [u32; 3],
    /// How many such products there are, such as those of heads: less than 2^16.
    pub count: u32,
    /// From one a to the next, one b and one c, in elements.
    pub apart: [u32; 3],
    /// What is written to c.
    pub written: Written,
}

/// What a product's kernel writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Products, in the type of a and b.
    Rounded,
    /// Products of the second half of b's rows, multiplied with silu of those of the first.
    Gated,
    /// Products, as f32.
    Wide,
}

impl ReadyProduct {
    /// Checks and prepares a product. `image` is a cubin, PTX, or CUDA C++, which CubeCL compiles
    /// at the first launch.
    ///
    /// # Errors
    /// [`LaunchError::Image`] if `image` is none of these, [`LaunchError::Unfit`] if a field of
    /// `product` is invalid.
    pub fn new(product: Product, image: &[u8]) -> Result<Self, LaunchError> {
        let launch = [product.threads, product.shared_bytes];
        let image = Image::beside_attention(product.check(), &product.entry, launch, image)?;
        Ok(Self {
            image: Arc::new(image),
            product,
        })
    }

    /// Element type of a and b.
    pub fn dtype(&self) -> butterfly_ir::Dtype {
        self.product.dtype
    }

    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(super) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Whether the kernel can compute this product: M, N and K are between 1 and 2^30 - 1, row
    /// strides and those of matrices are multiples of 16 bytes, and there are at most 2^30 tiles.
    pub fn takes(&self, multiply: &Multiply) -> bool {
        let small = multiply.shape.iter().all(|n| (1..1 << 30).contains(n));
        let counted = (1..1 << 16).contains(&multiply.count) && multiply.apart[2] < 1 << 31;
        let element = self.product.dtype.bytes();
        let sizes = [element, element, self.bytes_of_c(multiply)];
        let steps = multiply.rows.iter().chain(&multiply.apart);
        let mut steps = steps.zip(sizes.iter().cycle());
        let aligned = steps.all(|(step, bytes)| step.is_multiple_of(16 / bytes));
        small && counted && aligned && self.tiles(multiply) <= MOST_TILES
    }

    /// Bytes of an element of c.
    fn bytes_of_c(&self, multiply: &Multiply) -> u32 {
        match multiply.written {
            Written::Rounded | Written::Gated => self.product.dtype.bytes(),
            Written::Wide => 4,
        }
    }

    /// Number of tiles of c.
    fn tiles(&self, multiply: &Multiply) -> u64 {
        let [m, n, _] = multiply.shape;
        let columns = match multiply.written {
            Written::Gated => self.product.n_tile / 2,
            Written::Rounded | Written::Wide => self.product.n_tile,
        };
        let each = u64::from(m.div_ceil(self.product.m_tile)) * u64::from(n.div_ceil(columns));
        each.saturating_mul(multiply.count.into())
    }

    /// Launches the product on the stream of `client`, without waiting for it.
    ///
    /// # Errors
    /// [`LaunchError::Short`] if a tensor is shorter than its rows reach,
    /// [`LaunchError::Unsupported`] if [`ReadyProduct::takes`] returns false.
    pub fn launch<R: Launches>(
        &self,
        client: &ComputeClient<R>,
        multiply: &Multiply,
        [a, b, c]: [&Handle; 3],
    ) -> Result<(), LaunchError> {
        if !self.takes(multiply) {
            return Err(LaunchError::Unsupported {
                device: Device::Cuda,
                key: self.product.entry.clone(),
                what: "a form for rows that do not start at multiples of 16 bytes, or for so many"
                    .into(),
            });
        }
        let [m, n, k] = multiply.shape;
        let (b_rows, written) = match multiply.written {
            Written::Rounded => (n, 0),
            Written::Gated => (2 * n, 1),
            Written::Wide => (n, 2),
        };
        let [a_apart, b_apart, c_apart] = multiply.apart;
        let elements = |rows: u32, row: u32, columns: u32, apart: u32| {
            let others = u64::from(multiply.count - 1) * u64::from(apart);
            others + u64::from(rows - 1) * u64::from(row) + u64::from(columns)
        };
        let element = u64::from(self.product.dtype.bytes());
        let of_c = u64::from(self.bytes_of_c(multiply));
        let [a_row, b_row, c_row] = multiply.rows;
        long_enough(
            "a",
            a.size_in_used(),
            elements(m, a_row, k, a_apart) * element,
        )?;
        long_enough(
            "b",
            b.size_in_used(),
            elements(b_rows, b_row, k, b_apart) * element,
        )?;
        long_enough("c", c.size_in_used(), elements(m, c_row, n, c_apart) * of_c)?;
        let map = |rows: u32, row: u32, apart: u32, tile: u32| Map {
            dtype: self.product.dtype,
            shape: [1, multiply.count, rows, k],
            strides: {
                let all = u64::from(rows) * u64::from(row);
                let apart = match multiply.count {
                    1 => all,
                    _ => apart.into(),
                };
                [all * u64::from(multiply.count), apart, row.into(), 1]
            },
            tile: [1, 1, tile, self.product.k_tile],
        };
        let (m_tile, n_tile) = (self.product.m_tile, self.product.n_tile);
        let maps = [
            map(m, a_row, a_apart, m_tile),
            map(b_rows, b_row, b_apart, n_tile / 2),
        ];
        let inputs = [a.clone(), b.clone()];
        let maps = R::tensor_maps(&maps, &inputs);
        let arguments = KernelArguments::new()
            .with_tensor_maps(maps)
            .with_buffers(vec![c.clone().binding()])
            .with_info(by_value(&[
                m,
                n,
                k,
                c_row,
                written,
                multiply.count,
                c_apart,
                0,
            ]));
        let tiles = u32::try_from(self.tiles(multiply)).unwrap_or(u32::MAX);
        let processors = client.properties().hardware.num_streaming_multiprocessors;
        let grid = tiles.min(processors.unwrap_or(1).max(1));
        // SAFETY: every length was checked against the rows.
        unsafe {
            client.launch_unchecked(
                R::task(&self.image),
                CubeCount::Static(grid, 1, 1),
                arguments,
            );
        }
        Ok(())
    }
}
